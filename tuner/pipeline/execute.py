"""Running a plan: the first stage that is to do is made, and what that changed is planned again, until
nothing is left to do.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tuner.config.schema import Config
from tuner.config.view import View
from tuner.errors import ConfigError, StageError, StoreError
from tuner.hardware.cuda_driver import cuda_problem
from tuner.hardware.gpus import gpus_hidden
from tuner.hardware.mistakes import mistake
from tuner.hub import lockfile
from tuner.launch.child import refuse_external_launcher
from tuner.pipeline.build import build_stage
from tuner.pipeline.earlier import keep_earlier
from tuner.pipeline.plan import plan
from tuner.pipeline.plan_stage import own_digests
from tuner.pipeline.planned_stage import PlannedStage
from tuner.pipeline.run import RunDirectory, link_parent, store_of
from tuner.pipeline.selection import (
    stages_to_redo,
    stages_until,
    stages_up_to_train,
    with_downstream,
)
from tuner.pipeline.stage import Stage
from tuner.store.artifacts import Store

ATTEMPTS = 3
"""times that one run makes a stage, while something changes its files"""


def execute(
    config: Config,
    stages: Sequence[Stage],
    tell: Callable[[str], None],
    *,
    run: RunDirectory | None = None,
    pinned: bool = False,
    found: Sequence[PlannedStage] = (),
) -> RunDirectory:
    """Bring every requested stage to `done`; returns the run. `found` is a plan that was made just now, so
    that it is not made twice.

    With `pinned`, what `run` was trained on and what was trained is taken as it is, and only later stages are
    built. Raises TunerError; whatever was finished before stays.
    """
    refuse_external_launcher(os.environ)
    store, run = store_of(config), run or RunDirectory.of(config)
    for stage in stages_until(stages, config.until) if not pinned else ():
        stage.check(View(config, stage.name))
    store.open()
    try:
        run.create(config, store)
        link_parent(config, run)

        def say(line: str) -> None:
            tell(line)
            run.log(line, shown=True)

        if config.redo:
            redo_stages(config, stages, store, run, set(), say, pinned=pinned)
        if config.redo or any(planned.pending for planned in found):
            found = ()
        _Execution(config, stages, store, run, say, pinned=pinned).finish(list(found))
        return run
    except OSError as error:
        if known := mistake(error):
            raise known from error
        raise


class _Execution:
    """The stages of one run on their way to `done`."""

    def __init__(
        self,
        config: Config,
        stages: Sequence[Stage],
        store: Store,
        run: RunDirectory,
        say: Callable[[str], None],
        *,
        pinned: bool,
    ) -> None:
        self.config, self.stages, self.store, self.run, self.say = config, stages, store, run, say
        self.pinned = pinned
        self.built, self.looked_up = Counter[str](), Counter[str]()
        self.shown = set[str]()
        """lines and stages that the person was told of"""

    def finish(self, found: list[PlannedStage]) -> None:
        """Make what is to do, a stage at a time. The stages at the front that are done stay as they were
        planned, as long as their files do; what follows is planned again after each.
        """
        found = found or self._plan()
        while (planned := self._first_open(found)) is not None:
            if planned.unresolved and not self.pinned:
                self._look_up(planned)
            elif planned.to_do:
                self._build(planned, found)
            found = self._plan(found)  # also where a stage that was done has been cleaned away just now

    def _plan(self, earlier: Sequence[PlannedStage] = ()) -> list[PlannedStage]:
        return plan(
            self.config,
            self.stages,
            self.store,
            self.run,
            hashing=self.say,
            pinned=self.pinned,
            earlier=earlier,
        )

    def _first_open(self, found: Sequence[PlannedStage]) -> PlannedStage | None:
        """The first stage that is not done; the run points at those before it."""
        for planned in found:
            if planned.told and not planned.unresolved and planned.artifact:
                tell = self.say if any(other.to_do for other in found) else self.run.log
                self._once(f"  {planned.told}", tell)
        for planned in found:
            if planned.to_do or not self._link(planned):
                return planned
            name = planned.stage.name
            if name not in self.built:
                self._once(f"{name:<12} {planned.state}{f'  {planned.why}' if planned.why else ''}", self.say)
        return None

    def _once(self, line: str, tell: Callable[[str], None]) -> None:
        if line not in self.shown:
            self.shown.add(line)
            tell(line)

    def _link(self, planned: PlannedStage) -> bool:
        """Point the run at a finished artifact; False when it was cleaned away before the link could keep
        it.
        """
        if planned.artifact is None:
            return True
        self._keep_earlier(planned)
        self._note_files(planned)
        with self.store.shared([planned.artifact.key]):
            self.run.link(planned.stage.name, planned.artifact.path)
            if planned.stage.name == "evaluate":
                self.run.show_report()
            return self.store.find(planned.artifact.key) is not None

    def _keep_earlier(self, planned: PlannedStage) -> None:
        """What the run has of files that were edited since stays with a run of its own, and no longer with
        this one.
        """
        if earlier := keep_earlier(self.run, planned, self.store):
            self.run.unlink(with_downstream(self.stages, {planned.stage.name}), self.store)
            name = earlier.dir.name
            self._once(
                f"  what was trained before stays as {name}; remove it with: python -m tuner clean {name}",
                self.say,
            )

    def _note_files(self, planned: PlannedStage) -> None:
        """The lock says what the person's own files hold, as a locked run will want them."""
        looks = self.run.dir.parent != Path(self.config.root) / "runs"  # and leaves nothing
        if looks or self.pinned or self.config.locked or planned.origin is None:
            return
        view, hashes = View(planned.config, planned.stage.name), planned.origin["sources"]
        if own := own_digests(planned.stage, view, planned.sources, hashes):
            with suppress(OSError):  # where nobody may write, nobody commits it
                lockfile.write_files(Path(self.config.lock), own)

    def _look_up(self, planned: PlannedStage) -> None:
        """Ask the hubs for the commits that the lock does not have."""
        name = planned.stage.name
        self.looked_up[name] += 1
        if self.looked_up[name] > 1:
            raise StoreError(
                f"{self.config.lock} does not hold what was looked up for {name} ({planned.why}): something "
                "else writes it meanwhile."
            )
        planned.stage.remote.look_up(View(self.config, name), self.say)

    def _build(self, planned: PlannedStage, found: Sequence[PlannedStage]) -> None:
        if planned.pick:
            self.config = planned.pick.config  # a step that was chosen stays chosen, though training goes on
        if self.pinned:
            _refuse(planned, found, self.stages, self.run)
        if not self.built:
            _refuse_driver(self.config, found)
        name = planned.stage.name
        if self.pinned and self.built[name]:
            raise StoreError(
                f"{name} of {self.run.dir.name} could not be made: what it reads, named above, is not what "
                "the run was trained with."
            )
        if self.built[name] >= ATTEMPTS:
            raise StageError(
                f"{name} was built {self.built[name]} times in this run and is still not right "
                f"({planned.why}): something changes its files while it runs."
            )
        self.built[name] += 1
        self._keep_earlier(planned)
        build_stage(planned, {other.stage.name: other for other in found}, self.store, self.run, self.say)


