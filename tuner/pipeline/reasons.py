"""Why a stage has to run: what differs between what it would be made from and what an older artifact was made
from.

And what a longer training can go on from: one that differs only in where it ends, finished or not.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.config.fields import UNSET
from tuner.config.schema import Config
from tuner.config.view import View, leaves
from tuner.data.sources import plain_names
from tuner.files import read_json
from tuner.pipeline.find_run import similar_runs
from tuner.pipeline.run import RunDirectory
from tuner.pipeline.stage import Stage
from tuner.store.artifacts import Store

MISSING = object()
HUBS = ("hub ", "modelscope ")
"""how a source is called that is a commit of a repository (tuner.hub.lockfile.pinned_commits)"""
NAMED = 6
"""reasons that are told; a different model differs in every file"""


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The reasons why `new` is not `old`, both the origin of an artifact: versions, inputs, sources,
    upstream.

    >>> differences({"inputs": {"algo.optim.lr": 2e-4}}, {"inputs": {"algo.optim.lr": 1e-4}})
    ['algo.optim.lr 0.0002 → 0.0001']
    """
    reasons = [
        f"{path} {_shown(_meant(path, a))} → {_shown(_meant(path, b))}"
        for path, a, b in _changed(old, new, "inputs")
    ]
    before, after = (_plain_sources(origin) for origin in (old, new))
    if before == after and old.get("sources") != new.get("sources"):
        reasons.append("the order of the files changed")
    for name, a, b in _changed({"sources": before}, {"sources": after}, "sources"):
        if a is MISSING or b is MISSING:
            reasons.append(f"{name} is {'new' if a is MISSING else 'gone'}")
        else:
            reasons.append(
                f"{name} {a[:12]} → {b[:12]}" if name.startswith(HUBS) else f"the content of {name} changed"
            )
    reasons += [f"{name} version {_shown(a)} → {_shown(b)}" for name, a, b in _changed(old, new, "versions")]
    reasons += [f"{stage} changes" for stage, _, _ in _changed(old, new, "upstream")]
    return reasons


def _plain_sources(origin: Mapping[str, Any]) -> dict[str, str]:
    """Content by the names that a person knows."""
    sources: Mapping[str, str] = origin.get("sources", {})
    return {shown: sources[name] for name, shown in plain_names(sorted(sources)).items()}


def _changed(old: Mapping[str, Any], new: Mapping[str, Any], part: str) -> list[tuple[str, Any, Any]]:
    before, after = old.get(part, {}), new.get(part, {})
    return [
        (name, before.get(name, MISSING), after.get(name, MISSING))
        for name in sorted({*before, *after})
        if before.get(name, MISSING) != after.get(name, MISSING)
    ]


def _meant(path: str, value: Any) -> Any:
    """What a field that is not in the hash stands for: the value at which it is left out."""
    left_out = (
        {name: declared.left_out for name, declared, _ in leaves(Config())}.get(path, UNSET)
        if value is MISSING
        else UNSET
    )
    return value if left_out is UNSET else left_out


def _shown(value: Any) -> str:
    if value is MISSING:
        return "(none)"
    text = f"{value:g}" if isinstance(value, float) else "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def why_rebuild(origin: Mapping[str, Any], store: Store, run: RunDirectory, config: Config) -> str:
    """In what `origin` differs from what this run last linked, else from what is nearest to it among the
    runs of the same name or recipe; what others made for another purpose explains nothing.
    """
    stage = origin["stage"]
    if (last := _linked_origin(store, run, stage)) and (reasons := differences(last, origin)):
        return _listed(reasons)
    for runs in similar_runs(config, run):
        others = [
            (len(reasons), age, other, reasons)
            for age, other in enumerate(runs)
            if (theirs := _linked_origin(store, other, stage)) and (reasons := differences(theirs, origin))
        ]
        if others:
            _, _, other, reasons = min(others, key=lambda found: found[:2])
            return f"{_listed(reasons)} (against run {other.digest})"
    return "never made"


def _linked_origin(store: Store, run: RunDirectory, stage: str) -> Mapping[str, Any] | None:
    """What the artifact is made from that a run links for a stage, finished or not."""
    key = run.key(stage) or "-"
    if artifact := store.find(key):
        origin: Mapping[str, Any] = artifact.manifest["origin"]
        return origin
    return (read_json(store.partial(key).with_suffix(".json")) or {}).get("origin")


def _listed(reasons: list[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(reasons) - NAMED} more" if len(reasons) > NAMED else ""
    return ", ".join(reasons[:NAMED]) + more


@dataclass(frozen=True, kw_only=True)
class Predecessor:
    """A directory to go on from."""

    path: Path
    step: int
    why: str
    """what differs, in words"""


def find_predecessor(
    stage: Stage, origin: Mapping[str, Any], contents: Mapping[str, str], view: View, store: Store, key: str
) -> Predecessor | None:
    """The artifact or partial directory of `stage` that reaches furthest and is made from the same but for
    the field that says how far.
    """
    extension = stage.extension
    if extension is None:
        return None
    field, best = extension.field, None
    for path, other, upstream in _others(stage, store):
        if path == store.partial(key) or _without(other, field) != _without(origin, field):
            continue
        if any(upstream.get(name) != content for name, content in contents.items()):
            continue  # made from other bytes under the same name
        step = extension.reach(path, view)
        if step is not None and (best is None or step > best.step):
            before, after = (json.dumps(o["inputs"].get(field)) for o in (other, origin))
            best = Predecessor(
                path=path, step=step, why=f"@step {step} of {path.name}: {field} {before} → {after}"
            )
    return best


def _others(stage: Stage, store: Store) -> Iterator[tuple[Path, Mapping[str, Any], Mapping[str, str]]]:
    for artifact in store.all(stage.name):
        yield artifact.path, artifact.manifest["origin"], artifact.manifest["upstream"]
    for file in sorted((store.root / ".partial").glob(f"{stage.name}-*.json")):
        note = read_json(file) or {}
        if "origin" in note:
            yield file.with_suffix(""), note["origin"], note["upstream"]


def _without(origin: Mapping[str, Any], field: str) -> dict[str, Any]:
    return {**origin, "inputs": {path: value for path, value in origin["inputs"].items() if path != field}}
