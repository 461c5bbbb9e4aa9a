"""Starting from what an earlier run made: `model=run model.run=RUN`.

The child reads the parent's artifact where it lies in the store, and knows it by its content: a parent that
is made again, to other bytes, makes the child be made again. The child's directory has links of its own to
what it reads (`base`, `adapter`), so the parent's directory may go.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tuner.config.schema import Chat, Config
from tuner.config.view import View
from tuner.errors import ConfigError
from tuner.pipeline.advice import command_on
from tuner.pipeline.find_run import find_run
from tuner.pipeline.plan import plan, settle_from_run
from tuner.pipeline.planned_stage import PlannedStage
from tuner.pipeline.run import RunDirectory, store_of
from tuner.pipeline.stage import Stage


def inherit(config: Config, stages: Sequence[Stage]) -> Config:
    """The config with what it takes from the run that it starts from: where the model lies, the adapter, the
    chat template.

    `model.run` becomes that run's digest, which a renaming does not change. Raises ConfigError when there is
    no such run, when it has nothing to start from yet, and for a run that would be its own ancestor.
    """
    if config.model.source != "run":
        return config
    parent = find_run(Path(config.root), config.model.run or "")
    if config.name == parent.name:
        raise ConfigError(
            f"A run can't be called like the one it starts from: model.run={config.model.run} would then "
            f"mean both. Give it another name than {config.name}."
        )
    _refuse_cycle(parent, Path(config.root))
    theirs = load_config(parent)
    theirs = settle_from_run(theirs, stages, store_of(theirs), parent)
    found = {
        planned.stage.name: planned
        for planned in plan(replace(theirs, until="merge"), stages, store_of(theirs), parent, pinned=True)
    }
    adapter, base = None, _made(found["fetch_model"], parent)
    if not theirs.algo.uses_adapter:
        if config.algo.init == "continue":
            raise ConfigError(
                f"algo.init=continue goes on with an adapter, and {parent.dir.name} has none: all its "
                "weights were trained. Leave it out."
            )
        base = _made(found["convert"], parent)
    elif config.algo.init == "continue":
        adapter = _made(found["convert"], parent)
    else:
        base = _made(found["merge"], parent)
    model = replace(
        config.model,
        run=parent.digest,
        dir=str(base),
        adapter=str(adapter) if adapter else None,
        repo=config.model.repo or (theirs.model.repo if adapter else None),
        context=config.model.context or theirs.model.context,
        chat=theirs.model.chat if config.model.chat == Chat() else config.model.chat,
    )
    config = replace(config, model=model)
    if adapter:
        train = next(stage for stage in stages if stage.name == "train")
        if missing := [
            name for name, path in train.sources(View(config, train.name)).items() if not path.is_file()
        ]:
            raise ConfigError(
                f"{adapter} has no {missing[0]}, so there is no adapter to go on with. Make it again: "
                f"{command_on(parent, 'convert')}"
            )
    return config


def _made(planned: PlannedStage, parent: RunDirectory) -> Path:
    """Where an artifact of the parent lies."""
    if planned.artifact is None:
        name = planned.stage.name
        mend = (
            f"Make it, which trains nothing: {command_on(parent, name)}"
            if name in ("convert", "merge")
            else "Run its pipeline again."
        )
        raise ConfigError(
            f"The run {parent.dir.name} has no {name} to start from ({planned.why or planned.state}). {mend}"
        )
    if planned.lost:
        raise ConfigError(
            f"The base model of {parent.dir.name} is not where it was: {planned.lost[0]} is gone. Put it "
            "back where that run's config says."
        )
    return planned.input().dir


def _refuse_cycle(parent: RunDirectory, root: Path) -> None:
    """Raise ConfigError when following the parents comes back to a run that was there already: somebody
    edited a config.yaml.
    """
    seen: list[str] = []
    run: RunDirectory | None = parent
    while run is not None:
        if run.digest in seen:
            raise ConfigError(
                f"The runs {', '.join([*seen, run.digest])} start from each other in a circle: the model.run "
                "in one of their config.yaml is wrong."
            )
        seen.append(run.digest)
        model = run.config().model
        try:
            run = find_run(root, model.run) if model.source == "run" and model.run else None
        except ConfigError:
            return  # a grandparent's directory may be gone: its child has links of its own


def load_config(run: RunDirectory) -> Config:
    """A run's own config, with the places where things lie now: the root may have been moved."""
    config, root, store = run.config(), run.dir.parent.parent, run.store()
    base, adapter = (
        str(link.resolve()) if (link := run.path(name)).exists() else None for name in ("base", "adapter")
    )
    model = replace(config.model, dir=base or config.model.dir, adapter=adapter or config.model.adapter)
    place = (
        config.store
        if store is None
        else None
        if store == Path(os.path.normpath(root / "store"))
        else str(store)
    )
    return replace(config, root=str(root), store=place, model=model)
