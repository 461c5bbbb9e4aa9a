"""Text for the terminal: the plan, the end of a run, the end of a sweep."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuner.config.schema import Config
from tuner.config.view import View
from tuner.errors import Stopped
from tuner.estimate import disk, training
from tuner.estimate.model_size import measure_model
from tuner.files import read_json
from tuner.models.checkpoint.files import ADAPTER_FILES
from tuner.pipeline.planned_stage import PlannedStage
from tuner.pipeline.run import RunDirectory, store_of
from tuner.report.byte_size import readable_bytes
from tuner.report.page import tokens_measured
from tuner.report.printable import printable
from tuner.stages import STAGES
from tuner.store.artifacts import Store

MEMORY = "GPU memory"
MANY = 100_000
"""packs assumed for data that is not here yet: so many that steps reach their full size"""


def plan_text(steps: Sequence[PlannedStage], config: Config, run: RunDirectory) -> str:
    """A line for each stage, and what is known of the work."""
    lines = [f"plan for {run.dir}"]
    if config.model.source == "run":
        lines.append(
            f"  starts from the run {config.model.run}, "
            f"{'going on with its adapter' if config.model.adapter else 'on its model'}: {config.model.dir}"
        )
    for step in steps:
        state = (
            f"continue {step.why}"
            if step.state == "continue"
            else f"wait ({step.why})"
            if step.state == "wait"
            else step.state
        )
        lines.append(
            f"  {step.stage.name:<12} {state:<18} "
            f"{step.why if step.state not in ('continue', 'wait') else ''}".rstrip()
        )
    lines += [f"  {step.told}" for step in steps if step.told]
    if config.model.licence and any(step.stage.name == "fetch_model" and step.to_do for step in steps):
        lines.append(f"  {config.model.repo}: {config.model.licence}")
    if facts := estimate(steps, config):
        memory = facts.pop(MEMORY, None)
        lines.append("  " + ", ".join(f"{value} {name}" for name, value in facts.items()))
        lines += [f"  {MEMORY} {memory}"] if memory else []
    return "\n".join(lines)


def plan_json(steps: Sequence[PlannedStage], config: Config, run: RunDirectory) -> str:
    """The plan for machines."""
    stages = [
        {"name": s.stage.name, "state": s.state, "why": s.why, "fingerprint": s.fingerprint} for s in steps
    ]
    told = [step.told for step in steps if step.told]
    return json.dumps(
        {
            "run": str(run.dir),
            "stages": stages,
            **({"told": told} if told else {}),
            "estimate": estimate(steps, config),
        },
        ensure_ascii=False,
        indent=1,
    )


def estimate(steps: Sequence[PlannedStage], config: Config) -> dict[str, str]:
    """Tokens, steps, time, disk and GPU memory of the work, as far as they can be known; guesses are
    marked ~.
    """
    by_name = {step.stage.name: step for step in steps}
    if not any(step.to_do for step in steps):
        return {}
    told: dict[str, str] = {}
    if found := disk.download_size(by_name, config):
        missing, here, certain = found
        told["to download"] = f"{'' if certain else '~'}{readable_bytes(missing)}" + (
            f" ({readable_bytes(here)} here already)" if here else ""
        )
    model = by_name["fetch_model"]
    if model.unresolved and not (config.model.geometry or config.model.parameters):
        return told | {"until the hub is asked": "the model's sizes are not known"}
    size = f"~{readable_bytes(disk.peak_bytes(disk.disk_needs(steps, config).values()))}"
    data = by_name["fetch_data"]
    if "tokenize" not in by_name:
        return told | {"of disk": size}
    if data.artifact is None and data.stage.remote.fetches(View(data.config, data.stage.name)):
        told |= {
            "of disk without the data": size,
            "until the data is downloaded": "tokens and steps are not known",
        }
        trains = "train" in by_name and by_name["train"].to_do
        return told | _memory(
            training.estimate_training(
                measure_model(model).geometry, config, disk.training_order(MANY, config), None
            )
            if trains
            else None
        )
    tokens, packs, counted = disk.epoch_size(by_name, config)
    guess = "" if counted else "~"
    told["tokens an epoch"] = f"{guess}{tokens:,}"
    if "train" in by_name and by_name["train"].to_do:
        order = disk.training_order(packs, config)
        told[f"steps of {order.per_step} pack{'s' * (order.per_step > 1)}"] = f"{guess}{order.steps:,}"
        shapes, made = measure_model(model), by_name["tokenize"].artifact
        ahead = training.estimate_training(
            shapes.geometry, config, order, made.manifest["facts"] if made else None
        )
        told |= _memory(ahead)
        if (spent := _seconds(order.end * tokens / packs, config, ahead)) is not None:
            told["training"] = f"~{_span(spent)}"
    return told | {"of disk": size}


def _memory(ahead: tuple[training.GpuEstimate, float | None] | None) -> dict[str, str]:
    return {MEMORY: f"{ahead[0].sentence} ({ahead[0].card.name})"} if ahead else {}


def _seconds(
    tokens: float, config: Config, ahead: tuple[training.GpuEstimate, float | None] | None
) -> float | None:
    """How long training takes: from the speed of an earlier run in this store on the same GPU, whatever it
    trained; else from its FLOPs.
    """
    card = ahead[0].card.name if ahead else None
    done = [artifact.manifest["facts"] for artifact in store_of(config).all("train")]
    speeds = [facts["tokens_per_second"] for facts in done if facts.get("gpu") == card]
    return tokens / speeds[-1] if speeds else ahead[1] if ahead else None


def _span(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def summary(run: RunDirectory) -> str:
    """Where things are, and the answers before and after."""
    lines = [f"run     {run.dir}"]
    lines += [f"{label:<7} {path}" for label, path in _results(run).items()]
    made = read_json(run.dir / "tokenize" / "manifest.json") or {}
    lines += [cut] if (cut := made.get("facts", {}).get("cut")) else []
    try:
        report: dict[str, Any] = json.loads(
            (run.dir / "evaluate" / "report.json").read_text(encoding="utf-8")
        )
    except (OSError, ValueError):
        return "\n".join(lines)
    held_out = report["held_out"]
    if held_out["tokens"]:
        loss, perplexity = held_out["loss"], held_out["perplexity"]
        lines.append(
            f"held-out loss {loss['before']:.4f} → {loss['after']:.4f}, perplexity "
            f"{perplexity['before']:.2f} → {perplexity['after']:.2f} ({tokens_measured(held_out['tokens'])})"
        )
    for answer in report["answers"]:
        lines += [
            printable(answer["prompt"]),
            f"    before  {printable(answer['before'])}",
            f"    after   {printable(answer['after'])}",
        ]
    return "\n".join(lines)


def _results(run: RunDirectory) -> dict[str, Path]:
    """Where what a person wants of the run is; of full fine-tuning there is no adapter."""
    adapted = (run.dir / "convert" / ADAPTER_FILES[0]).exists()
    names = {
        **({"adapter": "convert"} if adapted else {"model": "convert"}),
        **({"model": "merge"} if (run.dir / "merge").exists() else {}),
        "report": "report.md",
    }
    return {label: run.dir / name for label, name in names.items() if (run.dir / name).exists()}


def summary_json(run: RunDirectory) -> str:
    """The same for machines, on one line: where things are, the losses, and the digests of each stage."""
    store = Store(run.store() or run.dir)
    made = {stage.name: artifact for stage in STAGES if (artifact := store.find(run.key(stage.name) or "-"))}
    facts = {name: artifact.manifest["facts"] for name, artifact in made.items()}
    report = read_json(run.dir / "evaluate" / "report.json") or {}
    return json.dumps(
        {
            "run": str(run.dir),
            "name": run.name,
            "digest": run.digest,
            "paths": {label: str(path) for label, path in _results(run).items()},
            "steps": facts.get("train", {}).get("step"),
            "loss": facts.get("train", {}).get("loss"),
            "held_out": report.get("held_out"),
            "stages": {
                name: {"fingerprint": artifact.manifest["fingerprint"], "content": artifact.content}
                for name, artifact in made.items()
            },
        },
        ensure_ascii=False,
    )


def sweep_summary(results: Sequence[tuple[str, int, str]]) -> str:
    """Which jobs of a sweep are done and which failed, with the reason."""
    rest = [
        (title, "stopped" if code == Stopped.exit_code else "failed", message)
        for title, code, message in results
        if code not in (0, 3)
    ]
    lines = [f"sweep: {len(results) - len(rest)} of {len(results)} jobs done"]
    return "\n".join(lines + [f"  {how}: {title}: {message}" for title, how, message in rest])
