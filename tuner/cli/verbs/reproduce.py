"""`reproduce RUN`: make a finished run again, and compare."""

import json

from tuner.cli.on_a_run import fields_of_run, find_one
from tuner.cli.verb import CommandLine, Verb
from tuner.errors import ConfigError

DIFFERS = 4
"""the exit code where something differs"""


def run(line: CommandLine) -> int:
    from tuner.api import reproduce
    from tuner.report.reproduction import to_text

    run = find_one(line)
    if words := fields_of_run(line):
        raise ConfigError(
            f"reproduce makes a run again as it was recorded, so it takes no fields ({', '.join(words)})."
        )
    told = reproduce(run.dir, keep="--keep" in line.flags)
    print(json.dumps(told, ensure_ascii=False, indent=1) if "--json" in line.flags else to_text(told))
    return 0 if told["equal"] else DIFFERS


VERB = Verb(
    name="reproduce",
    words="RUN",
    help=(
        "make a finished run again in a clean root and compare each stage; exits 4 with the first difference "
        "and its likely cause"
    ),
    run=run,
    examples={
        "reproduce last": "is it the same again, bit for bit",
        "reproduce support --json": "for scripts",
    },
    flags={"--keep": "leaves the clean root", "--json": "for machines"},
    fields=False,
    on_a_run=True,
)
