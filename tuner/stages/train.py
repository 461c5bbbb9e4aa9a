"""train: packs and a base model → the newest step's weights, and how it went."""

from pathlib import Path
from typing import Any

from tuner.stage import Context, Stage, View

PIECES = {"order": 1, "schedule": 1, "loss": 1, "adamw": 1}
LORA = 1


def run(ctx: Context) -> dict[str, Any]:
    from tuner.train import worker

    return worker.run(ctx)


def versions(config: View) -> dict[str, int]:
    """Bumped by hand when a piece computes something else."""
    return PIECES | ({"lora": LORA} if config.algo.adapter == "lora" else {})


def progress(partial: Path) -> str | None:
    """The newest step that a killed training left; whether its files are sound is looked at when it goes on from there."""
    steps = sorted(int(marker.parent.name.removeprefix("step-")) for marker in partial.glob("steps/step-*[0-9]/state.json"))
    return f"step {steps[-1]}" if steps else None


STAGE = Stage(
    name="train",
    version=1,
    run=run,
    upstream=("fetch_model", "tokenize"),
    versions=versions,
    child=True,
    progress=progress,
    journal=("metrics.jsonl", "tensorboard/*"),
)
