"""`copy`: the config of a command line as a recipe, or the equal of one of XTuner's configs."""

from dataclasses import replace
from pathlib import Path

from tuner.cli.verb import CommandLine, Verb
from tuner.errors import ConfigError

YAML = (".yaml", ".yml")


def run(line: CommandLine) -> int:
    from tuner.config.recipes import read_recipe, write_recipe

    if not line.bare:
        raise ConfigError("copy needs the file to write: python -m tuner copy my.yaml algo=full")
    *sources, last = line.bare
    file = Path(last).expanduser()
    folder = file if sources and (file.is_dir() or last.endswith("/")) else None
    if folder is None and not last.endswith(YAML):
        sources.append(last)
    words: list[str] = []
    differs: list[str] = []
    for source in sources:
        if source.endswith(YAML):
            words += read_recipe(Path(source).expanduser())
            name = Path(source).name
        else:
            name, theirs, says = _xtuners(source, line)
            words, differs, name = words + theirs, differs + says, f"{name}.yaml"
        if not last.endswith(YAML):
            file = (folder or Path()) / name
    config = replace(line, words=words + line.words).compose()
    command = write_recipe(file, config, differs, extra=line.extra)
    print("\n".join([*differs, f"wrote {file}; run it with: {command}"]))
    return 0


def _xtuners(word: str, line: CommandLine) -> tuple[str, list[str], list[str]]:
    """The name of XTuner's config that `word` means, the words of its equal, and what is to be said of it."""
    from tuner.config.compose import group_options
    from tuner.config.xtuner_names import STAND_IN, bare_name, equal_recipe

    name = bare_name(word)
    equal = equal_recipe(name, group_options(line.extra))
    says = [f"The equal of XTuner's {name}, but for this:", *(f"  {text}" for text in equal.differs)]
    if equal.own_data and not any(typed.startswith("data.path=") for typed in line.words):
        says.append(f"  Data: {STAND_IN} stands where your file belongs (data.path).")
    return name, equal.words, says


VERB = Verb(
    name="copy",
    words="FILE",
    help=(
        "write the command's config as a recipe to edit and to run: python -m tuner FILE; with the name of a "
        "config of XTuner's in front, or alone, its equal"
    ),
    run=run,
    examples={
        "copy my.yaml algo=full algo.epochs=2": "then: python -m tuner my.yaml",
        "copy internlm2_chat_7b_qlora_oasst1_e3": "the equal of XTuner's config of that name",
    },
)
