"""`clean [RUN]`: give disk back."""

from tuner.cli.verb import CommandLine, Verb


def run(line: CommandLine) -> int:
    from tuner.cli.cleanup import clean

    return clean(
        line.compose(),
        line.bare,
        dry_run="--dry-run" in line.flags,
        spare_recent="--all" not in line.flags,
        not_started="--not-started" in line.flags,
    )


VERB = Verb(
    name="clean",
    words="[RUN]",
    help="remove one run, or what no run refers to",
    run=run,
    examples={
        "clean --dry-run": "what could go",
        "clean support": "the run, not what others use of it",
    },
    flags={
        "--dry-run": "only lists",
        "--not-started": "removes the runs of which nothing was made",
        "--all": "does not spare what is younger than a day, and removes compiled kernels",
    },
    on_a_run=True,
)
