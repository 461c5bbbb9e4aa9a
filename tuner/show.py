"""What a person reads: the plan, the end of a run, the end of a sweep."""

import json
from collections.abc import Sequence
from typing import Any

from tuner.plan import Step
from tuner.runs import Run, store_of
from tuner.schema import Config
from tuner.train.order import plan_order

BYTES_A_TOKEN = 4
"""of JSONL, for a data set that was not tokenized yet: between English and Chinese, with the keys and quotes around the text"""


def plan_text(steps: Sequence[Step], config: Config, run: Run) -> str:
    """A line for each stage, and what is known of the work."""
    lines = [f"plan for {run.dir}"]
    for step in steps:
        state = f"continue {step.why}" if step.state == "continue" else f"wait ({step.why})" if step.state == "wait" else step.state
        lines.append(f"  {step.stage.name:<12} {state:<18} {step.why if step.state not in ('continue', 'wait') else ''}".rstrip())
    if facts := estimate(steps, config):
        lines.append("  " + ", ".join(f"{value} {name}" for name, value in facts.items()))
    return "\n".join(lines)


def plan_json(steps: Sequence[Step], config: Config, run: Run) -> str:
    """The plan for machines."""
    stages = [{"name": s.stage.name, "state": s.state, "why": s.why, "fingerprint": s.fingerprint} for s in steps]
    return json.dumps({"run": str(run.dir), "stages": stages, "estimate": estimate(steps, config)}, ensure_ascii=False, indent=1)


def estimate(steps: Sequence[Step], config: Config) -> dict[str, str]:
    """Tokens, steps, time and disk of the work, as far as they can be known; guesses are marked ~."""
    by_name = {step.stage.name: step for step in steps}
    if not any(step.to_do for step in steps) or "tokenize" not in by_name:
        return {}
    told: dict[str, str] = {}
    made = by_name["tokenize"].artifact
    if made:
        packs, tokens, guess = made.manifest["facts"]["packs"], made.manifest["facts"]["tokens"], ""
    else:
        size = sum(path.stat().st_size for path in by_name["fetch_data"].sources.values())
        tokens, guess = max(1, size // BYTES_A_TOKEN), "~"
        packs = -(-tokens // config.data.length)
    told["tokens an epoch"] = f"{guess}{tokens:,}"
    if "train" in by_name and by_name["train"].to_do:
        algo = config.algo
        order = plan_order(packs, config.data.length, seed=0, epochs=algo.epochs, steps=algo.steps, batch_tokens=algo.batch_tokens)
        told[f"steps of {order.per_step} pack{'s' * (order.per_step > 1)}"] = f"{guess}{order.steps:,}"
        speeds = [a.manifest["facts"]["tokens_per_second"] for a in store_of(config).all("train")]
        if speeds:  # of the newest training in this store, whatever it trained: a guess
            told["training"] = f"~{_span(order.end * tokens / packs / speeds[-1])}"
    if disk := _disk(by_name, config):
        told["of disk"] = f"~{disk / 1e6:,.0f} MB"
    return told


def _disk(by_name: dict[str, Step], config: Config) -> int:
    """Bytes that the stages to do will add, from the model's size; nothing while that is not known."""
    model = by_name["fetch_model"].artifact
    if model is None:
        return 0
    parameters, size = model.manifest["facts"]["parameters"], {"bf16": 2, "fp32": 4}[config.algo.precision]
    full = config.algo.adapter == "none"
    # A full training keeps fp32 masters and both moments in each kept checkpoint; merge then links to convert's files.
    needs = {"train": 12 * (config.machine.keep + 1) * full, "convert": size * full, "merge": 2 * (not full)}
    return sum(int(parameters * share) for name, share in needs.items() if name in by_name and by_name[name].to_do)


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def printable(text: str) -> str:
    """On one line, with nothing that could move a terminal's cursor.

    >>> printable("red\\x1b[31m\\nnext")
    'red?[31m next'
    """
    return "".join(char if char.isprintable() else " " if char.isspace() else "?" for char in text)


def summary(run: Run) -> str:
    """Where things are, and the answers before and after."""
    lines = [f"run     {run.dir}"]
    lines += [
        f"{label:<7} {run.dir / name}"
        for label, name in (("adapter", "convert"), ("model", "merge"), ("report", "report.md"))
        if (run.dir / name).exists()
    ]
    try:
        report: dict[str, Any] = json.loads((run.dir / "evaluate" / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "\n".join(lines)
    held_out = report["held_out"]
    if held_out["tokens"]:
        loss, perplexity = held_out["loss"], held_out["perplexity"]
        lines.append(
            f"held-out loss {loss['before']:.4f} → {loss['after']:.4f}, perplexity {perplexity['before']:.2f} → {perplexity['after']:.2f} ({held_out['tokens']:,} tokens)"
        )
    for answer in report["answers"]:
        lines += [printable(answer["prompt"]), f"    before  {printable(answer['before'])}", f"    after   {printable(answer['after'])}"]
    return "\n".join(lines)


def sweep_summary(results: Sequence[tuple[str, int, str]]) -> str:
    """Which jobs of a sweep are done and which failed, with the reason."""
    failed = [(title, message) for title, code, message in results if code not in (0, 3)]
    lines = [f"sweep: {len(results) - len(failed)} of {len(results)} jobs done"]
    return "\n".join(lines + [f"  failed: {title}: {message}" for title, message in failed])
