"""train: packs and a base model → the newest step's weights, and how it went."""

from pathlib import Path
from typing import Any

from tuner.errors import ConfigError
from tuner.stage import Context, Stage, View

PIECES = {"order": 1, "schedule": 1, "loss": 1, "adamw": 1}
LORA = 1


def run(ctx: Context) -> dict[str, Any]:
    from tuner.train import worker

    return worker.run(ctx)


def versions(config: View) -> dict[str, int]:
    """Bumped by hand when a piece computes something else."""
    return PIECES | ({"lora": LORA} if config.algo.adapter == "lora" else {})


def check(config: View) -> None:
    """Refuse numbers that can't train."""
    algo, machine = config.algo, config.machine
    above_zero = {
        "algo.epochs": algo.epochs, "algo.steps": algo.steps, "algo.batch_tokens": algo.batch_tokens, "algo.clip": algo.clip,
        "algo.r": algo.r, "machine.threads": machine.threads, "machine.micro_batch": machine.micro_batch,
        "machine.save_every": machine.save_every, "machine.keep": machine.keep,
    }  # fmt: skip
    for path, value in above_zero.items():
        if value not in (None, "auto") and value <= 0:
            raise ConfigError(f"{path}={value} can't train: it must be above zero")
    shares = {"algo.warmup": algo.warmup, "algo.dropout": algo.dropout}
    for path, value in shares.items():
        if not 0 <= value < 1:
            raise ConfigError(f"{path}={value} is no share: it lies between 0 and 1")
    if algo.batch_tokens != "auto" and algo.batch_tokens < config.data.length:
        raise ConfigError(
            f"algo.batch_tokens={algo.batch_tokens} is less than one pack of data.length={config.data.length} tokens, and a step takes whole packs: "
            "raise the first, lower the second, or leave algo.batch_tokens=auto"
        )


def progress(partial: Path) -> str | None:
    """The newest step that a killed training left; whether its files are sound is looked at when it goes on from there."""
    steps = sorted(int(marker.parent.name.removeprefix("step-")) for marker in partial.glob("steps/step-*[0-9]/state.json"))
    return f"step {steps[-1]}" if steps else None


STAGE = Stage(
    name="train",
    version=1,
    does="trains on the packs",
    run=run,
    upstream=("fetch_model", "tokenize"),
    versions=versions,
    check=check,
    child=True,
    progress=progress,
    journal=("metrics.jsonl", "tensorboard/*"),
)
