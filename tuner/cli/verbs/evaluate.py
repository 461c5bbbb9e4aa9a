"""`evaluate RUN`: measure a result again."""

from tuner.cli.on_a_run import rerun_until
from tuner.cli.verb import CommandLine, Verb


def run(line: CommandLine) -> int:
    return rerun_until("evaluate", line)


VERB = Verb(
    name="evaluate",
    words="RUN",
    help="evaluate again: another step, other questions",
    run=run,
    examples={
        "evaluate support 'eval.prompts=[Who are you?,你是谁？]'": "other questions",
        "evaluate last convert.step=best": "another step",
    },
    on_a_run=True,
)
