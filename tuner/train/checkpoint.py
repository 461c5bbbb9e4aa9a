"""Steps on disk: `steps/step-000120/{weights.safetensors, optimizer.safetensors, state.json}`.

A step is written beside its place, synced and renamed, and `state.json` with the hashes of the other files comes last: a directory
of that name either is a whole step or was damaged later, which the hashes show. The last step of a run has no optimizer.safetensors.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tuner.disk import sha256_of, sync
from tuner.errors import StageError
from tuner.train.engine import State

MARKER = "state.json"
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A whole step."""

    dir: Path
    step: int
    """optimizer steps done"""
    tokens: int
    """tokens seen until then"""


def save(out: Path, state: State, *, step: int, tokens: int, last: bool) -> Checkpoint:
    """Write `step` under out/steps; `last` leaves the optimizer out, for nothing goes on from there.

    Raises StageError when the disk refuses; what was half written is removed, and older steps stay.
    """
    target = out / "steps" / f"step-{step:06d}"
    partial = target.with_suffix(".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write_tensors(partial / WEIGHTS, state.weights)
        if not last:
            _write_tensors(partial / OPTIMIZER, state.optimizer)
        files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(partial.iterdir())}
        (partial / MARKER).write_text(json.dumps({"step": step, "tokens": tokens, "files": files}, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for path in [*partial.iterdir(), partial]:
            sync(path)
        shutil.rmtree(target, ignore_errors=True)  # a damaged step of the same number
        partial.rename(target)
        sync(target.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        mend = "Make space or mend the disk; the same command continues."
        raise StageError(f"Step {step} could not be saved in {target.parent}: {error}. {mend}") from error
    return Checkpoint(dir=target, step=step, tokens=tokens)


def newest(out: Path) -> Checkpoint | None:
    """The newest step under `out` whose files hold, by their hashes; None when there is none."""
    for directory in reversed(_steps(out)):
        try:
            marker = json.loads((directory / MARKER).read_text(encoding="utf-8"))
            if all(sha256_of(directory / name) == file["sha256"] for name, file in marker["files"].items()):
                return Checkpoint(dir=directory, step=marker["step"], tokens=marker["tokens"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def read(checkpoint: Checkpoint) -> State:
    """The tensors of a step, on the CPU."""
    optimizer = checkpoint.dir / OPTIMIZER
    return State(weights=load_file(checkpoint.dir / WEIGHTS), optimizer=load_file(optimizer) if optimizer.exists() else {})


def prune(out: Path, keep: int) -> None:
    """Remove all but the newest `keep` steps, and what a killed process left half written."""
    for directory in _steps(out)[:-keep] if keep else _steps(out):
        shutil.rmtree(directory)
    for directory in (out / "steps").glob("*.tmp"):
        shutil.rmtree(directory)


def _steps(out: Path) -> list[Path]:
    found = [path for path in (out / "steps").glob("step-*") if path.name.removeprefix("step-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
