"""`config`: the composed config, or what fields there are."""

from tuner.cli.verb import CommandLine, Verb


def run(line: CommandLine) -> int:
    from tuner.cli import config_text

    if "--fields" in line.flags:
        print(config_text.fields_text(line.bare))
    else:
        config_text.refuse_bare(line.bare)
        print(config_text.config_text(line.compose(), line.extra))
    return 0


VERB = Verb(
    name="config",
    words="[WORD]",
    help="the composed config as YAML, with what differs from the default run marked",
    run=run,
    examples={
        "config algo=qlora data.length=1024": "what a run of that would be",
        "config --fields warmup": "the fields that a word is about",
    },
    flags={"--fields": "shows all fields, or those whose name or text has WORD, with what each decides"},
    recipes=True,
)
