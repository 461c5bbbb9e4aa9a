"""The steps that a run has saved: which there are, which is best. Reads JSON and stats
files; imports no torch.

steps/step-000120/weights.safetensors    what trains, fp32
                  optimizer.safetensors  its moments; only where a run may go on from
                  state.json             written last: the step, its scores, and the hashes of the other files

Of several processes each has files of its own, weights-00001-of-00002.safetensors …, and state.json has the
shapes of the tensors that lie in parts.
"""

import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuner.files import link_or_copy, read_json, sha256_of, write_json
from tuner.store.digests import content_digest
from tuner.store.manifest import facts_of

MARKER = "state.json"
WEIGHTS, OPTIMIZER = "weights", "optimizer"
ADAPTER = "adapter_config.json"
FACTS = "facts.json"
"""of a run that is not finished: what `auto` and the neutral fields mean in it"""
INITIAL = "initial.safetensors"
"""the first values of an adapter that began as a part of the base's weights: what was trained is the
difference
"""
SETTINGS = (ADAPTER, INITIAL)

SCORES = ("loss", "held_out")
"""what a saved step is known by: the training loss, and the loss on held-out packs"""

RESOLVED = tuple(
    (
        "device gpu threads micro_batch torch engine zero offload processes sequence_parallel attention "
        "attention_version recompute deterministic kernels compiled captured"
    ).split()
)
"""the facts that a run which goes on keeps, or says what differs"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedStep:
    """A saved step."""

    dir: Path
    step: int
    """optimizer steps done"""
    tokens: int
    """tokens seen until then"""
    scores: Mapping[str, float]
    """`loss` of the step, and `held_out` where that was measured; lower is better"""
    files: Mapping[str, str]
    """sha256 of each file, by name"""
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    """by kind of file: the whole shapes of the tensors that lie there in parts"""

    @property
    def resumable(self) -> bool:
        """Whether a run can go on from here."""
        return bool(self.paths(OPTIMIZER))

    def paths(self, kind: str) -> list[Path]:
        """The files of the weights or of the optimizer, in the order of the processes that wrote them."""
        return [self.dir / name for name in complete_set(kind, self.files)]

    def damaged(self) -> list[str]:
        """The files that are not what was written; reads them all."""
        return damaged_files(self.dir, self.files)

    def whole(self) -> bool:
        """Whether all files are what was written."""
        return not self.damaged()


def damaged_files(directory: Path, files: Mapping[str, str]) -> list[str]:
    """Those of the files, by name with their sha256, that are not what was written; reads them all."""
    return [name for name, sha in sorted(files.items()) if not _is(directory / name, sha)]


def directory_name(step: int) -> str:
    """What the directory of a step is called.

    >>> directory_name(120)
    'step-000120'
    """
    return f"step-{step:06d}"


def file_name(kind: str, rank: int, of: int) -> str:
    """What the file of one process among so many is called.

    >>> file_name("weights", 0, 1), file_name("optimizer", 1, 2)
    ('weights.safetensors', 'optimizer-00002-of-00002.safetensors')
    """
    return f"{kind}-{rank + 1:05}-of-{of:05}.safetensors" if of > 1 else f"{kind}.safetensors"


def complete_set(kind: str, names: Iterable[str]) -> list[str]:
    """Those of the names that are files of that kind, if all that belong together are there; else none.

    >>> complete_set("weights", ["weights-00002-of-00002.safetensors", "weights-00001-of-00002.safetensors"])
    ['weights-00001-of-00002.safetensors', 'weights-00002-of-00002.safetensors']
    >>> complete_set("weights", ["weights-00002-of-00002.safetensors"])
    []
    """
    own = sorted(name for name in names if name.startswith(kind))
    return own if own == [file_name(kind, rank, len(own)) for rank in range(len(own))] else []


def read_step(directory: Path) -> SavedStep | None:
    """The step in a directory, as its marker tells; None where the marker can't be read, or tells of
    something else.
    """
    marker = read_json(directory / MARKER) or {}
    try:
        files = {name: file["sha256"] for name, file in marker["files"].items()}
        shapes = {
            kind: {name: tuple(map(int, shape)) for name, shape in told.items()}
            for kind, told in marker.get("shapes", {}).items()
        }
        scores = {name: float(score) for name, score in marker.get("scores", {}).items()}
        step, tokens = int(marker["step"]), int(marker["tokens"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    # The names are used as paths, so nothing but what a save writes is believed.
    weights = complete_set(WEIGHTS, files)
    if (
        not weights
        or files.keys() != {*weights, *complete_set(OPTIMIZER, files)}
        or directory.name != directory_name(step)
    ):
        return None
    return SavedStep(dir=directory, step=step, tokens=tokens, scores=scores, files=files, shapes=shapes)


def saved_steps(out: Path) -> list[SavedStep]:
    """The steps under `out`, in order. A directory without a readable marker counts as none."""
    return [found for _, directory in step_directories(out) if (found := read_step(directory))]


def newest(
    out: Path,
    wanted: Callable[[SavedStep], bool] = lambda _: True,
    say: Callable[[str], None] = lambda _: None,
    damaged: Callable[[SavedStep], list[str]] = SavedStep.damaged,
) -> SavedStep | None:
    """The newest whole step that is `wanted`; what is `damaged` is passed over, and `say` told of it."""
    passed = []
    found = None
    for _, directory in reversed(step_directories(out)):
        checkpoint = read_step(directory)
        if checkpoint and not wanted(checkpoint):
            continue
        wrong = damaged(checkpoint) if checkpoint else [MARKER]
        if checkpoint and not wrong:
            found = checkpoint
            break
        passed.append(
            f"{directory.name} is damaged: {', '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} not what "
            "was written"
        )
    ending = (
        f"going on from step {found.step}, the one before"
        if found
        else "no step before it is intact, so training starts over"
    )
    for words in passed:
        say(f"{words}; {ending}")
    return found


def best(found: Iterable[SavedStep], by: str) -> SavedStep | None:
    """The step with the lowest score; the earliest of equals. None when none has that score."""
    scored = [checkpoint for checkpoint in found if by in checkpoint.scores]
    return min(scored, key=lambda checkpoint: (checkpoint.scores[by], checkpoint.step), default=None)


def choose(found: list[SavedStep], wish: int | str, by: str) -> SavedStep | None:
    """The step that convert.step means: a number, `last`, or `best` by the score `by`."""
    if wish == "last":
        return found[-1] if found else None
    return (
        best(found, by)
        if wish == "best"
        else next((checkpoint for checkpoint in found if checkpoint.step == wish), None)
    )


def weights_digest(out: Path, checkpoint: SavedStep) -> str:
    """The digest of what is read of a step when it is handed on: its weights, and the adapter's settings.

    It is that of the files: the same tensors, saved by another number of processes, are other files. Equal
    facts, equal digest.
    """
    settings = {name: sha256_of(out / name) for name in SETTINGS if (out / name).exists()}
    return content_digest(
        {name: checkpoint.files[name] for name in complete_set(WEIGHTS, checkpoint.files)} | settings
    )


def changed_facts(began: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is not as it was when the run began, a sentence each."""
    return [
        f"{key} is {now[key]} now and was {began[key]} before; the last bits of the result may differ from "
        "an uninterrupted run"
        for key in RESOLVED
        if key in began and key in now and began[key] != now[key]
    ]


