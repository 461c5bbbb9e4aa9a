"""What a verb of the command line is, and the command line that it is handed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tuner.config.schema import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class CommandLine:
    """A command line, taken apart."""

    verb: str
    bare: Sequence[str] = ()
    """words that are neither overrides nor recipes: what the verb is about"""
    words: list[str] = field(default_factory=list)
    """overrides: a recipe's first, then those typed"""
    flags: frozenset[str] = frozenset()
    extra: Path | None = None
    """the -cd directory"""
    completion: str | None = None
    """the shell whose completion script is asked for"""

    def compose(self) -> "Config":
        """The config that the words name. Raises ConfigError."""
        from tuner.config.compose import compose
        from tuner.pipeline.selection import check_stop_words
        from tuner.stages import STAGES

        config = compose(self.words, extra=self.extra)
        check_stop_words(config, STAGES)
        return config


@dataclass(frozen=True, kw_only=True, slots=True)
class Verb:
    """A verb. `--help`, shell completion and the table in the README are made from these fields."""

    name: str
    words: str = ""
    """what follows the name, as `--help` shows it: `RUN KIND`"""
    help: str
    """what it does, in a line or two"""
    run: Callable[[CommandLine], int]
    """does it, and returns the exit code; imports inside itself what is heavy"""
    flags: Mapping[str, str] = field(default_factory=dict)
    """the flags that it takes, with what each does"""
    on_a_run: bool = False
    """whether it is about runs that are there"""
    recipes: bool = False
    """whether YAML files among its bare words are recipes"""
    examples: Mapping[str, str]
    """two command lines that run, after `python -m tuner`, with what each is for"""
    fields: bool = True
    """whether fields of the config concern it"""
    own_words: int | None = None
    """beside recipes, it takes just so many bare words, the last ones; None where it looks at them itself"""

    @property
    def usage(self) -> str:
        return f"{self.name} {self.words}".rstrip()

    @property
    def about(self) -> str:
        """What it does, with its flags; those of one letter are explained among the options."""
        flags = [f"{flag} {does}" for flag, does in self.flags.items() if flag.startswith("--")]
        return f"{self.help}; {', '.join(flags)}" if flags else self.help
