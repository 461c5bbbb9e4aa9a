"""Where a run goes on from: the newest step that is whole, the same for all of its processes."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from tuner.data.sampler import Order
from tuner.train.checkpoints import removal, steps
from tuner.train.checkpoints.steps import SavedStep
from tuner.train.distributed import World


def find_step(out: Path, order: Order, world: World, say: Callable[[str], None]) -> SavedStep | None:
    """The step to go on from; what lies behind it, or without one all that is there, goes.

    The first process looks. All of them check what it finds, each a share of the files: a step of a large
    model takes one process minutes.
    """
    if not world.first:
        while isinstance(told := world.gather(None)[0], dict):  # in the end it tells the number
            check_files(out / "steps" / told["step"], told["files"], world)
        return None if told is None else steps.choose(steps.saved_steps(out), told, "")

    def damaged(checkpoint: SavedStep) -> list[str]:
        world.gather({"step": checkpoint.dir.name, "files": dict(checkpoint.files)})
        return check_files(checkpoint.dir, checkpoint.files, world)

    found = steps.newest(
        out, lambda checkpoint: checkpoint.resumable or checkpoint.step == order.steps, say, damaged
    )
    if found is None:
        clear(out)
    removal.remove_after(out, after=found.step if found else 0)
    world.gather(found.step if found else None)
    return found


def check_files(directory: Path, files: Mapping[str, str], world: World) -> list[str]:
    """The damaged ones of a step's files; each process reads some of them."""
    own = dict(sorted(files.items())[world.rank :: world.size])
    return sorted(name for names in world.gather(steps.damaged_files(directory, own)) for name in names)


def clear(out: Path) -> None:
    """Remove what a run left that has no whole step."""
    for name in ("steps", "tensorboard"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (steps.FACTS, "metrics.jsonl", "samples.jsonl", "trackers.json", *steps.SETTINGS):
        (out / name).unlink(missing_ok=True)
