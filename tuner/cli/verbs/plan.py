"""`plan`: what would run, and why."""

import json
from collections.abc import Collection
from typing import TYPE_CHECKING

from tuner.cli.verb import CommandLine, Verb

if TYPE_CHECKING:
    from tuner.config.schema import Config


def run(line: CommandLine) -> int:
    from tuner.api import prepare

    if "-m" in line.flags:
        from tuner.cli.sweep_plan import plan_sweep

        return plan_sweep(line.words, line.flags, extra=line.extra)
    return plan_config(prepare(line.words, line.extra), line.flags)


def plan_config(config: "Config", flags: Collection[str]) -> int:
    """Print what would run; with --check, 3 says that something would."""
    from tuner.api import look_ahead
    from tuner.cli.plan_text import plan_dict, plan_text
    from tuner.pipeline.run import RunDirectory

    directory = RunDirectory.of(config)
    steps = look_ahead(config, directory)
    if "--json" in flags:
        print(json.dumps(plan_dict(steps, config, directory), ensure_ascii=False, indent=1))
    else:
        print(plan_text(steps, config, directory))
    return 3 if "--check" in flags and any(step.to_do for step in steps) else 0


VERB = Verb(
    name="plan",
    help="what would run, and why",
    run=run,
    examples={
        "plan algo.optim.lr=1e-4": "what another rate would make again, and why",
        "plan --check until=tokenize": "for scripts: is there anything to do",
    },
    flags={
        "-m": "the plan of each job of a sweep",
        "--check": "exits 3 when there is work",
        "--json": "for machines",
    },
    recipes=True,
    own_words=0,
)