def _refuse(
    planned: PlannedStage, found: Sequence[PlannedStage], stages: Sequence[Stage], run: RunDirectory
) -> None:
    """A verb on a run builds what follows train, and nothing else. Raises StoreError for anything
    else that is to do.
    """
    if planned.stage.name in stages_up_to_train(stages):
        raise StoreError(
            f"{planned.stage.name} of {run.dir.name} is {planned.why}, and this command trains nothing. Run "
            "its pipeline again to mend it."
        )
    train = next(s for s in found if s.stage.name == "train")
    if planned.origin is None or (planned.stage.choice and planned.pick is None and train.artifact is None):
        wish = planned.config.convert.step
        saved = f"has not saved step {wish}" if isinstance(wish, int) else "has saved no step yet"
        missing = saved if train.state == "part" else "was not trained yet, or what it was made from is gone"
        raise StoreError(f"{run.dir.name} {missing}, so there is nothing to go on from.")


def _refuse_driver(config: Config, found: Sequence[PlannedStage]) -> None:
    """A card that is here and can't be used is said before anything runs, not after an hour of tokenizing."""
    if (
        config.machine.device == "cpu"
        or gpus_hidden(os.environ)
        or not any(planned.stage.computes and planned.to_do for planned in found)
    ):
        return
    if why := cuda_problem(os.environ):
        raise ConfigError(why.paragraph)


def redo_stages(
    config: Config,
    stages: Sequence[Stage],
    store: Store,
    run: RunDirectory,
    redone: set[str],
    say: Callable[[str], None],
    *,
    pinned: bool = False,
) -> None:
    """Move what `redo` names, and all that is made from it, to the trash, but for the keys in `redone`, to
    which it adds those that it has seen to.
    """
    again = stages_to_redo(stages, config.redo or "")
    for planned in plan(config, stages, store, run, hashing=say, pinned=pinned):
        key = planned.key
        if planned.stage.name not in again or key is None or key in redone:
            continue
        redone.add(key)
        with store.lock(key, lambda holder, key=key: say(f"waiting for {key}, held by {holder}")):  # type: ignore[misc]
            store.drop(key)
            if store.trash(key):
                say(f"{planned.stage.name:<12} moved to the trash (redo={config.redo})")