def adopt(source: Path, out: Path, checkpoint: SavedStep) -> None:
    """Put a step of the run in `source` into `out`, which then goes on from it: as links, for steps are
    never written to again.

    With it come the adapter's settings, the journal and what `auto` meant there. Raises OSError when the step
    was pruned meanwhile.
    """
    target = out / "steps" / checkpoint.dir.name
    partial = target.with_suffix(".tmp")
    partial.mkdir(parents=True)
    for name in checkpoint.files:
        link_or_copy(checkpoint.dir / name, partial / name)
    shutil.copyfile(checkpoint.dir / MARKER, partial / MARKER)
    for name in (*SETTINGS, "metrics.jsonl", "samples.jsonl"):
        if (source / name).exists():
            shutil.copyfile(source / name, out / name)
    facts = read_json(source / FACTS) or facts_of(source)
    write_json(out / FACTS, {name: facts[name] for name in RESOLVED if name in facts})
    partial.rename(target)


def adopt_step(source: Path, out: Path, step: int) -> None:
    """The same for a step that is known by its number. Raises OSError when it is gone."""
    checkpoint = choose(saved_steps(source), step, "")
    if checkpoint is None:
        raise FileNotFoundError(f"step {step} of {source.name} is gone")
    adopt(source, out, checkpoint)


def step_directories(out: Path) -> list[tuple[int, Path]]:
    """The steps' directories with their numbers, in order."""
    found: Collection[Path] = list((out / "steps").glob("step-*"))
    return sorted(
        (int(match[1]), path) for path in found if (match := re.fullmatch(r"step-(\d+)", path.name))
    )


def _is(path: Path, sha: str) -> bool:
    try:
        return sha256_of(path) == sha
    except OSError:
        return False
