"""What a run made and what was made again, side by side: the same bits, or losses within a band; what
differs first, and why that may be.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from typing import Any, Literal

from tuner.pipeline.reasons import differences
from tuner.pipeline.stage import Stage
from tuner.store.artifacts import Artifact

BAND = 0.02
"""how far losses may be apart where bits were not asked: a share of the larger one, or so many nats"""
LOSSES = ("loss", "held_out")
ROW = (*LOSSES, "lr", "grad_norm", "tokens", "targets")
"""what is compared of a step's row in metrics.jsonl; the rest is how long it took, and memory"""
COUNTS = ("files", "packs", "tokens", "trained_tokens", "held_out_tokens", "parameters", "trainable", "step")
"""facts that a result is known by"""
COMPUTED = (
    "device gpu torch threads processes engine zero offload sequence_parallel deterministic attention "
    "attention_version micro_batch recompute kernels compiled captured rows compute"
).split()
"""facts that say how something was computed, which is what rounding depends on"""
CAUSES = {
    "inputs": "the run's config is not what this was made with",
    "sources": "a file is not what the run was made from, or the lock names another commit",
    "versions": "this version of tuner makes it otherwise",
    "upstream": "what it is made from changed",
}
"""part of an origin → why it may differ"""
UNEXPLAINED = (
    "nothing that is recorded changed (versions, device, CPU, threads): an op that is not deterministic, or "
    "tuner's own code"
)


