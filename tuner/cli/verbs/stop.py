"""`stop RUN`: a run that is training saves and ends. What it saved can be used, and the same command
continues it.
"""

from functools import partial

from tuner.cli.on_a_run import find_one
from tuner.cli.verb import CommandLine, Verb


def run(line: CommandLine) -> int:
    from tuner.api.stopping import stop_run
    from tuner.pipeline.advice import command_on

    found = find_one(line)
    reached = stop_run(found, partial(print, flush=True))
    if reached is None:
        print(f"{found.dir.name} had just finished")
        return 0
    print(
        f"{found.dir.name} is stopped at {reached}\n"
        f"  use what is there   {command_on(found, 'evaluate')}   (or convert, merge, chat)\n"
        f"  continue training   the same command again"
    )
    return 0


VERB = Verb(
    name="stop",
    words="RUN",
    help="end a run that is training, once it has saved; later stages can use what it saved",
    run=run,
    examples={
        "stop last": "the run that trains",
        "stop support": "one of that name",
    },
    on_a_run=True,
)
