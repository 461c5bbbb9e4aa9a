"""`convert RUN`: a trained step as files."""

from tuner.cli.on_a_run import rerun_until
from tuner.cli.verb import CommandLine, Verb


def run(line: CommandLine) -> int:
    return rerun_until("convert", line)


VERB = Verb(
    name="convert",
    words="RUN",
    help="write a trained step as model files: convert.step=N, last or best",
    run=run,
    examples={
        "convert last convert.step=best": "the step with the lowest held-out loss",
        "convert support convert.step=last": "the newest; a number names any other that was kept",
    },
    on_a_run=True,
)
