"""argv → verb, flags, recipes and overrides."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from tuner.cli.verb import CommandLine, Verb
from tuner.cli.verbs import VERBS
from tuner.errors import ConfigError, did_you_mean

FLAGS = {flag for verb in VERBS.values() for flag in verb.flags}
SPELLINGS = {
    "-h": "--help",
    "-V": "--version",
    "-q": "--quiet",
    "-v": "--verbose",
    "--multirun": "-m",
    "-cd": "--config-dir",
}
"""another spelling of an option → the one that stands for both"""
HYDRAS = {
    "--cfg -c --resolve --package -p": "python -m tuner config shows the composed config.",
    "--info -i": "python -m tuner config shows what a config is composed of, and `list` what there is.",
    "--config-name -cn": "A config of your own is a recipe: python -m tuner my.yaml.",
    "--config-path -cp": "-cd DIR is for a directory of your own options.",
}
"""options of Hydra's that are none here → what to type instead"""
OPTIONS = ("--help", "--version", "--quiet", "--verbose", "--config-dir", "--completion")
"""what goes with every verb"""
SHELLS = ("bash", "zsh", "fish")


def parse(argv: Sequence[str]) -> CommandLine:
    """Take a command line apart. Raises ConfigError."""
    verb: str | None = None
    bare: list[str] = []
    typed: list[str] = []
    flags: set[str] = set()
    valued: dict[str, str] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        option = SPELLINGS.get(word, word)
        if option in ("--config-dir", "--completion"):
            if not rest:
                what = (
                    "a directory" if option == "--config-dir" else f"{', '.join(SHELLS[:-1])} or {SHELLS[-1]}"
                )
                raise ConfigError(f"{word} needs {what} after it.")
            valued[option] = rest.pop(0)
        elif option in FLAGS or option in OPTIONS:
            flags.add(option)
        elif word.startswith("-"):
            for theirs, instead in HYDRAS.items():
                if word in theirs.split():
                    raise ConfigError(f"{word} is an option of Hydra's, and none here. {instead}")
            raise ConfigError(f"{word} is not an option.{_instead(word, rest)}")
        elif "=" in word or (word.startswith("~") and not word.startswith("~/")):
            typed.append(word)
        elif word in VERBS and verb is None and not bare:
            verb = word
        else:
            bare.append(word)
    if "--help" in flags:
        verb, bare, flags = "help", [verb] if verb else [], set()
    if {"--quiet", "--verbose"} <= flags:
        raise ConfigError("--quiet says less and --verbose says more: give one of them.")
    chosen = VERBS[verb or "run"]
    recipe, own = _read_recipes(chosen, bare, argv) if chosen.recipes else ([], bare)
    for flag in sorted(flags - set(OPTIONS) - chosen.flags.keys()):
        takers = sorted(name for name, other in VERBS.items() if flag in other.flags)
        raise ConfigError(f"{flag} does not go with {chosen.name}, but with {' and '.join(takers)}.")
    directory, shell = valued.get("--config-dir"), valued.get("--completion")
    if shell is not None and shell not in SHELLS:
        raise ConfigError(f"--completion knows {', '.join(SHELLS[:-1])} and {SHELLS[-1]}, not {shell!r}.")
    return CommandLine(
        verb=chosen.name,
        bare=own,
        words=recipe + typed,
        flags=frozenset(flags),
        extra=Path(directory).expanduser() if directory is not None else None,
        completion=shell,
    )


def _instead(word: str, rest: Sequence[str]) -> str:
    """What to type in place of an option that is none: fields are set without dashes."""
    from tuner.config.build import field_paths
    from tuner.config.other_names import our_field

    name, sign, value = word.lstrip("-").partition("=")
    known = field_paths()
    field = name if name in known else our_field(name, known)
    if field is None:
        return did_you_mean(word, [*FLAGS, *OPTIONS])
    given = value if sign else rest[0] if rest and not rest[0].startswith("-") else "VALUE"
    return f" Fields are set without dashes: {field}={given}."


def _read_recipes(verb: Verb, bare: Sequence[str], argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides of the recipes among the bare words, and the words that are the verb's own."""
    from tuner.config.other_names import our_verb
    from tuner.config.recipes import read_recipe

    end = len(bare) - (verb.own_words or 0)
    overrides: list[str] = []
    own: list[str] = []
    for word in bare[: max(end, 0)]:
        if word.endswith((".yaml", ".yml")):
            overrides += read_recipe(Path(word).expanduser())
        elif verb.own_words is None:
            own.append(word)
        else:
            if theirs := our_verb(word):
                line = [theirs if other == word else other for other in argv]
                raise ConfigError(f"{word!r} is called {theirs} here: python -m tuner {shlex.join(line)}")
            if verbs := [other for other in bare if other in VERBS]:
                line = [verbs[0], *(other for other in argv if other != verbs[0])]
                raise ConfigError(
                    f"{word!r} is not a verb, and the verb comes first: python -m tuner {shlex.join(line)}"
                )
            known = " A bare word is a verb, which comes first, or a recipe, which ends in .yaml."
            raise ConfigError(
                f"{word!r} is not a verb.{did_you_mean(word, VERBS) or _equal_of_xtuners(word) or known}"
            )
    return overrides, own + list(bare[max(end, 0) :])


def _equal_of_xtuners(word: str) -> str:
    """What writes the equal recipe, where `word` is the name of one of XTuner's configs."""
    from tuner.config.compose import group_options
    from tuner.config.xtuner_names import bare_name, equal_recipe

    try:
        equal_recipe(bare_name(word), group_options())
    except ConfigError:
        return ""
    return f" It is a config of XTuner's, whose equal is a recipe: python -m tuner copy {bare_name(word)}"
