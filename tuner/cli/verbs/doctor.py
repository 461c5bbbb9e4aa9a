"""`doctor`: what this machine has and lacks."""

from tuner.cli.verb import CommandLine, Verb


def run(line: CommandLine) -> int:
    from tuner.cli.diagnosis import examine

    return examine(line.compose(), line.extra)


VERB = Verb(
    name="doctor",
    help="versions, GPU, disk, locks, shadowed YAML, and how to fix what is wrong",
    run=run,
    examples={
        "doctor": "this machine, and the runs under outputs",
        "doctor root=elsewhere": "with the runs under another root",
    },
)