State = Literal["equal", "close", "differs", "not compared", "not made"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageResult:
    """How a stage came out."""

    stage: str
    state: State
    """`close`: losses within the band, where bits were not asked"""
    what: str = ""
    """what was compared, in words"""
    differences: Sequence[str] = ()
    causes: Sequence[str] = ()
    """of the differences, as far as they can be told"""
    changed: Sequence[str] = ()
    """versions and facts that are not as recorded, whatever came of it"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reproduction:
    """A run, and what was made again."""

    run: str
    bits: bool
    """whether bits were compared; else losses within the band"""
    stages: Sequence[StageResult]
    root: str | None = None
    """the clean root, where it was kept"""

    @property
    def first(self) -> StageResult | None:
        """The first stage that differs."""
        return next((result for result in self.stages if result.state == "differs"), None)

    def to_json(self) -> dict[str, Any]:
        first = self.first
        told = {"equal": first is None, "band": None if self.bits else BAND}
        return {**asdict(self), **told, "first": asdict(first) if first else None}


def not_made(stage: str) -> StageResult:
    return StageResult(stage=stage, state="not made")


def damaged_in_store(stage: str, problem: str) -> StageResult:
    """A stage whose artifact is not what the run wrote."""
    return StageResult(
        stage=stage, state="differs", differences=[problem], causes=["the store was changed after the run"]
    )


def compare_origins(
    stage: str, old: Mapping[str, Any], new: Mapping[str, Any], free: Iterable[str] = ()
) -> StageResult | None:
    """What a stage was made from beside what it would be made from now; None where that is the same. Inputs
    that are `free` may differ.
    """

    def part(origin: Mapping[str, Any], name: str) -> dict[str, Any]:
        return {name: {key: value for key, value in origin[name].items() if key not in free}}

    found = {name: differences(part(old, name), part(new, name)) for name in CAUSES}
    told = [words for several in found.values() for words in several]
    causes = [CAUSES[name] for name, several in found.items() if several]
    return StageResult(stage=stage, state="differs", differences=told, causes=causes) if told else None


def compare_artifacts(stage: Stage, old: Artifact, new: Artifact, *, bits: bool) -> StageResult:
    """An artifact and the one that was made again: by their bytes, or by their losses."""
    found = [*_rows(old, new, bits), *_facts(old, new, bits)] + (_files(stage, old, new) if bits else [])
    changed = _changed(old.manifest, new.manifest)
    losses = any(name in new.manifest["facts"] for name in LOSSES)
    alike: State = "equal" if bits else "close" if losses else "not compared"
    return StageResult(
        stage=stage.name,
        state="differs" if found else alike,
        what=_what(new),
        differences=found,
        causes=(changed or [UNEXPLAINED]) if found else (),
        changed=changed,
    )


def _rows(old: Artifact, new: Artifact, bits: bool) -> list[str]:
    """In what the first step differs that does, of the rows of metrics; and how many steps there are."""
    before, after = _read_rows(old), _read_rows(new)
    names = ROW if bits else LOSSES
    for one, other in zip(before, after, strict=False):
        # a step at which one of the runs was stopped has a loss that the other did not measure
        there = [name for name in names if name in one and name in other]
        if differing := [name for name in there if not _alike(one[name], other[name], bits)]:
            return [f"{name} of step {one['step']} {_pair(one[name], other[name])}" for name in differing]
    return [f"steps {len(before)} → {len(after)}"] if len(before) != len(after) else []


def _read_rows(trained: Artifact) -> list[dict[str, Any]]:
    file = trained.path / "metrics.jsonl"
    return (
        [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    )


def _facts(old: Artifact, new: Artifact, bits: bool) -> list[str]:
    """The numbers that a result is known by, as far as they are to be alike."""
    before, after = old.manifest["facts"], new.manifest["facts"]
    losses = () if (old.path / "metrics.jsonl").exists() else ("loss", "base_loss")  # the rows have told
    return [
        f"{name.replace('_', ' ')} {_pair(before[name], after[name])}"
        for name in (*losses, *(COUNTS if bits else ()))
        if name in before and name in after and not _alike(before[name], after[name], bits)
    ]


def _files(stage: Stage, old: Artifact, new: Artifact) -> list[str]:
    """The files that are not the same. Of saved steps those that both have: how many stay is no result."""
    before, after = _content(stage, old), _content(stage, new)
    both = before.keys() & after.keys()
    alone = sorted(name for name in before.keys() ^ after.keys() if not name.startswith("steps/"))
    lost = [f"{name} is {'gone' if name in before else 'new'}" for name in alone]
    if any(name.startswith("steps/") for name in before) and not any(
        name.startswith("steps/") for name in both
    ):
        lost.append("no saved step is in both")
    return [f"other bytes in {name}" for name in sorted(both) if before[name] != after[name]] + lost


def _content(stage: Stage, made: Artifact) -> dict[str, str]:
    """Name → sha256 of the files that are a result: those of the content's digest, and the weights of saved
    steps.
    """
    files = {**made.manifest["files"], **made.manifest["references"]}
    return {
        name: entry["sha256"]
        for name, entry in files.items()
        if fnmatch(name, "steps/*/weights*.safetensors")
        or not any(fnmatch(name, pattern) for pattern in stage.journal)
    }


def _alike(one: Any, other: Any, bits: bool) -> bool:
    return bool(one == other) if bits else math.isclose(one, other, rel_tol=BAND, abs_tol=BAND)


def _pair(one: Any, other: Any) -> str:
    """Two values, with as many digits as tell them apart."""
    short = [f"{value:.6g}" if isinstance(value, float) else str(value) for value in (one, other)]
    return " → ".join(short if short[0] != short[1] else map(repr, (one, other)))


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Versions and facts of computing that two manifests tell otherwise; older ones know no CPU."""
    told = []
    for before, after, names in (
        (old.get("libraries", {}), new.get("libraries", {}), None),
        (old["facts"], new["facts"], COMPUTED),
        (old, new, ("cpu",) if "cpu" in old else ()),
    ):
        for name in sorted({*before, *after}) if names is None else names:
            if (one := before.get(name)) != (other := after.get(name)):
                told.append(f"{name} {_pair(one, other)}")
    return list(dict.fromkeys(told))


def _what(made: Artifact) -> str:
    """What was compared."""
    facts, files = made.manifest["facts"], {**made.manifest["files"], **made.manifest["references"]}
    if "steps" in facts:
        return f"{facts['steps']:,} steps, loss {facts['loss']:.4f}"
    if "packs" in facts:
        return f"{facts['tokens']:,} tokens in {facts['packs']:,} packs"
    if facts.get("loss") is not None:
        return f"held-out loss {facts['loss']:.4f}"
    return f"{len(files)} file{'s' if len(files) != 1 else ''}"
