"""The steps that a training has saved: which there are, which is best, what may go. Reads JSON and stats files; imports no torch.

steps/step-000120/weights.safetensors    what trains, fp32
                  optimizer.safetensors  its moments; only where a training may go on from
                  state.json             written last: the step, its scores, and the hashes of the other files
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tuner.disk import link_or_copy, read_json, sha256_of, write_json
from tuner.store import content_digest

MARKER = "state.json"
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
ADAPTER = "adapter_config.json"

SCORES = ("loss", "held_out")
"""what a saved step is known by: the training loss, and the loss on held-out packs"""

RESOLVED = ("device", "threads", "micro_batch", "torch")
"""the facts that a training which goes on keeps, or says what differs"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
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

    @property
    def resumable(self) -> bool:
        """Whether a training can go on from here."""
        return OPTIMIZER in self.files

    def whole(self) -> bool:
        """Whether its files are what was written; reads them."""
        try:
            return all(sha256_of(self.dir / name) == sha for name, sha in self.files.items())
        except OSError:
            return False


def kept(out: Path) -> list[Checkpoint]:
    """The steps under `out`, in order. A directory without a readable marker counts as none."""
    found = []
    for directory in (out / "steps").glob("step-*[0-9]"):
        marker = read_json(directory / MARKER) or {}
        try:
            files = {name: file["sha256"] for name, file in marker["files"].items()}
            found.append(Checkpoint(dir=directory, step=marker["step"], tokens=marker["tokens"], scores=marker.get("scores", {}), files=files))
        except (KeyError, TypeError, AttributeError):
            continue
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def newest(out: Path, wanted: Callable[[Checkpoint], bool] = lambda _: True) -> Checkpoint | None:
    """The newest whole step that is `wanted`."""
    return next((checkpoint for checkpoint in reversed(kept(out)) if wanted(checkpoint) and checkpoint.whole()), None)


def best(found: Iterable[Checkpoint], by: str) -> Checkpoint | None:
    """The step with the lowest score; the earliest of equals. None when none has that score."""
    scored = [checkpoint for checkpoint in found if by in checkpoint.scores]
    return min(scored, key=lambda checkpoint: (checkpoint.scores[by], checkpoint.step), default=None)


def choose(found: list[Checkpoint], wish: int | str, by: str) -> Checkpoint | None:
    """The step that convert.step means: a number, `last`, or `best` by the score `by`."""
    if wish == "last":
        return found[-1] if found else None
    return best(found, by) if wish == "best" else next((checkpoint for checkpoint in found if checkpoint.step == wish), None)


def content(out: Path, checkpoint: Checkpoint) -> str:
    """The digest of what is read of a step when it is handed on: its weights, and the adapter's settings."""
    settings = out / ADAPTER
    return content_digest({WEIGHTS: checkpoint.files[WEIGHTS]} | ({ADAPTER: sha256_of(settings)} if settings.exists() else {}))


def prune(out: Path, *, keep: int, by: str, pinned: object, resumable: int) -> None:
    """Remove all but the newest `keep` steps, the best one and that of the number `pinned`; only the newest `resumable` keep their optimizer.

    What a killed process left half written goes too.
    """
    found = kept(out)
    good = best(found, by)
    for age, checkpoint in enumerate(reversed(found)):
        if age >= keep and checkpoint != good and checkpoint.step != pinned:
            shutil.rmtree(checkpoint.dir)
        elif age >= resumable and checkpoint.resumable:
            strip(checkpoint)
    for directory in (out / "steps").glob("*.tmp"):
        shutil.rmtree(directory)


def strip(checkpoint: Checkpoint) -> None:
    """Give back the disk of the optimizer's state. The marker changes first: killed in between, the step is whole without it."""
    marker = json.loads((checkpoint.dir / MARKER).read_text(encoding="utf-8"))
    del marker["files"][OPTIMIZER]
    write_json(checkpoint.dir / MARKER, marker, indent=2)
    (checkpoint.dir / OPTIMIZER).unlink(missing_ok=True)


def adopt(source: Path, out: Path, checkpoint: Checkpoint) -> None:
    """Put a step of the training in `source` into `out`, which then goes on from it: as links, for steps are never written to again.

    With it come the adapter's settings, the journal and what `auto` meant there. Raises OSError when the step was pruned meanwhile.
    """
    target = out / "steps" / checkpoint.dir.name
    partial = target.with_suffix(".tmp")
    partial.mkdir(parents=True)
    for name in checkpoint.files:
        link_or_copy(checkpoint.dir / name, partial / name)
    shutil.copyfile(checkpoint.dir / MARKER, partial / MARKER)
    for name in (ADAPTER, "metrics.jsonl"):
        if (source / name).exists():
            shutil.copyfile(source / name, out / name)
    facts = read_json(source / "facts.json") or (read_json(source / "manifest.json") or {}).get("facts", {})
    write_json(out / "facts.json", {name: facts[name] for name in RESOLVED if name in facts})
    partial.rename(target)
