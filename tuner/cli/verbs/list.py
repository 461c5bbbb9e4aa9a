"""`list`: the options of each group."""

from tuner.cli.verb import CommandLine, Verb


def run(line: CommandLine) -> int:
    from tuner.config.options import show_options

    return show_options(list(line.bare), line.extra, as_json="--json" in line.flags)


VERB = Verb(
    name="list",
    words="[GROUP] [F]",
    help="models, algos, data, machines, evals and chat templates whose name or line contains F",
    run=run,
    examples={
        "list model internlm": "the models of the catalogue that InternLM is about",
        "list chats": "the chat templates",
    },
    flags={"--json": "for machines"},
    fields=False,
)
