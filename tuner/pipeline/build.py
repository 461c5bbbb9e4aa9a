"""Making one stage's artifact: lock, look again, run in a partial directory, publish."""

import os
import platform
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tuner import __version__
from tuner.config.view import View
from tuner.hardware.cpu import model_name
from tuner.hardware.libraries import installed_version
from tuner.hub import lockfile
from tuner.hub.lockfile import known_content
from tuner.launch.child import launch
from tuner.launch.members import place_ranks
from tuner.launch.signals import refuse_after_stop
from tuner.pipeline.gpus import gpus_for
from tuner.pipeline.plan_stage import why_unusable
from tuner.pipeline.planned_stage import PlannedStage
from tuner.pipeline.run import RunDirectory
from tuner.pipeline.stage import Context, Input
from tuner.pipeline.whole import held_directory, refuse_another, refuse_incomplete
from tuner.store.artifacts import Artifact, Store

LIBRARIES = tuple("torch transformers tokenizers peft bitsandbytes safetensors pyarrow numpy".split())


def build_stage(
    planned: PlannedStage,
    others: dict[str, PlannedStage],
    store: Store,
    run: RunDirectory,
    say: Callable[[str], None],
) -> None:
    """Make the artifact of a stage, from those of `others`, under its lock; nothing where somebody else made
    it meanwhile, or where what it reads is not as it was planned: then a new plan says what is to do. Raises
    TunerError and OSError.
    """
    stage, key, config = planned.stage, planned.key, planned.config
    assert key is not None
    assert planned.origin is not None
    say(f"{stage.name:<12} {planned.state}  {planned.why}")
    read = [others[name].key or "" for name in stage.upstream if others[name].artifact]

    def made() -> bool:
        """Whether somebody else has built it meanwhile; the next plan looks at it."""
        other = store.find(key)
        return other is not None and (
            why_unusable(other, stage, config, planned.fingerprint or "", planned.contents, store) is None
        )

    with ExitStack() as stack:
        lock = stack.enter_context(
            store.lock_unless(key, lambda holder: say(f"{stage.name:<12} waiting: {holder} builds it"), made)
        )
        if lock is None or made():
            return
        if not _inputs_hold(planned, others, store, say):
            return
        # Held as long as anything reads them, by the child too: a clean meanwhile leaves them alone.
        held = stack.enter_context(store.shared(read))
        if any(store.find(name) is None for name in read):
            return
        try:
            given = {name: _input(planned, others[name], store, stack) for name in stage.upstream}
        except OSError as error:
            say(f"{stage.name:<12} {error}; looking again")
            return
        began = time.monotonic()
        note = {
            "fingerprint": planned.fingerprint,
            "upstream": dict(planned.contents),
            "origin": planned.origin,
        }
        out = store.begin(key, note, resume=stage.progress is not None)
        directory = stack.enter_context(held_directory(out))
        if stage.progress:
            run.link(stage.name, out)  # what is there so far can be watched, and a clean leaves it alone
        if planned.predecessor and stage.extension:
            with suppress(OSError):  # it was pruned or cleaned meanwhile: begin anew
                stage.extension.adopt(planned.predecessor.path, out, planned.predecessor.step)
        try:
            facts = _run(planned, given, out, run, [lock, *held], say)
            refuse_after_stop()  # what was made meanwhile may lack what it was to be made of
            refuse_incomplete(stage, View(config, stage.name), out, directory, facts)
        except BaseException as error:
            if isinstance(error, Exception):  # its trouble may be that there is nowhere to write
                refuse_another(stage, out, directory)
            # how a computation went is kept, even where it has saved nothing yet
            if stage.progress is None or (not stage.computes and stage.progress(out) is None):
                store.drop(key)
            raise
        references = {}
        if stage.references(View(config, stage.name)):
            references = {
                name: {"sha256": planned.origin["sources"][name], "size": path.stat().st_size}
                for name, path in planned.sources.items()
            }
        manifest = {
            "stage": stage.name,
            "fingerprint": planned.fingerprint,
            "origin": planned.origin,
            "upstream": dict(planned.contents),
            "references": references,
            "facts": facts,
            "libraries": _libraries(),
            "cpu": model_name(),
            "made": round(time.time(), 3),
            "seconds": round(time.monotonic() - began, 3),
        }
        artifact = store.publish(key, manifest, stage.journal)
        _remember(planned, artifact, say)
        run.link(stage.name, artifact.path)
        say(f"{stage.name:<12} done in {manifest['seconds']:.1f} s")


