"""`run`, which is also what happens without a verb."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from tuner.cli.verb import CommandLine, Verb

if TYPE_CHECKING:
    from tuner.config.schema import Config


def run(line: CommandLine) -> int:
    from tuner.api import prepare, to_stderr

    if "-m" not in line.flags:
        return run_config(prepare(line.words, line.extra), to_stderr)
    from tuner.cli.sweep import sweep

    # stages that redo= names are built again once, not by every job
    return sweep(line.words, partial(run_config, tell=to_stderr, redone=set()), extra=line.extra)


def run_config(config: "Config", tell: Callable[[str], None], redone: set[str] | None = None) -> int:
    """Run the pipeline; its summary goes to standard output."""
    from tuner.api import execute_config
    from tuner.cli.plan_text import summary

    print(summary(execute_config(config, tell, redone)))
    return 0


VERB = Verb(
    name="run",
    help="run the pipeline; the same as no verb",
    run=run,
    examples={
        "run algo=full algo.optim.lr=2e-5": "full fine-tuning, at a lower learning rate",
        "run -m algo=lora,full seed=1,2": "a sweep; equal stages are built once",
    },
    flags={"-m": "a sweep over the values that commas separate"},
    recipes=True,
    own_words=0,
)
