"""What would run, and why: the pure half of the pipeline. It reads manifests and stats files, and writes nothing."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tuner.explain import why
from tuner.runs import Run
from tuner.schema import Config
from tuner.stage import Input, Stage, View, inputs
from tuner.store import Artifact, Store, canonical, content_digest, digest

State = Literal["done", "continue", "run", "wait", "gone"]

HASH_AT_ONCE = 256 << 20
"""bytes of local files that a plan hashes while the person waits; more is said to be pending"""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What the plan says of one stage."""

    stage: Stage
    state: State
    """`gone`: its artifact was removed, and nothing that is still to do needs it"""
    why: str
    origin: Mapping[str, Any] | None
    """what the artifact is made from; None while something before it is not known"""
    fingerprint: str | None
    artifact: Artifact | None
    """the published one, if it is whole and made from what is there"""
    replaces: bool = False
    """an artifact is there, but can't be used"""
    sources: Mapping[str, Path]
    known_as: str | None
    """what later stages key on: a content digest or a fingerprint"""

    @property
    def key(self) -> str | None:
        return f"{self.stage.name}-{self.fingerprint[:12]}" if self.fingerprint else None

    @property
    def to_do(self) -> bool:
        return self.state in ("run", "continue", "wait")

    def input(self) -> Input:
        """The artifact as a later stage reads it."""
        assert self.artifact is not None
        if names := self.artifact.manifest["references"]:
            files = {name: self.sources[name] for name in names}
            return Input(dir=_common(list(files.values())), files=files, facts=self.artifact.manifest["facts"])
        files = {name: self.artifact.path / name for name in self.artifact.manifest["files"]}
        return Input(dir=self.artifact.path, files=files, facts=self.artifact.manifest["facts"])


def _common(paths: list[Path]) -> Path:
    parents = {path.absolute().parent for path in paths}
    return parents.pop() if len(parents) == 1 else Path(*_shared_parts([p.parts for p in parents]))


def _shared_parts(paths: list[tuple[str, ...]]) -> list[str]:
    return [parts[0] for parts in zip(*paths, strict=False) if len(set(parts)) == 1]


def named(stages: Sequence[Stage], word: str) -> set[str]:
    """The stages that a word of `until` or `redo` means: `fetch` is both fetches."""
    return {stage.name for stage in stages if stage.name == word or stage.name.startswith(f"{word}_")}


def targets(stages: Sequence[Stage], until: str | None) -> set[str]:
    """The stages whose artifacts the person asks for."""
    return named(stages, until) if until else {stages[-1].name}


def requested(stages: Sequence[Stage], until: str | None) -> list[Stage]:
    """The stages up to and with `until`."""
    last = max(i for i, stage in enumerate(stages) if stage.name in targets(stages, until))
    return list(stages[: last + 1])


def made_from(stages: Sequence[Stage], word: str) -> set[str]:
    """The stages that `redo=word` builds again: those it names, and all that are made from them."""
    found = named(stages, word)
    for stage in stages:  # in the order of the pipeline, so one pass is enough
        if found & set(stage.upstream):
            found.add(stage.name)
    return found


def plan(
    config: Config, stages: Sequence[Stage], store: Store, run: Run, *, hashing: Callable[[str], None] | None = None, redo: str | None = None
) -> list[Step]:
    """One step for each requested stage. Large local files are hashed when there is someone to tell
    (`hashing`), and pending otherwise; `redo` shows what it would build again."""
    steps: dict[str, Step] = {}
    again = made_from(stages, redo) if redo else set()
    for stage in requested(stages, config.until):
        step = _look(stage, config, steps, store, run, hashing)
        if stage.name in again and step.state in ("done", "continue"):
            step = replace(step, state="run", why=f"redo={redo}", artifact=None, replaces=True)
        steps[stage.name] = step
    return _needed(list(steps.values()), targets(stages, config.until))


