"""Verbs on a run that is there: from its own frozen config, on what was trained, without training
anything.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuner.config.build import build_config, dump_config, flatten
from tuner.config.compose import compose
from tuner.config.overrides import GROUPS
from tuner.config.schema import Config
from tuner.config.view import leaves
from tuner.errors import ConfigError, TunerError, did_you_mean
from tuner.pipeline.execute import execute
from tuner.pipeline.inherit import load_config
from tuner.pipeline.plan import plan, settle_from_run
from tuner.pipeline.run import RunDirectory, run_digest, run_name, store_of
from tuner.pipeline.selection import check_stop_words, stages_named, stages_up_to_train
from tuner.pipeline.stage import Stage


def with_overrides(
    config: Config, words: Sequence[str], stages: Sequence[Stage], extra: Path | None = None
) -> Config:
    """A run's config with what the words say of it. Raises ConfigError for a word that decides what was
    trained.
    """
    if not words:
        return config
    changed = overridden(config, words, extra)
    check_stop_words(changed, stages)
    before, decides = {path: value for path, _, value in leaves(config)}, stages_up_to_train(stages)
    for path, declared, value in leaves(changed):
        if (
            value != before[path]
            and declared.kind != "neutral"
            and (declared.kind == "place" or declared.stages & decides)
        ):
            raise ConfigError(
                f"{path} decides what was trained, and this command takes that as it is. To train with "
                f"{path}={value}, add it to the command that trained the run."
            )
    return changed


def overridden(config: Config, words: Sequence[str], extra: Path | None = None) -> Config:
    """A config with what the words say of it, whatever that decides. Raises ConfigError."""
    composed = compose(list(words), extra=extra, whole=False)
    said, values = dump_config(composed), dump_config(config)
    for word in words:
        path = word.lstrip("+").partition("=")[0]
        for key in [
            leaf
            for leaf, _ in flatten(said)
            if leaf == path or (path in GROUPS and leaf.startswith(f"{path.replace('/', '.')}."))
        ] or [path]:
            _put(values, key, _get(said, key))
        if path in GROUPS:
            values["choices"][path] = composed.choices[path]
    return build_config(values)


def _get(values: dict[str, Any], path: str) -> Any:
    for key in path.split("."):
        if not isinstance(values, dict) or key not in values:
            known = [leaf for leaf, _ in flatten(values)] if isinstance(values, dict) else []
            raise ConfigError(f"{path} is not a field of the config.{did_you_mean(path, known)}")
        values = values[key]
    return values


def _put(values: dict[str, Any], path: str, item: Any) -> None:
    *groups, name = path.split(".")
    for group in groups:
        values = values[group]
    values[name] = item


def rerun(
    run: RunDirectory,
    words: Sequence[str],
    until: str,
    tell: Callable[[str], None],
    stages: Sequence[Stage],
    extra: Path | None = None,
) -> RunDirectory:
    """Bring `run` to the stage `until`, with what the words say of the stages after train; returns the
    run that holds the result.

    That is the run itself, or, when the words ask for another result (another step, other questions), a run
    of its own beside it, with links to the same train artifact. Raises TunerError.
    """
    before, decides = load_config(run), stages_up_to_train(stages)
    config = with_overrides(before, words, stages, extra)
    if config.redo and stages_named(stages, config.redo) & decides:
        raise ConfigError(
            f"redo={config.redo} would train again, and this command trains nothing. Add it to the command "
            "that trained the run."
        )
    target = run
    if run_digest(config) != run_digest(before):
        name = config.name if config.name != before.name else None
        config = replace(config, name=name or f"{run.name}+{_called(before, config)}")
        target = RunDirectory.of(config)
        tell(f"{target.dir.name}: {_called(before, config)} of {run.dir.name}")
    wished = replace(
        config, until=until, merge=replace(config.merge, when="always" if until == "merge" else "never")
    )
    new = not target.dir.exists()
    try:
        if target is not run:
            target.dir.mkdir(parents=True, exist_ok=True)
            for link in [link for link in run.dir.iterdir() if link.name in {*decides, "base", "adapter"}]:
                target.link(link.name, run.dir / link.readlink())
        return execute(wished, stages, tell, run=target, pinned=True)
    except TunerError:
        if new and not target.path("convert").exists():
            shutil.rmtree(target.dir, ignore_errors=True)  # nothing came of it
        raise


def relabel(run: RunDirectory, names: Sequence[str], words: Sequence[str], stages: Sequence[Stage]) -> None:
    """`rename RUN NAME`, with or without note=… and tags=[…]: what a run is called changes nothing else.
    Raises ConfigError.
    """
    before = load_config(run)
    labels = with_overrides(before, [*words, *(f"name={name}" for name in names)], stages)
    if (
        replace(labels, name=None, note=None, tags=()) != replace(before, name=None, note=None, tags=())
        or len(names) > 1
        or not (names or words)
    ):
        raise ConfigError(
            "rename takes a run and what it should be called: python -m tuner rename RUN NAME, or note=… or "
            "tags=[…] in place of the name."
        )
    if labels.name and labels.name != before.name:
        run.rename(run_name(labels), store_of(before))
        run.give_up_name(before.name, labels.name)
    run.write(replace(run.config(), name=labels.name, note=labels.note, tags=labels.tags))


def prepare_result(
    run: RunDirectory,
    words: Sequence[str],
    tell: Callable[[str], None],
    stages: Sequence[Stage],
    extra: Path | None = None,
) -> tuple[RunDirectory, Config, Path | None]:
    """What a conversation with the run needs: the run that holds its result, its config, and where the
    base of its adapter lies; None where that is gone.
    """
    config = with_overrides(load_config(run), words, stages, extra)
    # what asks for another result; the rest is how to talk
    kept = [word for word in words if word.startswith(("convert.", "name="))]
    if kept or not run.path("convert").exists():
        run = rerun(run, kept, "convert", tell, stages, extra)
    ours = replace(load_config(run), until="fetch")
    model = next(
        planned
        for planned in plan(ours, stages, store_of(ours), run, pinned=True)
        if planned.stage.name == "fetch_model"
    )
    return (
        run,
        settle_from_run(config, stages, store_of(ours), run),
        model.input().dir if model.artifact and not model.lost else None,
    )


def whole_model(
    result: RunDirectory,
    config: Config,
    tell: Callable[[str], None],
    stages: Sequence[Stage],
    extra: Path | None = None,
) -> Path:
    """The directory of a result as one model: merged, which is made first where it is not there, or what was
    trained as a whole.
    """
    if config.algo.uses_adapter:
        return rerun(result, [], "merge", tell, stages, extra).path("merge").resolve()
    return result.path("convert").resolve()


def _called(before: Config, after: Config) -> str:
    """What a result of other wishes is called: `step20`, `best`, or the groups that differ."""
    step = after.convert.step
    if step != before.convert.step:
        return f"step{step}" if isinstance(step, int) else step
    old = {path: value for path, _, value in leaves(before)}
    return "-".join(
        dict.fromkeys(
            path.partition(".")[0]
            for path, declared, value in leaves(after)
            if declared.kind == "identity" and value != old[path]
        )
    )
