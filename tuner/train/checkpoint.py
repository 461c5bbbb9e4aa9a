"""A step's tensors on disk: written beside their place, synced and renamed, so that a directory of that name is a whole step."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tuner.disk import sha256_of, sync
from tuner.errors import StageError
from tuner.train.engine import State
from tuner.train.steps import MARKER, OPTIMIZER, WEIGHTS, Checkpoint


def save(out: Path, state: State, *, step: int, tokens: int, scores: Mapping[str, float], optimizer: bool) -> None:
    """Write `step` under out/steps, with its optimizer state or, where nothing will go on from it, without.

    Raises StageError when the disk refuses; what was half written is removed, and older steps stay.
    """
    target = out / "steps" / f"step-{step:06d}"
    partial = target.with_suffix(".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write_tensors(partial / WEIGHTS, state.weights)
        if optimizer:
            _write_tensors(partial / OPTIMIZER, state.optimizer)
        files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(partial.iterdir())}
        marker = {"step": step, "tokens": tokens, "scores": dict(scores), "files": files}
        (partial / MARKER).write_text(json.dumps(marker, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for path in [*partial.iterdir(), partial]:
            sync(path)
        shutil.rmtree(target, ignore_errors=True)  # a damaged step of the same number
        partial.rename(target)
        sync(target.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        mend = "Make space or mend the disk; the same command continues."
        raise StageError(f"Step {step} could not be saved in {target.parent}: {error}. {mend}") from error


def read(checkpoint: Checkpoint) -> State:
    """The tensors of a step, on the CPU."""
    optimizer = checkpoint.dir / OPTIMIZER
    return State(weights=load_file(checkpoint.dir / WEIGHTS), optimizer=load_file(optimizer) if checkpoint.resumable else {})


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
