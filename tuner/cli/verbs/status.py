"""`status`: every run under the root."""

from tuner.cli.verb import CommandLine, Verb
from tuner.errors import ConfigError


def run(line: CommandLine) -> int:
    if "--sweep" in line.flags:
        from tuner.cli.on_a_run import output_root
        from tuner.cli.sweep_ranking import show_sweep

        if len(line.bare) > 1:
            raise ConfigError("status --sweep shows one sweep: a name, a digest, or nothing for the last.")
        return show_sweep(output_root(line), *line.bare, as_json="--json" in line.flags)
    if line.bare:
        raise ConfigError(
            f"status shows all runs under the root, and takes no name ({' '.join(line.bare)}); "
            "status --sweep takes that of a sweep."
        )
    from tuner.cli.status_table import show_status

    return show_status(line.compose(), as_json="--json" in line.flags, every="--all" in line.flags)


VERB = Verb(
    name="status",
    help="all runs under the root: stages, progress, loss, disk",
    run=run,
    examples={
        "status": "the runs under outputs",
        "status root=elsewhere --json": "those of another root, for machines",
    },
    flags={
        "--all": "also lists those of which nothing was made",
        "--sweep": "ranks the jobs of the last sweep, or of the one that is named after it",
        "--json": "for machines",
    },
)
