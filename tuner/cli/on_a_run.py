"""What verbs on a run have in common: which run is meant, and which words are about it."""

from pathlib import Path
from typing import TYPE_CHECKING

from tuner.cli.verb import CommandLine
from tuner.errors import ConfigError

if TYPE_CHECKING:
    from tuner.pipeline.run import RunDirectory

PLACES = ("root=", "store=")
"""words that say where runs are, and nothing of a run"""


def output_root(line: CommandLine) -> Path:
    """Where the runs are. Raises ConfigError."""
    from tuner.config.compose import compose

    return Path(compose([word for word in line.words if word.startswith(PLACES)], whole=False).root)


def fields_of_run(line: CommandLine) -> list[str]:
    """The overrides that are about the run itself."""
    return [word for word in line.words if not word.startswith(PLACES)]


def find_one(line: CommandLine, *, more_words: bool = False) -> "RunDirectory":
    """The run that the first bare word names; `more_words` may follow. Raises ConfigError."""
    from tuner.pipeline.find_run import find_run

    if not line.bare or (len(line.bare) > 1 and not more_words):
        raise _needs(line, "one run")
    return find_run(output_root(line), line.bare[0])


def find_several(line: CommandLine, root: Path) -> list["RunDirectory"]:
    """The runs that the bare words name, two at least. Raises ConfigError."""
    from tuner.pipeline.find_run import find_run

    if len(line.bare) < 2:
        raise _needs(line, "two runs or more")
    return [find_run(root, word) for word in line.bare]


def rerun_until(stage: str, line: CommandLine) -> int:
    """Bring the run that the line names to a later stage, and print its summary. Raises TunerError."""
    from tuner.api import to_stderr
    from tuner.cli.plan_text import summary
    from tuner.pipeline.rerun import rerun
    from tuner.stages import STAGES

    print(summary(rerun(find_one(line), fields_of_run(line), stage, to_stderr, STAGES, line.extra)))
    return 0


def _needs(line: CommandLine, runs: str) -> ConfigError:
    return ConfigError(
        f"{line.verb} needs {runs}: a name, a path, a digest, or `last`. `python -m tuner status` lists them."
    )
