"""train: packs and a base model → saved steps of what trains, and how it went."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tuner.config import lora_init
from tuner.config.view import View
from tuner.errors import ConfigError
from tuner.files import decode_json
from tuner.models.checkpoint.files import adapter_sources
from tuner.pipeline.sizes import MANIFEST, SETTINGS, TENSOR, DiskNeed, Quantities
from tuner.pipeline.stage import Context, Extension, Stage
from tuner.train.checkpoints import steps

PIECES = {"order": 2, "schedule": 2, "loss": 1}
"""order 2, schedule 2: shares of packs and steps are of the decimal numbers that were typed"""
NOISE = 1
"""dropout and noise on embeddings: drawn for each pack, whatever micro batch it is in"""
EARLY_STOP = 2
"""2: decided by up to 64 held-out packs, whatever machine.measure_every and save_every are"""
QUANT = 2
"""2: with matmuls in fp32, gradients through a base in 4 bits are of the weights that the forward pass
multiplies by
"""
ROW, POINTS = 160, 320
"""bytes of a step's line in metrics.jsonl, and of its points for TensorBoard"""
RESUMABLE = 2
"""saved steps that keep the optimizer's state while tuner.train.loop trains"""


def run(ctx: Context) -> dict[str, Any]:
    from tuner.train import session

    return session.run(ctx)


def versions(config: View) -> dict[str, int]:
    """Bumped by hand when a piece computes something else."""
    algo = config.algo
    noise = {"noise": NOISE} if algo.dropout or algo.neftune else {}
    quant = {"quant": QUANT} if algo.quant != "none" else {}
    stopping = {"early_stop": EARLY_STOP} if algo.early_stop else {}
    return (
        PIECES
        | {algo.optim.name: algo.optim.kind.version}
        | {algo.method.name: algo.method.version}
        | noise
        | quant
        | stopping
    )


def check(config: View) -> None:
    """An adapter that training goes on from was made with the settings of this config."""
    algo = config.algo
    if algo.init != "continue":
        return
    there = decode_json((Path(config.model.adapter) / "adapter_config.json").read_text(encoding="utf-8"))
    rslora, dora = there.get("use_rslora", False), there.get("use_dora", False)
    scale = lora_init.alpha_of(algo.alpha, r=there["r"], rslora=rslora)
    pairs = {
        "r": (algo.r, there["r"]),
        "alpha": (scale, there["lora_alpha"]),
        "rslora": (algo.rslora, rslora),
        "dora": (algo.dora, dora),
    }
    if wrong := {name: value for name, (own, value) in pairs.items() if own != value}:
        words = " ".join(f"algo.{name}={str(value).lower()}" for name, value in wrong.items())
        raise ConfigError(
            "algo.init=continue goes on from an adapter that was made with other settings than this config "
            "has. Add: "
            f"{words}"
        )


def progress(partial: Path) -> str | None:
    """The newest step that a killed run left; whether its files are sound is looked at when it goes
    on from there.
    """
    found = steps.saved_steps(partial)
    return f"step {found[-1].step}" if found else None


def reach(directory: Path, config: View) -> int | None:
    """The newest step that another run left with its optimizer's state, not behind the end of this
    one.
    """
    end = config.algo.stop_step
    return max(
        (c.step for c in steps.saved_steps(directory) if c.resumable and (end is None or c.step <= end)),
        default=None,
    )


def size(view: View, known: Quantities) -> DiskNeed:
    """Of the saved steps: fp32 weights of the newest, the best and convert.step's, and the optimizer's state
    where training may go on from.

    A step is written before the oldest goes, so there is one more at the peak.
    """
    machine, stop = view.machine, view.algo.stop_step
    weights = 4 * known.trainable + TENSOR * known.trainable_tensors
    state = known.optimizer_state + 3 * TENSOR * known.trainable_tensors
    pinned = isinstance(view.convert.step, int)
    exact = known.counted or view.algo.steps
    saves = -(-known.steps // machine.save_every) + pinned if exact else machine.keep + 1
    beside = (saves > machine.keep) + pinned  # the best may be one of the newest too
    earlier = min(machine.keep, saves - 1) + beside
    records = MANIFEST + SETTINGS + known.steps * (ROW + POINTS * ("tensorboard" in machine.trackers))
    resumable = view.train.keep == "resume" or (view.train.keep == "auto" and stop is not None)
    return DiskNeed(
        peak=(earlier + 1) * weights + (min(RESUMABLE, earlier) + 1) * state + records,
        stays=(min(machine.keep, saves) + beside) * weights + resumable * state + records,
    )


def must_have(view: View, out: Path, facts: Mapping[str, Any]) -> Iterator[str]:
    """The journal, and the last step with all its files."""
    yield "metrics.jsonl"
    if view.algo.uses_adapter:
        yield steps.ADAPTER
    last = steps.directory_name(facts["step"])
    yield f"steps/{last}/{steps.MARKER}"
    if found := steps.read_step(out / "steps" / last):
        yield from (f"steps/{last}/{name}" for name in found.files)


STAGE = Stage(
    name="train",
    version=1,
    run=run,
    upstream=("fetch_model", "tokenize"),
    versions=versions,
    sources=adapter_sources,
    check=check,
    child=True,
    computes=True,
    several=True,
    progress=progress,
    extension=Extension(field="algo.stop_step", reach=reach, adopt=steps.adopt_step),
    size=size,
    must_have=must_have,
    journal=("metrics.jsonl", "samples.jsonl", "trackers.json", "tensorboard/*", "steps/*"),
)