def _remember(planned: PlannedStage, artifact: Artifact, say: Callable[[str], None]) -> None:
    """Write into the lock what became of a hub's files, so that whoever has the lock knows what later
    stages are made from before the download.
    """
    stage, view = planned.stage, View(planned.config, planned.stage.name)
    pins = stage.remote.pins(view)
    if not stage.by_content or len(pins) != 1 or planned.sources or planned.fingerprint is None:
        return  # what is made of several sources belongs to none of their entries
    ((name, pin),) = pins.items()
    said = known_content(pins, planned.fingerprint)
    if said not in (None, artifact.content):
        say(
            f"{stage.name:<12} its content is {artifact.content[:12]}, and {planned.config.lock} says "
            f"{said[:12] if said else ''}: another version made it"
        )
    if pin is not None and said != artifact.content and not planned.config.locked:
        lockfile.write_pin(
            Path(planned.config.lock),
            name,
            replace(pin, made={**pin.made, planned.fingerprint[:12]: artifact.content}),
        )


def _inputs_hold(
    planned: PlannedStage, others: dict[str, PlannedStage], store: Store, say: Callable[[str], None]
) -> bool:
    """Read every byte that the stage is about to use; a rotten artifact goes to the trash, and the next
    plan builds it again.
    """
    whole = True
    for name in planned.stage.upstream:
        source = others[name]
        if source.artifact is None:
            continue  # a part of what is not finished; the stage looks at its hashes itself
        assert source.key is not None
        changed = [
            n
            for n, entry in source.artifact.manifest["references"].items()
            if _hash(source.sources.get(n), store) != entry["sha256"]
        ]
        if changed:
            say(f"{name:<12} {', '.join(changed)} changed just now; looking again")
            whole = False
        elif problem := store.damage(source.artifact, deep=True):
            with store.lock(
                source.key,
                lambda holder, name=name: say(f"{name:<12} waiting: held by {holder}"),  # type: ignore[misc]
            ):
                store.trash(source.key)
            say(f"{name:<12} damaged: {problem}; it will be built again")
            whole = False
    return whole


def _hash(path: Path | None, store: Store) -> str | None:
    try:
        return store.hashes.sha256(path, fresh=True) if path else None
    except OSError:
        return None


def _input(planned: PlannedStage, source: PlannedStage, store: Store, stack: ExitStack) -> Input:
    """What `planned` reads of `source`. A part of what is not finished is put aside first: whoever goes on
    building it may prune it.
    """
    if source.artifact is not None:
        return source.input()
    assert source.partial is not None
    assert planned.pick is not None
    assert planned.stage.choice is not None
    aside = Path(
        stack.enter_context(TemporaryDirectory(dir=store.root / ".partial", prefix=f"{planned.key}.reads-"))
    )
    planned.stage.choice.extract(source.partial, aside, planned.pick.step)
    return Input(dir=aside, files={}, facts={})


def _run(
    planned: PlannedStage,
    given: dict[str, Input],
    out: Path,
    run: RunDirectory,
    locks: list[int],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Run the stage, in a process of its own where it wants one; returns its facts."""
    stage, config = planned.stage, planned.config
    if stage.child:
        inputs = {name: source.to_json() for name, source in given.items()}
        with gpus_for(planned, say) as gpus:
            ranks = place_ranks(config.machine, gpus.visible, os.environ) if stage.several else None
            return launch(
                stage.name,
                config,
                inputs,
                out,
                run.dir,
                locks=[*locks, *gpus.locks],
                gpus=gpus.visible,
                ranks=ranks,
                log=run.log,
            )
    context = Context(
        config=View(config, stage.name), inputs=given, out=out, say=lambda line: say(f"  {line}")
    )
    return stage.run(context)


def _libraries() -> dict[str, str]:
    """Versions, as facts: a drift is shown, never hashed."""
    found = {"python": platform.python_version(), "tuner": __version__}
    for name in LIBRARIES:
        if known := installed_version(name):
            found[name] = known
    return found