def origin_of(stage: Stage, config: Config, sources: Mapping[str, str], upstream: Mapping[str, str | None]) -> dict[str, Any]:
    """All that decides an artifact; its digest is the fingerprint. A golden test pins it for the default config."""
    versions = {stage.name: stage.version, **stage.versions(View(config, stage.name))}
    value = {"stage": stage.name, "versions": versions, "inputs": inputs(config, stage.name), "sources": sources, "upstream": upstream}
    origin: dict[str, Any] = json.loads(canonical(value))  # what is compared with a manifest has a manifest's types
    return origin


def _look(stage: Stage, config: Config, before: Mapping[str, Step], store: Store, run: Run, hashing: Callable[[str], None] | None) -> Step:
    view = View(config, stage.name)
    sources = stage.sources(view)
    upstream = {name: before[name].known_as for name in stage.upstream}
    unknown = [name for name, known in upstream.items() if known is None]
    large = [name for name, path in sources.items() if path.stat().st_size > HASH_AT_ONCE and not store.hashed(path)]
    pending = [] if hashing else large
    if large and hashing:
        size = sum(sources[name].stat().st_size for name in large)
        hashing(f"{stage.name:<12} hashing {', '.join(large)} ({size / 1e9:.1f} GB), once")
    if unknown or pending:
        reason = f"hash pending: {', '.join(pending)}" if pending else f"after {', '.join(unknown)}"
        return Step(stage=stage, state="run", why=reason, origin=None, fingerprint=None, artifact=None, sources=sources, known_as=None)
    hashes = {name: store.sha256(path) for name, path in sources.items()}
    origin = origin_of(stage, config, hashes, upstream)
    fingerprint = digest(origin)
    key = f"{stage.name}-{fingerprint[:12]}"
    found = store.find(key)
    problem = (
        fault(found, stage, fingerprint, contents(stage, before), store)
        if found
        else "damaged: no readable manifest.json"
        if (store.root / key).is_dir()
        else None
    )
    artifact = found if problem is None else None
    state: State = "done" if artifact else "run"
    reason = problem or ""
    if artifact is None:
        if holder := store.holder(key):
            state, reason = "wait", f"held by {holder}"
        elif problem is None and stage.progress and (far := stage.progress(store.partial(key))):
            state, reason = "continue", f"@{far}"
        elif problem is None:
            reason = why(origin, store, run)
    known_as: str | None = fingerprint
    if stage.by_content:
        # For referenced files the content is known without the artifact.
        known_as = content_digest(hashes) if stage.references(view) else artifact.content if artifact else None
    return Step(
        stage=stage,
        state=state,
        why=reason,
        origin=origin,
        fingerprint=fingerprint,
        artifact=artifact,
        replaces=problem is not None,
        sources=sources,
        known_as=known_as,
    )


def fault(found: Artifact, stage: Stage, fingerprint: str, contents: Mapping[str, str], store: Store) -> str | None:
    """Why a published artifact can't be used: damaged, or made from other bytes than the `contents` that are there now."""
    if found.manifest["fingerprint"] != fingerprint:
        return "another artifact has the same short name"
    if problem := store.damage(found):
        return f"damaged: {problem}"
    if changed := [name for name in stage.upstream if name in contents and found.manifest["upstream"].get(name) != contents[name]]:
        return f"made from other bytes of {', '.join(changed)}"
    return None


def contents(stage: Stage, before: Mapping[str, Step]) -> dict[str, str]:
    """The content digests of the artifacts that `stage` reads, as far as they are there."""
    return {name: artifact.content for name in stage.upstream if (artifact := before[name].artifact)}


def _needed(steps: list[Step], targets: set[str]) -> list[Step]:
    """Leave out what was removed and is not needed: only products, the targets, and what a stage that runs reads."""
    wanted: set[str] = set()
    result = []
    for step in reversed(steps):
        needed = step.stage.name in targets or step.replaces or step.stage.product or step.stage.name in wanted or step.known_as is None
        result.append(step if step.state == "done" or needed else replace(step, state="gone", why="removed, and nothing needs it"))
        if result[-1].to_do:
            wanted |= set(step.stage.upstream)
    return result[::-1]
