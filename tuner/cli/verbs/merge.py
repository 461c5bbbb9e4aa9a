"""`merge RUN`: base and adapter in one model."""

from tuner.cli.on_a_run import rerun_until
from tuner.cli.verb import CommandLine, Verb


def run(line: CommandLine) -> int:
    return rerun_until("merge", line)


VERB = Verb(
    name="merge",
    words="RUN",
    help="write the merged model, where the run did not",
    run=run,
    examples={
        "merge last": "base and adapter in one directory",
        "merge support convert.step=best": "of another step",
    },
    on_a_run=True,
)
