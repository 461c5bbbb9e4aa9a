"""Text for the terminal: the plan, and the end of a run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuner.config.schema import Config
from tuner.estimate import disk, training
from tuner.estimate.model_size import measure_model
from tuner.estimate.work import data_unknown, model_unknown, training_work
from tuner.files import read_json
from tuner.models.checkpoint.files import ADAPTER_FILES
from tuner.pipeline.planned_stage import PlannedStage
from tuner.pipeline.run import RunDirectory
from tuner.report.byte_size import readable_bytes
from tuner.report.page import tokens_measured
from tuner.report.printable import printable
from tuner.report.span import readable_seconds
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


def plan_dict(steps: Sequence[PlannedStage], config: Config, run: RunDirectory) -> dict[str, Any]:
    """The plan for machines."""
    told = [step.told for step in steps if step.told]
    return {
        "run": str(run.dir),
        "stages": [
            {"name": s.stage.name, "state": s.state, "why": s.why, "fingerprint": s.fingerprint}
            for s in steps
        ],
        **({"told": told} if told else {}),
        "estimate": estimate(steps, config),
    }


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
    if model_unknown(by_name, config):
        return told | {"until the hub is asked": "the model's sizes are not known"}
    size = f"~{readable_bytes(disk.peak_bytes(disk.disk_needs(steps, config).values()))}"
    if "tokenize" not in by_name:
        return told | {"of disk": size}
    if data_unknown(by_name):
        told |= {
            "of disk without the data": size,
            "until the data is downloaded": "tokens and steps are not known",
        }
        trains = "train" in by_name and by_name["train"].to_do
        shapes = measure_model(by_name["fetch_model"]).geometry
        ahead = (
            training.estimate_training(shapes, config, disk.training_order(MANY, config), None)
            if trains
            else None
        )
        return told | _memory(ahead[0] if ahead else None)
    tokens, _, counted = disk.epoch_size(by_name, config)
    guess = "" if counted else "~"
    told["tokens an epoch"] = f"{guess}{tokens:,}"
    if work := training_work(by_name, config):
        per_step = work.order.per_step
        told[f"steps of {per_step} pack{'s' * (per_step > 1)}"] = f"{guess}{work.order.steps:,}"
        told |= _memory(work.gpu)
        if work.seconds is not None:
            told["training"] = f"~{readable_seconds(work.seconds)}"
    return told | {"of disk": size}


def _memory(ahead: training.GpuEstimate | None) -> dict[str, str]:
    return {MEMORY: f"{ahead.sentence} ({ahead.card.name})"} if ahead else {}


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
        lines.append(shortened(printable(answer["prompt"])))
        told = [when for when in ("before", "after", "expected") if when in answer]
        width = max(map(len, told)) + 2
        lines += [f"    {when:<{width}}{shortened(printable(answer[when]))}" for when in told]
    return "\n".join(lines)


def shortened(text: str, most: int = 300) -> str:
    """A text as one line of a terminal's summary: the whole stands in the report.

    >>> shortened("a long answer", 8)
    'a long …'
    """
    return text if len(text) <= most else text[: most - 1] + "…"


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
