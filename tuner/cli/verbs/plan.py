"""`plan`: what would run, and why."""

from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING

from tuner.cli.verb import CommandLine, Verb

if TYPE_CHECKING:
    from tuner.config.schema import Config


def run(line: CommandLine) -> int:
    from tuner.api import prepare

    if "-m" not in line.flags:
        return plan_config(prepare(line.words, line.extra), line.flags)
    from tuner.cli.sweep import sweep

    return sweep(line.words, partial(plan_config, flags=line.flags), extra=line.extra, dry=True)


def plan_config(config: "Config", flags: Collection[str]) -> int:
    """Print what would run; with --check, 3 says that something would."""
    from tuner.api import look_ahead
    from tuner.cli.plan_text import plan_json, plan_text
    from tuner.pipeline.run import RunDirectory

    directory = RunDirectory.of(config)
    steps = look_ahead(config, directory)
    print(plan_json(steps, config, directory) if "--json" in flags else plan_text(steps, config, directory))
    return 3 if "--check" in flags and any(step.to_do for step in steps) else 0


VERB = Verb(
    name="plan",
    help="what would run, and why",
    run=run,
    flags={
        "-m": "the plan of each job of a sweep",
        "--check": "exits 3 when there is work",
        "--json": "for machines",
    },
    recipes=True,
    own_words=0,
)
