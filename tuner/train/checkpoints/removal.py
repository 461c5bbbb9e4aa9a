"""Which saved steps go, and how: killed in between, nothing is left that looks like a step and is none."""

import json
import shutil
from pathlib import Path

from tuner.files import write_json
from tuner.train.checkpoints.steps import MARKER, OPTIMIZER, SavedStep, best, saved_steps, step_directories


def prune(out: Path, *, keep: int, by: str, pinned: object, resumable: int) -> None:
    """Remove all but the newest `keep` steps, the best one and that of the number `pinned`; only the
    newest `resumable` keep their optimizer.
    """
    found = saved_steps(out)
    good = best(found, by)
    for age, checkpoint in enumerate(reversed(found)):
        if age >= keep and checkpoint != good and checkpoint.step != pinned:
            remove(checkpoint.dir)
        elif age >= resumable and checkpoint.resumable:
            remove_optimizer(checkpoint)


def remove_after(out: Path, *, after: int) -> None:
    """Remove the steps behind `after`, damaged ones too: the run goes on from there and does them again."""
    for number, directory in step_directories(out):
        if number > after:
            remove(directory)


def remove(directory: Path) -> None:
    """Remove a step. It stops being one at once: killed in between, nothing is left that looks like a
    step.
    """
    aside = directory.with_suffix(".old")
    shutil.rmtree(aside, ignore_errors=True)
    directory.rename(aside)
    shutil.rmtree(aside)


def remove_leftovers(out: Path) -> None:
    """Remove what a killed process left half written or half removed."""
    for directory in [*(out / "steps").glob("*.tmp"), *(out / "steps").glob("*.old")]:
        shutil.rmtree(directory)


def remove_optimizer(checkpoint: SavedStep) -> None:
    """Give back the disk of the optimizer's state. The marker changes first: killed in between, the step
    is whole without it.
    """
    marker = json.loads((checkpoint.dir / MARKER).read_text(encoding="utf-8"))
    gone = checkpoint.paths(OPTIMIZER)
    marker["files"] = {
        name: file for name, file in marker["files"].items() if checkpoint.dir / name not in gone
    }
    marker.get("shapes", {}).pop(OPTIMIZER, None)
    write_json(checkpoint.dir / MARKER, marker, indent=2)
    for path in gone:
        path.unlink(missing_ok=True)
