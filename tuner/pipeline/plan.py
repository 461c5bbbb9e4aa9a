"""What would run, and why: the pure half of the pipeline. It reads manifests and stats files, and writes
nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import takewhile

from tuner.config.schema import Config
from tuner.config.view import View
from tuner.pipeline.plan_stage import plan_linked, plan_stage, still_done
from tuner.pipeline.planned_stage import PlannedStage
from tuner.pipeline.run import RunDirectory
from tuner.pipeline.selection import stages_to_redo, stages_until, stages_up_to_train, target_stages
from tuner.pipeline.stage import Stage
from tuner.store.artifacts import Store


def plan(
    config: Config,
    stages: Sequence[Stage],
    store: Store,
    run: RunDirectory,
    *,
    hashing: Callable[[str], None] | None = None,
    redo: str | None = None,
    pinned: bool = False,
    earlier: Sequence[PlannedStage] = (),
) -> list[PlannedStage]:
    """What each requested stage would do. Large local files are hashed when there is someone to tell
    (`hashing`), and pending otherwise; `redo` shows what it would build again.

    With an `earlier` plan of the same run, the stages at its front that are still done are taken from it.
    A `pinned` plan takes what was fetched, tokenized and trained from the run's links, whatever became of the
    files and the recipe since, and never holds work on those stages.
    """
    found: dict[str, PlannedStage] = {}
    if pinned:
        config = settle_from_run(config, stages, store, run)
    again = stages_to_redo(stages, redo) if redo else set()
    fixed = stages_up_to_train(stages) if pinned else set()
    kept = {
        planned.stage.name: planned
        for planned in takewhile(lambda planned: still_done(planned, store), () if pinned else earlier)
    }
    for stage in stages_until(stages, config.until):
        planned = kept.get(stage.name) or (
            plan_linked(stage, config, store, run)
            if stage.name in fixed
            else plan_stage(stage, config, found, store, run, hashing, pinned)
        )
        if config.model.chat.auto and any(
            stage.name in later.upstream for later in stages_until(stages, config.until)
        ):
            settled = stage.settle(config, planned.input().dir if planned.artifact else None)
            config, planned = settled.config, replace(planned, told=settled.told)
        if stage.name in again and planned.state in ("done", "continue"):
            planned = replace(planned, state="run", why=f"redo={redo}", artifact=None, replaces=True)
        found[stage.name] = planned
    return _skip_unneeded(list(found.values()), target_stages(stages, config.until))


def settle_from_run(config: Config, stages: Sequence[Stage], store: Store, run: RunDirectory) -> Config:
    """The config with what it left open as the artifacts of a run have it, whatever would be found now."""
    for stage in stages:
        if found := store.find(run.key(stage.name) or "-"):
            config = stage.recall(config, found.manifest["origin"])
    return config


def _skip_unneeded(found: list[PlannedStage], targets: set[str]) -> list[PlannedStage]:
    """Leave out what is not there and not needed: only products, the targets, and what a stage that runs
    reads, or will know itself by.
    """
    wanted: set[str] = set()
    read = {name for planned in found for name in planned.stage.upstream}
    result = []
    for planned in reversed(found):
        name, view = planned.stage.name, View(planned.config, planned.stage.name)
        needed = (
            name in targets
            or planned.replaces
            or planned.stage.product(view)
            or name in wanted
            or (planned.known_as is None and planned.to_do and name in read)
        )
        left = replace(planned, state="skip", why="not there, and not needed")
        result.append(planned if needed or not planned.to_do else left)
        if result[-1].to_do:
            wanted |= set(planned.stage.upstream)
    return result[::-1]
