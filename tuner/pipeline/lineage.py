"""What a longer training can go on from: one that differs only in where it ends, finished or not."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.files import read_json
from tuner.pipeline.stage import Stage, View
from tuner.store.artifacts import Store


@dataclass(frozen=True, kw_only=True)
class Ancestor:
    """A directory to go on from."""

    path: Path
    step: int
    why: str
    """what differs, in words"""


def ancestor(stage: Stage, origin: Mapping[str, Any], contents: Mapping[str, str], view: View, store: Store, key: str) -> Ancestor | None:
    """The artifact or partial directory of `stage` that reaches furthest and is made from the same but for the field that says how far."""
    growth = stage.growth
    if growth is None:
        return None
    best: Ancestor | None = None
    for path, other, upstream in _others(stage, store):
        if path == store.partial(key) or _without(other, growth.field) != _without(origin, growth.field):
            continue
        if any(upstream.get(name) != content for name, content in contents.items()):
            continue  # made from other bytes under the same name
        step = growth.reach(path, view)
        if step is not None and (best is None or step > best.step):
            before, after = (json.dumps(o["inputs"].get(growth.field)) for o in (other, origin))
            best = Ancestor(path=path, step=step, why=f"@step {step} of {path.name}: {growth.field} {before} → {after}")
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
