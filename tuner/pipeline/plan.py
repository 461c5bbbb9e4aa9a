"""What would run, and why: the pure half of the pipeline. It reads manifests and stats files, and writes
nothing.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tuner.config.schema import Config
from tuner.config.view import View, identity_fields
from tuner.errors import TunerError
from tuner.files import read_json
from tuner.hub.lockfile import commits, made
from tuner.pipeline.reasons import Predecessor, find_predecessor, why_rebuild
from tuner.pipeline.run import RunDirectory
from tuner.pipeline.stage import ChosenStep, Input, Stage
from tuner.store.artifacts import Artifact, Store, canonical, content_digest, digest

State = Literal["done", "continue", "run", "wait", "part", "skip"]
"""`part`: not finished, and a step of it is all that is needed; `skip`: not there, and not needed"""

HASH_AT_ONCE = 256 << 20
"""bytes of local files that a plan hashes while the person waits; more is said to be pending"""


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """What the plan says of one stage."""

    stage: Stage
    config: Config
    """with what had to be chosen for this stage"""
    state: State
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
    contents: Mapping[str, str] = field(default_factory=dict)
    """the content digests of what it reads, as far as that is there"""
    partial: Path | None = None
    """for the state `part`: where the unfinished files lie"""
    pick: ChosenStep | None = None
    """the part of an upstream artifact that it reads"""
    predecessor: Predecessor | None = None
    """what it goes on from, when that is another artifact than its own"""
    unresolved: bool = False
    """a reference to a hub has to be looked up first"""
    told: str = ""
    """what its files have decided that the config left open, in words"""

    @property
    def key(self) -> str | None:
        return f"{self.stage.name}-{self.fingerprint[:12]}" if self.fingerprint else None

    @property
    def to_do(self) -> bool:
        return self.state in ("run", "continue", "wait")

    def input(self) -> Input:
        """The artifact as a later stage reads it."""
        assert self.artifact is not None
        referenced = {name: self.sources[name] for name in self.artifact.manifest["references"]}
        own = {name: self.artifact.path / name for name in self.artifact.manifest["files"]}
        directory = self.artifact.path if own or not referenced else _common(list(referenced.values()))
        return Input(dir=directory, files=referenced | own, facts=self.artifact.manifest["facts"])


def _common(paths: list[Path]) -> Path:
    parents = {path.absolute().parent for path in paths}
    return parents.pop() if len(parents) == 1 else Path(*_shared_parts([p.parts for p in parents]))


def _shared_parts(paths: list[tuple[str, ...]]) -> list[str]:
    return [parts[0] for parts in zip(*paths, strict=False) if len(set(parts)) == 1]


def stages_named(stages: Sequence[Stage], word: str) -> set[str]:
    """The stages that a word of `until` or `redo` means: `fetch` is both fetches."""
    return {stage.name for stage in stages if stage.name == word or stage.name.startswith(f"{word}_")}


def target_stages(stages: Sequence[Stage], until: str | None) -> set[str]:
    """The stages whose artifacts the person asks for."""
    return stages_named(stages, until) if until else {stages[-1].name}


def stages_until(stages: Sequence[Stage], until: str | None) -> list[Stage]:
    """The stages up to and with `until`."""
    last = max(i for i, stage in enumerate(stages) if stage.name in target_stages(stages, until))
    return list(stages[: last + 1])


def stages_to_redo(stages: Sequence[Stage], word: str) -> set[str]:
    """The stages that `redo=word` builds again: those it names, and all that are made from them."""
    found = stages_named(stages, word)
    for stage in stages:  # in the order of the pipeline, so one pass is enough
        if found & set(stage.upstream):
            found.add(stage.name)
    return found


def plan(
    config: Config,
    stages: Sequence[Stage],
    store: Store,
    run: RunDirectory,
    *,
    hashing: Callable[[str], None] | None = None,
    redo: str | None = None,
    pinned: bool = False,
) -> list[PlannedStage]:
    """One step for each requested stage. Large local files are hashed when there is someone to tell
    (`hashing`), and pending otherwise; `redo` shows what it would build again.

    A `pinned` plan takes what was fetched, tokenized and trained from the run's links, whatever became of the
    files and the recipe since, and never holds work on those stages.
    """
    steps: dict[str, PlannedStage] = {}
    if pinned:
        config = settle_from_run(config, stages, store, run)
    again = stages_to_redo(stages, redo) if redo else set()
    fixed = stages_up_to_train(stages) if pinned else set()
    for stage in stages_until(stages, config.until):
        step = (
            _plan_linked(stage, config, store, run)
            if stage.name in fixed
            else _plan_stage(stage, config, steps, store, run, hashing, pinned)
        )
        if config.model.chat.auto and any(
            stage.name in later.upstream for later in stages_until(stages, config.until)
        ):
            settled = stage.settle(config, step.input().dir if step.artifact else None)
            config, step = settled.config, replace(step, told=settled.told)
        if stage.name in again and step.state in ("done", "continue"):
            step = replace(step, state="run", why=f"redo={redo}", artifact=None, replaces=True)
        steps[stage.name] = step
    return _skip_unneeded(list(steps.values()), target_stages(stages, config.until))


def settle_from_run(config: Config, stages: Sequence[Stage], store: Store, run: RunDirectory) -> Config:
    """The config with what it left open as the artifacts of a run have it, whatever would be found now."""
    for stage in stages:
        if found := store.find(run.key(stage.name) or "-"):
            config = stage.recall(config, found.manifest["origin"])
    return config


def stages_up_to_train(stages: Sequence[Stage]) -> set[str]:
    """The stages up to and with the training: what a verb on a run takes as it is."""
    last = next(i for i, stage in enumerate(stages) if stage.name == "train")
    return {stage.name for stage in stages[: last + 1]}


def _plan_linked(stage: Stage, config: Config, store: Store, run: RunDirectory) -> PlannedStage:
    """A stage as the run left it."""
    key = run.key(stage.name) or "-"
    sources: Mapping[str, Path] = {}
    with suppress(TunerError):  # the files may be gone; only who reads them will miss them
        sources = stage.sources(View(config, stage.name))
    step = PlannedStage(
        stage=stage,
        config=config,
        state="skip",
        why="not there",
        origin=None,
        fingerprint=None,
        artifact=None,
        sources=sources,
        known_as=None,
    )
    if found := store.find(key):
        problem = store.damage(found)
        known_as = found.content if stage.by_content else found.manifest["fingerprint"]
        step = replace(
            step,
            origin=found.manifest["origin"],
            fingerprint=found.manifest["fingerprint"],
            known_as=known_as,
        )
        return (
            replace(step, state="run", why=f"damaged: {problem}")
            if problem
            else replace(step, state="done", why="", artifact=found)
        )
    if note := read_json(store.partial(key).with_suffix(".json")):
        fingerprint, far = note["fingerprint"], (stage.progress or (lambda _: None))(store.partial(key))
        return replace(
            step,
            why=f"@{far or 'no step yet'}",
            fingerprint=fingerprint,
            known_as=fingerprint,
            state="part",
            partial=store.partial(key),
        )
    return step


def origin_of(
    stage: Stage, config: Config, sources: Mapping[str, str], upstream: Mapping[str, str | None]
) -> dict[str, Any]:
    """All that decides an artifact; its digest is the fingerprint. A golden test pins it for the default
    config.
    """
    versions = {stage.name: stage.version, **stage.versions(View(config, stage.name))}
    value = {
        "stage": stage.name,
        "versions": versions,
        "inputs": identity_fields(config, stage.name),
        "sources": sources,
        "upstream": upstream,
    }
    # what is compared with a manifest has a manifest's types
    origin: dict[str, Any] = json.loads(canonical(value))
    return origin


def _plan_stage(
    stage: Stage,
    config: Config,
    before: dict[str, PlannedStage],
    store: Store,
    run: RunDirectory,
    hashing: Callable[[str], None] | None,
    pinned: bool,
) -> PlannedStage:
    config, pick, open_choice = _choose_step(stage, config, before, store, pinned)
    view = View(config, stage.name)
    sources = stage.sources(view)
    upstream = {name: before[name].known_as for name in stage.upstream}
    unknown = [name for name, known in upstream.items() if known is None or name == open_choice]
    large = [
        name
        for name, path in sources.items()
        if path.stat().st_size > HASH_AT_ONCE and not store.hashed(path)
    ]
    pending = [] if hashing else large
    if large and hashing:
        size = sum(sources[name].stat().st_size for name in large)
        hashing(f"{stage.name:<12} hashing {', '.join(large)} ({size / 1e9:.1f} GB), once")
    step = PlannedStage(
        stage=stage,
        config=config,
        state="run",
        why="",
        origin=None,
        fingerprint=None,
        artifact=None,
        sources=sources,
        known_as=None,
    )
    pins = stage.pins(view)
    if floating := [name for name, pin in pins.items() if pin is None]:
        return replace(
            step, why=f"{', '.join(name.partition(' ')[2] for name in floating)} unresolved", unresolved=True
        )
    if unknown or pending:
        return replace(
            step, why=f"hash pending: {', '.join(pending)}" if pending else f"after {', '.join(unknown)}"
        )
    hashes = {name: store.sha256(path) for name, path in sources.items()}
    origin = origin_of(stage, config, hashes | commits(pins), upstream)
    fingerprint = digest(origin)
    key = f"{stage.name}-{fingerprint[:12]}"
    contents = {name: artifact.content for name in stage.upstream if (artifact := before[name].artifact)}
    if pick and stage.choice:
        contents[stage.choice.upstream] = pick.content
    found = store.find(key)
    problem = (
        why_unusable(found, stage, fingerprint, contents, store)
        if found
        else "damaged: no readable manifest.json"
        if (store.root / key).is_dir()
        else None
    )
    artifact = found if problem is None else None
    state: State = "done" if artifact else "run"
    reason, longer = problem or "", None
    if artifact is None:
        if holder := store.holder(key):
            state, reason = "wait", f"held by {holder}"
        elif problem is None and stage.progress and (far := stage.progress(store.partial(key))):
            state, reason = "continue", f"@{far}"
        elif problem is None and (longer := find_predecessor(stage, origin, contents, view, store, key)):
            state, reason = "continue", longer.why
        elif problem is None:
            reason = why_rebuild(origin, store, run)
    known_as: str | None = fingerprint
    if stage.by_content:
        # For referenced files the content is known without the artifact, and for a hub's files once anybody
        # has made it.
        known = stage.references(view) and not stage.fetches(view)
        known_as = (
            content_digest(hashes) if known else artifact.content if artifact else made(pins, fingerprint)
        )
    return replace(
        step,
        state=state,
        why=reason,
        origin=origin,
        fingerprint=fingerprint,
        artifact=artifact,
        replaces=problem is not None,
        known_as=known_as,
        contents=contents,
        pick=pick,
        predecessor=longer,
    )


def _choose_step(
    stage: Stage, config: Config, before: dict[str, PlannedStage], store: Store, pinned: bool
) -> tuple[Config, ChosenStep | None, str | None]:
    """The config with the choice made that `stage` leaves open, what it picks, and the name of the stage that
    has to run before it can.

    A step that was asked for by number needs no more of its training than that step; `last` and `best` wait
    for its end, unless the plan is pinned and there will be none.
    """
    if stage.choice is None:
        return config, None, None
    name = stage.choice.upstream
    source, step = before[name], config.convert.step
    directory = source.artifact.path if source.artifact else store.partial(source.key) if source.key else None
    if directory is not None and directory.is_dir() and (source.artifact or pinned or isinstance(step, int)):
        pick = stage.choice.pick(directory, config, source.artifact is not None)
        if pick is not None:
            if source.artifact is None:
                before[name] = replace(
                    source, state="part", why=f"{source.why}, step {pick.step} is used", partial=directory
                )
            return pick.config, pick, None
    open_choice = step == "best" or (pinned and source.artifact is None and step == "last")
    return config, None, name if open_choice else None


def why_unusable(
    found: Artifact, stage: Stage, fingerprint: str, contents: Mapping[str, str], store: Store
) -> str | None:
    """Why a published artifact can't be used: damaged, or made from other bytes than the `contents` that
    are there now.
    """
    if found.manifest["fingerprint"] != fingerprint:
        return "another artifact has the same short name"
    if problem := store.damage(found):
        return f"damaged: {problem}"
    if changed := [
        name
        for name in stage.upstream
        if name in contents and found.manifest["upstream"].get(name) != contents[name]
    ]:
        return f"made from other bytes of {', '.join(changed)}"
    return None


def _skip_unneeded(steps: list[PlannedStage], targets: set[str]) -> list[PlannedStage]:
    """Leave out what is not there and not needed: only products, the targets, and what a stage that runs
    reads.
    """
    wanted: set[str] = set()
    result = []
    for step in reversed(steps):
        name, view = step.stage.name, View(step.config, step.stage.name)
        needed = (
            name in targets
            or step.replaces
            or step.stage.product(view)
            or name in wanted
            or (step.known_as is None and step.to_do)
        )
        left = replace(step, state="skip", why="not there, and nothing needs it")
        result.append(step if needed or not step.to_do else left)
        if result[-1].to_do:
            wanted |= set(step.stage.upstream)
    return result[::-1]
