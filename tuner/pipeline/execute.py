"""Running a plan: look, lock, look again, build in a partial directory, publish; until nothing is left to
do.
"""

import errno
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tuner.config.schema import Config
from tuner.config.view import View
from tuner.errors import ConfigError, Interrupted, StageError, StoreError
from tuner.files import disk_full
from tuner.hardware.cuda_driver import trouble
from tuner.hardware.gpus import choose, gpus, hidden
from tuner.hub import lockfile
from tuner.hub.lockfile import made
from tuner.launch.child import launch, refuse_many
from tuner.launch.members import ranks_for
from tuner.pipeline.plan import (
    PlannedStage,
    plan,
    stages_to_redo,
    stages_until,
    stages_up_to_train,
    why_unusable,
)
from tuner.pipeline.run import RunDirectory, link_parent, store_of
from tuner.pipeline.stage import Context, Input, Stage
from tuner.store.artifacts import Artifact, Store

LIBRARIES = tuple("tuner torch transformers tokenizers peft bitsandbytes safetensors pyarrow numpy".split())


def execute(
    config: Config,
    stages: Sequence[Stage],
    tell: Callable[[str], None],
    redone: set[str] | None = None,
    *,
    run: RunDirectory | None = None,
    pinned: bool = False,
) -> RunDirectory:
    """Bring every requested stage to `done`; returns the run. `redone` holds what this invocation has moved
    to the trash.

    With `pinned`, what `run` was trained on and what was trained is taken as it is, and only later stages are
    built. Raises TunerError; whatever was finished before stays.
    """
    refuse_many(os.environ)
    store, run = store_of(config), run or RunDirectory.of(config)
    for stage in stages_until(stages, config.until) if not pinned else ():
        stage.check(View(config, stage.name))
    store.open()
    try:
        run.create(config, store)
        link_parent(config, run)

        def say(line: str) -> None:
            tell(line)
            run.log(line)

        if config.redo:
            _redo(config, stages, store, run, set() if redone is None else redone, say, pinned)
        built: dict[str, int] = {}
        looked: dict[str, int] = {}
        shown: set[str] = set()
        while True:
            steps = plan(config, stages, store, run, hashing=say, pinned=pinned)
            for line in [
                step.told
                for step in steps
                if step.told and not step.unresolved and step.artifact and step.told not in shown
            ]:
                shown.add(line)
                (say if any(step.to_do for step in steps) else run.log)(f"  {line}")
            for step in steps:
                if step.to_do or not _linked(step, store, run):
                    break
                if step.stage.name not in shown:
                    shown.add(step.stage.name)
                    if step.stage.name not in built:
                        say(f"{step.stage.name:<12} {step.state}{f'  {step.why}' if step.why else ''}")
            else:
                return run
            if not step.to_do:
                continue  # it was cleaned away just now
            name = step.stage.name
            if step.unresolved and not pinned:
                looked[name] = looked.get(name, 0) + 1
                if looked[name] > 1:
                    raise StoreError(
                        f"{config.lock} does not hold what was looked up for {name} ({step.why}): something "
                        "else writes it meanwhile."
                    )
                step.stage.look_up(View(config, name), say)
                continue
            if step.pick:
                config = step.pick.config  # a step that was chosen stays chosen, though the training goes on
            if pinned:
                _refuse(step, steps, stages, run)
            if not built:
                _refuse_driver(config, steps)
            built[name] = built.get(name, 0) + 1
            if pinned and built[name] > 1:
                raise StoreError(
                    f"{name} of {run.dir.name} could not be made: what it reads, named above, is not what "
                    "the run was trained with."
                )
            if built[name] > 3:
                raise StageError(
                    f"{name} was built {built[name] - 1} times in this run and is still not right "
                    f"({step.why}): something changes its files while it runs."
                )
            _build(step, {s.stage.name: s for s in steps}, store, run, say)
    except OSError as error:
        if disk_full(error):
            raise StoreError(
                f"The disk that holds {store.root} is full. What was finished is kept; make space (tuner "
                "clean) and run the same command again."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreError(
                f"{error.filename or store.root} can't be written: {error.strerror}. Choose another place "
                "with root=DIR or store=DIR, or mend its permissions."
            ) from error
        raise


def _linked(step: PlannedStage, store: Store, run: RunDirectory) -> bool:
    """Point the run at a finished artifact; False when it was cleaned away before the link could keep it."""
    if step.artifact is None:
        return True
    with store.shared([step.artifact.key]):
        run.link(step.stage.name, step.artifact.path)
        if step.stage.name == "evaluate":
            run.show_report()
        return store.find(step.artifact.key) is not None


def _refuse(
    step: PlannedStage, steps: Sequence[PlannedStage], stages: Sequence[Stage], run: RunDirectory
) -> None:
    """A verb on a run builds what follows the training, and nothing else. Raises StoreError for anything
    else that is to do.
    """
    if step.stage.name in stages_up_to_train(stages):
        raise StoreError(
            f"{step.stage.name} of {run.dir.name} is {step.why}, and this command trains nothing. Run its "
            "pipeline again to mend it."
        )
    train = next(s for s in steps if s.stage.name == "train")
    if step.origin is None or (step.stage.choice and step.pick is None and train.artifact is None):
        wish = step.config.convert.step
        saved = f"has not saved step {wish}" if isinstance(wish, int) else "has saved no step yet"
        missing = saved if train.state == "part" else "was not trained yet, or what it was made from is gone"
        raise StoreError(f"{run.dir.name} {missing}, so there is nothing to go on from.")


def _refuse_driver(config: Config, steps: Sequence[PlannedStage]) -> None:
    """A card that is here and can't be used is said before anything runs, not after an hour of tokenizing."""
    if (
        config.machine.device == "cpu"
        or hidden(os.environ)
        or not any(step.stage.computes and step.to_do for step in steps)
    ):
        return
    if why := trouble(os.environ):
        raise ConfigError(why.paragraph)


def _redo(
    config: Config,
    stages: Sequence[Stage],
    store: Store,
    run: RunDirectory,
    redone: set[str],
    say: Callable[[str], None],
    pinned: bool,
) -> None:
    """Move what `redo` names, and all that is made from it, to the trash; only what this invocation has
    not built already.
    """
    again = stages_to_redo(stages, config.redo or "")
    for step in plan(config, stages, store, run, hashing=say, pinned=pinned):
        key = step.key
        if step.stage.name not in again or key is None or key in redone:
            continue
        redone.add(key)
        with store.lock(key, lambda holder, key=key: say(f"waiting for {key}, held by {holder}")):  # type: ignore[misc]
            store.drop(key)
            if store.trash(key):
                say(f"{step.stage.name:<12} moved to the trash (redo={config.redo})")


def _build(
    step: PlannedStage,
    steps: dict[str, PlannedStage],
    store: Store,
    run: RunDirectory,
    say: Callable[[str], None],
) -> None:
    stage, key, config = step.stage, step.key, step.config
    assert key is not None
    assert step.origin is not None
    say(f"{stage.name:<12} {step.state}  {step.why}")
    read = [steps[name].key or "" for name in stage.upstream if steps[name].artifact]
    with ExitStack() as stack:
        lock = stack.enter_context(
            store.lock(key, lambda holder: say(f"{stage.name:<12} waiting: {holder} builds it"))
        )
        assert step.fingerprint is not None
        if (other := store.find(key)) and why_unusable(
            other, stage, step.fingerprint, step.contents, store
        ) is None:
            return  # built by somebody else while we waited; the next plan looks at it
        if not _inputs_hold(step, steps, store, say):
            return
        # Held as long as anything reads them, by the child too: a clean meanwhile leaves them alone.
        held = stack.enter_context(store.shared(read))
        if any(store.find(name) is None for name in read):
            return
        try:
            given = {name: _input(step, steps[name], store, stack) for name in stage.upstream}
        except OSError as error:
            say(f"{stage.name:<12} {error}; looking again")
            return
        began = time.monotonic()
        note = {"fingerprint": step.fingerprint, "upstream": dict(step.contents), "origin": step.origin}
        out = store.begin(key, note, resume=stage.progress is not None)
        if stage.progress:
            run.link(stage.name, out)  # what is there so far can be watched, and a clean leaves it alone
        if step.predecessor and stage.extension:
            with suppress(OSError):  # it was pruned or cleaned meanwhile: begin anew
                stage.extension.adopt(step.predecessor.path, out, step.predecessor.step)
        try:
            facts = _run(step, given, out, run, [lock, *held], say)
        except BaseException:
            if stage.progress is None or (not stage.child and stage.progress(out) is None):
                store.drop(key)
            raise
        references = {}
        if stage.references(View(config, stage.name)):
            references = {
                name: {"sha256": step.origin["sources"][name], "size": path.stat().st_size}
                for name, path in step.sources.items()
            }
        manifest = {
            "stage": stage.name,
            "fingerprint": step.fingerprint,
            "origin": step.origin,
            "upstream": dict(step.contents),
            "references": references,
            "facts": facts,
            "libraries": _libraries(),
            "made": round(time.time(), 3),
            "seconds": round(time.monotonic() - began, 3),
        }
        artifact = store.publish(key, manifest, stage.journal)
        _remember(step, artifact, say)
        run.link(stage.name, artifact.path)
        say(f"{stage.name:<12} done in {manifest['seconds']:.1f} s")


def _remember(step: PlannedStage, artifact: Artifact, say: Callable[[str], None]) -> None:
    """Write into the lock what became of a hub's files, so that whoever has the lock knows what later
    stages are made from before the download.
    """
    stage, view = step.stage, View(step.config, step.stage.name)
    pins = stage.pins(view)
    if not stage.by_content or len(pins) != 1 or step.sources or step.fingerprint is None:
        return  # what is made of several sources belongs to none of their entries
    ((name, pin),) = pins.items()
    said = made(pins, step.fingerprint)
    if said not in (None, artifact.content):
        say(
            f"{stage.name:<12} its content is {artifact.content[:12]}, and {step.config.lock} says "
            f"{said[:12] if said else ''}: made by another version"
        )
    if pin is not None and said != artifact.content and not step.config.locked:
        lockfile.write(
            Path(step.config.lock),
            name,
            replace(pin, made={**pin.made, step.fingerprint[:12]: artifact.content}),
        )


def _inputs_hold(
    step: PlannedStage, steps: dict[str, PlannedStage], store: Store, say: Callable[[str], None]
) -> bool:
    """Read every byte that the stage is about to use; a rotten artifact goes to the trash, and the next
    plan builds it again.
    """
    whole = True
    for name in step.stage.upstream:
        source = steps[name]
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
        return store.sha256(path, fresh=True) if path else None
    except OSError:
        return None


def _input(step: PlannedStage, source: PlannedStage, store: Store, stack: ExitStack) -> Input:
    """What `step` reads of `source`. A part of what is not finished is put aside first: whoever goes on
    building it may prune it.
    """
    if source.artifact is not None:
        return source.input()
    assert source.partial is not None
    assert step.pick is not None
    assert step.stage.choice is not None
    aside = Path(
        stack.enter_context(TemporaryDirectory(dir=store.root / ".partial", prefix=f"{step.key}.reads-"))
    )
    step.stage.choice.extract(source.partial, aside, step.pick.step)
    return Input(dir=aside, files={}, facts={})


def _run(
    step: PlannedStage,
    given: dict[str, Input],
    out: Path,
    run: RunDirectory,
    locks: list[int],
    say: Callable[[str], None],
) -> dict[str, Any]:
    if step.stage.child:
        gpus = _gpus(step, say)
        ranks = ranks_for(step.config.machine, gpus, os.environ) if step.stage.several else None
        inputs = {name: source.to_json() for name, source in given.items()}
        return launch(
            step.stage.name,
            step.config,
            inputs,
            out,
            run.dir,
            locks=locks,
            gpus=gpus,
            ranks=ranks,
            log=run.log,
        )
    context = Context(
        config=View(step.config, step.stage.name), inputs=given, out=out, say=lambda line: say(f"  {line}")
    )
    try:
        return step.stage.run(context)
    except KeyboardInterrupt:
        raise Interrupted(f"{step.stage.name} was interrupted; the same command begins it again.") from None


def _gpus(step: PlannedStage, say: Callable[[str], None]) -> str | None:
    """The GPUs for a stage that computes on them, chosen when it starts: what is idle changes."""
    machine = step.config.machine
    if not step.stage.computes or machine.device == "cpu" or hidden(os.environ):
        return None
    found = gpus()
    chosen = choose(machine.gpus, found, os.environ)
    if chosen and len(found) > 1:
        cards = [card for card in found if card.uuid in chosen.split(",")]
        more = ", of which one process uses the first" if len(cards) > 1 and not step.stage.several else ""
        say(
            "  on "
            + " and ".join(
                f"GPU {card.index} ({card.name}, {card.free / 1024:.0f} GiB free)" for card in cards
            )
            + more
        )
    return chosen


def _libraries() -> dict[str, str]:
    """Versions, as facts: a drift is shown, never hashed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
