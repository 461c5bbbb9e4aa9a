"""`help`: the page of a verb, or of the whole command."""

from tuner.cli.verb import CommandLine, Verb
from tuner.errors import ConfigError, did_you_mean


def run(line: CommandLine) -> int:
    from tuner.cli.help import help_text, verb_help
    from tuner.cli.verbs import VERBS

    if not line.bare:
        print(help_text(line.extra))
        return 0
    name, *more = line.bare
    if name not in VERBS or more:
        hint = did_you_mean(name, VERBS) or " For the fields there is python -m tuner config --fields WORD."
        raise ConfigError(f"help is about one verb, and {' '.join(line.bare)!r} is none.{hint}")
    print(verb_help(VERBS[name]))
    return 0


VERB = Verb(
    name="help",
    words="[VERB]",
    help="what a verb does, with examples; the same as VERB --help",
    run=run,
    examples={"help plan": "one verb", "help": "all of it"},
    fields=False,
)
