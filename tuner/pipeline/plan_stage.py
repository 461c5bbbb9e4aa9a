"""What the plan finds out about one stage: from its sources, what is planned before it, and the store."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuner.config.schema import Config
from tuner.config.view import View, identity_fields
from tuner.data.sources import plain_names
from tuner.errors import ConfigError, TunerError
from tuner.files import read_json
from tuner.hub.lockfile import known_content, missing_message, pinned_commits, refuse_other_files
from tuner.pipeline.planned_stage import PlannedStage, State
from tuner.pipeline.reasons import find_predecessor, why_rebuild
from tuner.pipeline.run import RunDirectory
from tuner.pipeline.stage import ChosenStep, Stage
from tuner.pipeline.whole import lacking
from tuner.report.byte_size import readable_bytes
from tuner.store.artifacts import Artifact, Store
from tuner.store.digests import canonical_json, content_digest, json_digest

HASH_AT_ONCE = 256 << 20
"""bytes of local files that a plan hashes while the person waits; more is said to be pending"""


def plan_stage(
    stage: Stage,
    config: Config,
    before: dict[str, PlannedStage],
    store: Store,
    run: RunDirectory,
    hashing: Callable[[str], None] | None,
    pinned: bool,
) -> PlannedStage:
    """What is known of a stage, given what is planned `before` it: whether its artifact is there and can be
    used, and why not. Large local files are hashed when there is someone to tell (`hashing`), and pending
    otherwise.
    """
    config, pick, open_choice = _choose_step(stage, config, before, store, pinned)
    view = View(config, stage.name)
    sources = stage.sources(view)
    upstream = {name: before[name].known_as for name in stage.upstream}
    unknown = [name for name, known in upstream.items() if known is None or name == open_choice]
    large = _unhashed(sources, store)
    pending = [] if hashing else large
    if large and hashing:
        size = sum(sources[name].stat().st_size for name in large)
        names = ", ".join(plain_names(large).values())
        hashing(f"{stage.name:<12} hashing {names} ({readable_bytes(size)}), once")
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
    pins = stage.remote.pins(view)
    if config.locked and None in pins.values():
        raise ConfigError(missing_message(config.lock, next(name for name in pins if pins[name] is None)))
    if floating := [name for name, pin in pins.items() if pin is None]:
        return replace(
            step, why=f"{', '.join(name.partition(' ')[2] for name in floating)} unresolved", unresolved=True
        )
    if pending:
        return replace(step, why=f"hash pending: {', '.join(plain_names(pending).values())}", pending=True)
    if unknown:
        return replace(step, why=f"after {', '.join(unknown)}")
    hashes = {name: store.hashes.sha256(path) for name, path in sources.items()}
    if config.locked:
        refuse_other_files(config.lock, own_digests(stage, view, sources, hashes))
    origin = origin_of(stage, config, hashes | pinned_commits(pins), upstream)
    fingerprint = json_digest(origin)
    key = f"{stage.name}-{fingerprint[:12]}"
    contents = {name: artifact.content for name in stage.upstream if (artifact := before[name].artifact)}
    if pick and stage.choice:
        contents[stage.choice.upstream] = pick.content
    found = store.find(key)
    problem = (
        why_unusable(found, stage, config, fingerprint, contents, store)
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
            reason = why_rebuild(origin, store, run, config)
    known_as: str | None = fingerprint
    if stage.by_content:
        # For referenced files the content is known without the artifact, and for a hub's files once anybody
        # has made it.
        known = stage.references(view) and not stage.remote.fetches(view)
        known_as = (
            content_digest(hashes)
            if known
            else artifact.content
            if artifact
            else known_content(pins, fingerprint)
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


def own_digests(
    stage: Stage, view: View, sources: Mapping[str, Path], hashes: Mapping[str, str]
) -> dict[Path, str]:
    """What the sources hold that the lock has to say of: path → sha256."""
    own = set(stage.own_files(view))
    return {path: hashes[name] for name, path in sources.items() if path in own}


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
    found: Artifact, stage: Stage, config: Config, fingerprint: str, contents: Mapping[str, str], store: Store
) -> str | None:
    """Why a published artifact can't be used: damaged, or made from other bytes than the `contents` that
    are there now.
    """
    if found.manifest["fingerprint"] != fingerprint:
        return "another artifact has the same short name"
    problem = store.damage(found) or lacking(
        stage, View(config, stage.name), found.path, found.manifest["facts"]
    )
    if problem:
        return f"damaged: {problem}"
    if changed := [
        name
        for name in stage.upstream
        if name in contents and found.manifest["upstream"].get(name) != contents[name]
    ]:
        return f"made from other bytes of {', '.join(changed)}"
    return None


def still_done(planned: PlannedStage, store: Store) -> bool:
    """Whether a stage that was done is as it was: the same sources with the same bytes, and the same whole
    artifact.
    """
    stage, view = planned.stage, View(planned.config, planned.stage.name)
    if planned.artifact is None or planned.origin is None or stage.sources(view) != planned.sources:
        return False
    if _unhashed(planned.sources, store):
        return False
    hashes = {name: store.hashes.sha256(path) for name, path in planned.sources.items()}
    if hashes | pinned_commits(stage.remote.pins(view)) != planned.origin["sources"]:
        return False
    found = store.find(planned.artifact.key)
    return found == planned.artifact and store.damage(planned.artifact) is None


def _unhashed(sources: Mapping[str, Path], store: Store) -> list[str]:
    """The large files whose hash is not remembered."""
    return [
        name
        for name, path in sources.items()
        if path.stat().st_size > HASH_AT_ONCE and not store.hashes.is_known(path)
    ]


def plan_linked(stage: Stage, config: Config, store: Store, run: RunDirectory) -> PlannedStage:
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
    origin: dict[str, Any] = json.loads(canonical_json(value))
    return origin
