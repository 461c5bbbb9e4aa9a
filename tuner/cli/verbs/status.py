"""`status`: every run under the root."""

from tuner.cli.verb import CommandLine, Verb


def run(line: CommandLine) -> int:
    from tuner.cli.status_table import show_status

    return show_status(line.compose(), as_json="--json" in line.flags, every="--all" in line.flags)


VERB = Verb(
    name="status",
    help="all runs under the root: stages, progress, loss, disk",
    run=run,
    flags={"--all": "also lists those of which nothing was made", "--json": "for machines"},
)
