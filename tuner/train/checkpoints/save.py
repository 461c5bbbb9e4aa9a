"""A step's tensors on disk: written beside their place, synced and renamed, so that a directory of that name
is a whole step.

Training goes on meanwhile: what is saved are copies of the tensors, in the host's memory.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from tuner.errors import Interrupted, StageError
from tuner.files import read_json, sha256_of, sync_to_disk, write_json
from tuner.models.checkpoint.safetensors import DTYPES, Spec
from tuner.models.checkpoint.write_safetensors import write_file
from tuner.train.checkpoints import removal, sharded, steps
from tuner.train.checkpoints.copies import HostCopies, available_memory
from tuner.train.engine import State

NAMES = {dtype: name for name, dtype in DTYPES.items()}
PAUSE, GRACE = 0.02, 10.0
"""seconds between two looks for the files of other processes, and how much longer these wait for the first,
which tells what is missing; and how long all wait when the run has failed already"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A step as it will lie on the disk: this process's part of it."""

    step: int
    tokens: int
    scores: dict[str, float]
    tensors: dict[str, dict[str, Tensor]]
    """by kind of file"""
    shapes: dict[str, dict[str, tuple[int, ...]]]
    """by kind of file, those of tensors that are here in fragments"""


class Saver:
    """Saves steps under out/steps while training goes on. All processes of a run have one, and save the
    same steps.

    A process writes its own files and then a note of them. The first one waits for the notes of all, writes
    the marker, and gives the directory its name. The copies take as many bytes as what is saved (fp32 weights
    and the moments of AdamW: 12 for each trainable parameter), and stay until the run ends.
    """

    def __init__(
        self,
        out: Path,
        *,
        rank: int = 0,
        of: int = 1,
        timeout: float = 600.0,
        prune: Callable[[], object] = lambda: None,
    ) -> None:
        """`prune` is called, in the first process, when a step is there. `timeout`: seconds that processes
        wait for each other's files.

        In the first process this removes what a killed run left half written; the others save nothing
        before that is done.
        """
        self._out, self._rank, self._of, self._timeout, self._prune = out, rank, of, timeout, prune
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="save")
        self._pending: Future[None] | None = None
        self._copies = HostCopies()
        if rank == 0:
            removal.remove_leftovers(out)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # of an interruption one believes that the step is saved
        sound = error is None or isinstance(error, Interrupted)
        if not sound:
            self._timeout = min(self._timeout, GRACE)  # the others may have died of the same
        try:
            self.wait()
        except Exception:
            if sound:
                raise
        finally:
            self._thread.shutdown()

    def save(
        self, state: State, *, step: int, tokens: int, scores: Mapping[str, float], optimizer: bool
    ) -> None:
        """Save `step`, with its optimizer state or, where nothing will go on from it, without. Returns when
        the tensors may change again.

        Waits for the save before it. Raises what `wait` raises, for that one.
        """
        self.wait()
        tensors = {steps.WEIGHTS: state.weights} | ({steps.OPTIMIZER: state.optimizer} if optimizer else {})
        shapes = {
            kind: {name: state.shapes[name] for name in fragmented(here, state.shapes)}
            for kind, here in tensors.items()
        }
        copies = self._copies.take(tensors, available_memory() / self._of)
        snapshot = Snapshot(
            step=step, tokens=tokens, scores=dict(scores), tensors=copies or tensors, shapes=shapes
        )
        self._pending = self._thread.submit(self._write, snapshot)
        if copies is None:
            self.wait()

    def poll(self) -> None:
        """Raise what `wait` would, if it is known already; never waits."""
        if self._pending and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Return when what was saved is on the disk, under its name.

        Raises StageError when the disk refused, or another process did not write its part; what was half
        written is removed, and older steps stay.
        """
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def _write(self, snapshot: Snapshot) -> None:
        target = self._out / "steps" / steps.directory_name(snapshot.step)
        partial = target.with_suffix(".tmp")
        self._copies.arrive()
        try:
            partial.mkdir(parents=True, exist_ok=True)
            own = self._write_own(partial, snapshot)
            if self._rank:
                write_json(partial / note_name(self._rank), own)
                self._await_first(partial, snapshot.step)
                return
            publish(partial, target, snapshot, [own, *self._others(partial, snapshot.step)])
        except BaseException as error:
            self._give_up(partial, error)
            # also where the first process has given up meanwhile and removed the directory: it tells why
            if isinstance(error, OSError):
                mend = "Make space or repair the disk; the same command continues."
                raise StageError(
                    f"Step {snapshot.step} could not be saved in {target.parent}: {error}. {mend}"
                ) from error
            raise
        try:
            self._prune()
        except OSError as error:
            mend = "Fix that; the same command continues."
            raise StageError(
                f"Step {snapshot.step} is saved, but older ones can't be removed from {target.parent}: "
                f"{error}. {mend}"
            ) from error

    def _write_own(self, partial: Path, snapshot: Snapshot) -> dict[str, Any]:
        """Write this process's files; returns what the marker says of them."""
        files = {}
        for kind, tensors in snapshot.tensors.items():
            path = partial / steps.file_name(kind, self._rank, self._of)
            specs = [
                Spec(name=name, dtype=NAMES[tensor.dtype], shape=tuple(tensor.shape))
                for name, tensor in tensors.items()
            ]
            write_file(path, specs, lambda name, tensors=tensors: tensors[name].cpu())  # type: ignore[misc]
            files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            sync_to_disk(path)
        return {"files": files, "shapes": snapshot.shapes}

    def _others(self, partial: Path, step: int) -> list[dict[str, Any]]:
        """The notes of the other processes. Raises StageError when one tells of an error, or does not come
        in time.
        """
        found: dict[int, dict[str, Any]] = {}
        began = time.monotonic()
        while missing := [rank for rank in range(1, self._of) if rank not in found]:
            found |= {rank: note for rank in missing if (note := read_json(partial / note_name(rank)))}
            for rank, note in found.items():
                if "error" in note:
                    raise StageError(
                        f"Step {step} could not be saved in {partial.parent}. Process {rank} of {self._of} "
                        f"says: {note['error']}"
                    )
            if time.monotonic() - began > self._timeout:
                who = (
                    f"process{'es' if len(missing) > 1 else ''} {', '.join(map(str, missing))} of {self._of} "
                    "(the first is 0)"
                )
                raise StageError(
                    f"Step {step} could not be saved: its part of {who} was not there {self._timeout:g} s "
                    "(machine.timeout) after that of process 0. See what became of it in the log; all "
                    f"processes must see {partial.parent} as one directory. Older steps are kept, and the "
                    "same command continues."
                )
            time.sleep(PAUSE)
        return list(found.values())

    def _await_first(self, partial: Path, step: int) -> None:
        """Return when the first process has given the step its name, or given it up, of which it tells
        itself.
        """
        began = time.monotonic()
        while partial.exists():
            if time.monotonic() - began > self._timeout + GRACE:
                raise StageError(
                    f"Step {step} could not be saved: process 0 has not finished it within {self._timeout:g} "
                    "s (machine.timeout)."
                )
            time.sleep(PAUSE)

    def _give_up(self, partial: Path, error: BaseException) -> None:
        if self._rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            return
        for kind in (steps.WEIGHTS, steps.OPTIMIZER):  # gives back the space that the note may need
            with suppress(OSError):
                (partial / steps.file_name(kind, self._rank, self._of)).unlink()
        with suppress(OSError):
            write_json(partial / note_name(self._rank), {"error": str(error)})


