"""`reproduce RUN`: make a finished run again, and compare."""

import json

from tuner.cli.on_a_run import fields_of_run, find_one
from tuner.cli.verb import CommandLine, Verb
from tuner.errors import ConfigError

DIFFERS = 4
"""the exit code where something differs"""


def run(line: CommandLine) -> int:
    from tuner.api import execute_config, to_stderr
    from tuner.pipeline.reproduce import reproduce
    from tuner.report.reproduction import to_text
    from tuner.stages import STAGES

    run = find_one(line)
    if words := fields_of_run(line):
        raise ConfigError(
            f"reproduce makes a run again as it was recorded, so it takes no fields ({', '.join(words)})."
        )
    said: set[str] = set()

    def tell(text: str) -> None:
        """Each line once: a stage after the other is asked for."""
        if text not in said and not text.endswith(" done"):
            said.add(text)
            to_stderr(text)

    found = reproduce(
        run,
        STAGES,
        lambda config, directory: execute_config(config, tell, directory=directory),
        tell,
        keep="--keep" in line.flags,
    )
    told = found.to_json()
    print(json.dumps(told, ensure_ascii=False, indent=1) if "--json" in line.flags else to_text(told))
    return DIFFERS if found.first else 0


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
