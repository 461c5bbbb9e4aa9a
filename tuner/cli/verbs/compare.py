"""`compare RUN RUN`: runs side by side."""

from tuner.cli.on_a_run import find_several, output_root
from tuner.cli.verb import CommandLine, Verb


def run(line: CommandLine) -> int:
    from tuner.cli.compare_runs import compare

    root = output_root(line)
    return compare(find_several(line, root), root, as_json="--json" in line.flags)


VERB = Verb(
    name="compare",
    words="RUN RUN",
    help="fields that differ, scores, curves and answers side by side, here and as a page",
    run=run,
    examples={
        "compare last support": "in the terminal and as a page",
        "compare last support --json": "for machines",
    },
    flags={"--json": "for machines"},
    on_a_run=True,
)
