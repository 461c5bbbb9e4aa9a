"""Which stages the words `until` and `redo` mean, and which come before or after them."""

from collections.abc import Collection, Sequence

from tuner.config.schema import Config
from tuner.errors import ConfigError, did_you_mean
from tuner.pipeline.stage import Stage


def stop_words(stages: Sequence[Stage]) -> list[str]:
    """What `until` and `redo` take, in the order of the pipeline."""
    return list(dict.fromkeys(stage.word for stage in stages if stage.stop))


def check_stop_words(config: Config, stages: Sequence[Stage]) -> None:
    """Raise ConfigError where `until` or `redo` names no stage, or the two contradict each other."""
    words, problems = stop_words(stages), []
    for path, word in (("until", config.until), ("redo", config.redo)):
        if word is not None and word not in words:
            problems.append(
                f"{path} is {word!r}, but must be one of {', '.join(words)}.{did_you_mean(word, words)}"
            )
    if not problems and config.until and config.redo and words.index(config.redo) > words.index(config.until):
        problems.append(f"redo={config.redo} comes after until={config.until}: nothing would be built again.")
    if problems:
        raise ConfigError(" ".join(problems))


def stages_named(stages: Sequence[Stage], word: str) -> set[str]:
    """The stages that a word of `until` or `redo` means: `fetch` is both fetches."""
    return {stage.name for stage in stages if stage.stop and stage.word == word}


def target_stages(stages: Sequence[Stage], until: str | None) -> set[str]:
    """The stages whose artifacts the person asks for."""
    return stages_named(stages, until) if until else {stages[-1].name}


def stages_until(stages: Sequence[Stage], until: str | None) -> list[Stage]:
    """The stages up to and with `until`."""
    last = max(i for i, stage in enumerate(stages) if stage.name in target_stages(stages, until))
    return list(stages[: last + 1])


def stages_to_redo(stages: Sequence[Stage], word: str) -> set[str]:
    """The stages that `redo=word` builds again: those it names, and all that are made from them."""
    return with_downstream(stages, stages_named(stages, word))


def with_downstream(stages: Sequence[Stage], names: Collection[str]) -> set[str]:
    """Some stages, and all that are made from them."""
    found = set(names)
    for stage in stages:  # in the order of the pipeline, so one pass is enough
        if found & set(stage.upstream):
            found.add(stage.name)
    return found


def stages_up_to_train(stages: Sequence[Stage]) -> set[str]:
    """The stages up to and with train: what a verb on a run takes as it is."""
    last = next(i for i, stage in enumerate(stages) if stage.name == "train")
    return {stage.name for stage in stages[: last + 1]}
