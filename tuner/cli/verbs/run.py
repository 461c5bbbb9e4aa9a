"""`run`, which is also what happens without a verb."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from tuner.cli.verb import CommandLine, Verb
from tuner.errors import ConfigError

if TYPE_CHECKING:
    from tuner.config.schema import Config


def run(line: CommandLine) -> int:
    from tuner.api import prepare, to_stderr

    if "-m" not in line.flags:
        return run_config(prepare(line.words, line.extra), to_stderr, as_json="--json" in line.flags)
    if "--json" in line.flags:
        raise ConfigError("run --json tells the facts of one run, and -m makes several: leave one out.")
    from tuner.cli.sweep import sweep

    # stages that redo= names are built again once, not by every job
    return sweep(line.words, partial(run_config, tell=to_stderr, redone=set()), extra=line.extra)


def run_config(
    config: "Config", tell: Callable[[str], None], redone: set[str] | None = None, *, as_json: bool = False
) -> int:
    """Run the pipeline; its summary goes to standard output."""
    from tuner.api import execute_config
    from tuner.cli.plan_text import summary, summary_json

    done = execute_config(config, tell, redone)
    print(summary_json(done) if as_json else summary(done))
    return 0


VERB = Verb(
    name="run",
    help="run the pipeline; the same as no verb",
    run=run,
    flags={
        "-m": "a sweep over the values that commas separate",
        "--json": "ends with a line of facts for machines",
    },
    recipes=True,
    own_words=0,
)
