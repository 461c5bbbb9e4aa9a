"""Running a plan: look, lock, look again, build in a partial directory, publish; until nothing is left to do."""

import errno
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tuner.disk import disk_full
from tuner.errors import Interrupted, StageError, StoreError
from tuner.launch import launch
from tuner.plan import Step, contents, fault, made_from, plan, requested
from tuner.runs import Run, store_of
from tuner.schema import Config
from tuner.stage import Context, Stage, View
from tuner.store import Store

LIBRARIES = ("tuner", "torch", "transformers", "tokenizers", "peft", "safetensors", "pyarrow", "numpy")


def execute(config: Config, stages: Sequence[Stage], tell: Callable[[str], None], redone: set[str] | None = None) -> Run:
    """Bring every requested stage to `done`; returns the run. `redone` holds what this invocation has moved to the trash.

    Raises TunerError; whatever was finished before stays.
    """
    store, run = store_of(config), Run.of(config)
    for stage in requested(stages, config.until):
        stage.check(View(config, stage.name))
    store.open()
    try:
        run.create(config)

        def say(line: str) -> None:
            tell(line)
            run.log(line)

        if config.redo:
            _redo(config, stages, store, run, set() if redone is None else redone, say)
        built: dict[str, int] = {}
        shown: set[str] = set()
        while True:
            steps = plan(config, stages, store, run, hashing=say)
            for step in steps:
                if step.to_do:
                    break
                if step.stage.name not in shown:
                    shown.add(step.stage.name)
                    _finish(step, run, say, fresh=step.stage.name in built)
            else:
                return run
            name = step.stage.name
            built[name] = built.get(name, 0) + 1
            if built[name] > 3:
                raise StageError(
                    f"{name} was built {built[name] - 1} times in this run and is still not right ({step.why}): something changes its files while it runs."
                )
            _build(step, {s.stage.name: s for s in steps}, config, store, run, say)
    except OSError as error:
        if disk_full(error):
            raise StoreError(
                f"The disk that holds {store.root} is full. What was finished is kept; make space (tuner clean) and run the same command again."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreError(
                f"{error.filename or store.root} can't be written: {error.strerror}. Choose another place with root=DIR or store=DIR, or mend its permissions."
            ) from error
        raise


def _finish(step: Step, run: Run, say: Callable[[str], None], *, fresh: bool) -> None:
    if step.artifact is not None:
        run.link(step.stage.name, step.artifact)
        if step.stage.name == "evaluate":
            run.show_report()
    if not fresh:
        say(f"{step.stage.name:<12} {step.state}{f'  {step.why}' if step.why else ''}")


def _redo(config: Config, stages: Sequence[Stage], store: Store, run: Run, redone: set[str], say: Callable[[str], None]) -> None:
    """Move what `redo` names, and all that is made from it, to the trash; only what this invocation has not built already."""
    again = made_from(stages, config.redo or "")
    for step in plan(config, stages, store, run, hashing=say):
        key = step.key
        if step.stage.name not in again or key is None or key in redone:
            continue
        redone.add(key)
        with store.lock(key, lambda holder, key=key: say(f"waiting for {key}, held by {holder}")):  # type: ignore[misc]
            store.drop(key)
            if store.trash(key):
                say(f"{step.stage.name:<12} moved to the trash (redo={config.redo})")


def _build(step: Step, steps: dict[str, Step], config: Config, store: Store, run: Run, say: Callable[[str], None]) -> None:
    stage, key = step.stage, step.key
    assert key is not None
    assert step.origin is not None
    say(f"{stage.name:<12} {step.state}  {step.why}")
    with store.lock(key, lambda holder: say(f"{stage.name:<12} waiting: {holder} builds it")) as lock:
        assert step.fingerprint is not None
        upstream = contents(stage, steps)
        if (other := store.find(key)) and fault(other, stage, step.fingerprint, upstream, store) is None:
            return  # built by somebody else while we waited; the next plan looks at it
        if not _inputs_hold(stage, steps, store, say):
            return
        began = time.monotonic()
        out = store.begin(key, {"fingerprint": step.fingerprint, "upstream": upstream}, resume=stage.progress is not None)
        try:
            facts = _run(step, steps, config, out, run, lock, say)
        except BaseException:
            if stage.progress is None:
                store.drop(key)
            raise
        references = {}
        if stage.references(View(config, stage.name)):
            references = {name: {"sha256": step.origin["sources"][name], "size": path.stat().st_size} for name, path in step.sources.items()}
        manifest = {
            "stage": stage.name,
            "fingerprint": step.fingerprint,
            "origin": step.origin,
            "upstream": upstream,
            "references": references,
            "facts": facts,
            "libraries": _libraries(),
            "made": round(time.time(), 3),
            "seconds": round(time.monotonic() - began, 3),
        }
        artifact = store.publish(key, manifest, stage.journal)
        run.link(stage.name, artifact)
        say(f"{stage.name:<12} done in {manifest['seconds']:.1f} s")


def _inputs_hold(stage: Stage, steps: dict[str, Step], store: Store, say: Callable[[str], None]) -> bool:
    """Read every byte that the stage is about to use; a rotten artifact goes to the trash, and the next plan builds it again."""
    whole = True
    for name in stage.upstream:
        step = steps[name]
        assert step.artifact is not None
        assert step.key is not None
        changed = [n for n, entry in step.artifact.manifest["references"].items() if store.sha256(step.sources[n], fresh=True) != entry["sha256"]]
        if changed:
            say(f"{name:<12} {', '.join(changed)} changed just now; looking again")
            whole = False
        elif problem := store.damage(step.artifact, deep=True):
            with store.lock(step.key, lambda holder, name=name: say(f"{name:<12} waiting: held by {holder}")):  # type: ignore[misc]
                store.trash(step.key)
            say(f"{name:<12} damaged: {problem}; it will be built again")
            whole = False
    return whole


def _run(step: Step, steps: dict[str, Step], config: Config, out: Path, run: Run, lock: int, say: Callable[[str], None]) -> dict[str, Any]:
    given = {name: steps[name].input() for name in step.stage.upstream}
    if step.stage.child:
        return launch(step.stage.name, config, given, out, run.dir, lock)
    context = Context(config=View(config, step.stage.name), inputs=given, out=out, say=lambda line: say(f"  {line}"))
    try:
        return step.stage.run(context)
    except KeyboardInterrupt:
        raise Interrupted(f"{step.stage.name} was interrupted; the same command begins it again.") from None


def _libraries() -> dict[str, str]:
    """Versions, as facts: a drift is shown, never hashed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
