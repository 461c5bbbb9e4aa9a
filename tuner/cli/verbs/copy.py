"""`copy`: the config of a command line as a recipe."""

from pathlib import Path

from tuner.cli.verb import CommandLine, Verb
from tuner.errors import ConfigError


def run(line: CommandLine) -> int:
    from tuner.config.recipes import write_recipe

    if len(line.bare) != 1:
        raise ConfigError("copy needs the file to write: python -m tuner copy my.yaml algo=full")
    return write_recipe(Path(line.bare[0]).expanduser(), line.compose())


VERB = Verb(
    name="copy",
    words="FILE",
    help="write the command's config as a recipe to edit and to run: python -m tuner FILE",
    run=run,
    recipes=True,
    own_words=1,
)