def save(
    out: Path, state: State, *, step: int, tokens: int, scores: Mapping[str, float], optimizer: bool
) -> None:
    """`Saver.save` in a process that is alone, back when the step is on the disk."""
    with Saver(out) as saver:
        saver.save(state, step=step, tokens=tokens, scores=scores, optimizer=optimizer)


def publish(partial: Path, target: Path, snapshot: Snapshot, notes: Iterable[dict[str, Any]]) -> None:
    """Write the marker for what all processes have noted, and give the directory its name.

    Raises DataError unless the files together hold each tensor whole.
    """
    files: dict[str, Any] = {}
    shapes: dict[str, dict[str, Any]] = {kind: {} for kind in snapshot.tensors}
    for note in notes:
        files |= note["files"]
        for kind, told in note["shapes"].items():
            shapes[kind] |= told
    for kind, told in shapes.items():
        sharded.LazyTensors(
            [partial / name for name in steps.complete_set(kind, files)],
            {name: tuple(shape) for name, shape in told.items()},
        )
    marker = {
        "step": snapshot.step,
        "tokens": snapshot.tokens,
        "scores": snapshot.scores,
        "files": files,
        "shapes": shapes,
    }
    for path in partial.glob("rank-*.json"):
        path.unlink()
    (partial / steps.MARKER).write_text(json.dumps(marker, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    sync_to_disk(partial / steps.MARKER)
    sync_to_disk(partial)
    if target.exists():  # a damaged step of the same number
        removal.remove(target)
    partial.rename(target)
    sync_to_disk(target.parent)


def note_name(rank: int) -> str:
    """What a process's note of its files is called.

    >>> note_name(1)
    'rank-00001.json'
    """
    return f"rank-{rank:05}.json"


def fragmented(names: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """The tensors that the named entries are fragments of.

    >>> fragmented(["a@0", "b", "c@d"], {"a": (4,), "e": (2,)})
    {'a'}
    """
    return {name.rpartition("@")[0] for name in names} & shapes.keys()
