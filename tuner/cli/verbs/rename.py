"""`rename RUN NAME`: another name for a run."""

from tuner.cli.on_a_run import fields_of_run, find_one
from tuner.cli.verb import CommandLine, Verb


def run(line: CommandLine) -> int:
    from tuner.pipeline.rerun import relabel
    from tuner.stages import STAGES

    found = find_one(line, more_words=True)
    relabel(found, line.bare[1:], fields_of_run(line), STAGES)
    print(f"run     {found.dir}")
    return 0


VERB = Verb(
    name="rename",
    words="RUN NAME",
    help="give it another name; note=… and tags=[…] too",
    run=run,
    examples={
        "rename last support": "call it that",
        "rename support support-v2 'note=the second try'": "and say what it is",
    },
    on_a_run=True,
)
