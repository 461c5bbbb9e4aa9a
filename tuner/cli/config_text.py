"""A composed config as YAML, and the fields of the config with their documentation."""

import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tuner.config.build import describe_type, field_paths
from tuner.config.compose import compose
from tuner.config.fields import Declaration
from tuner.config.recipes import defaults_lines, field_documentation, on_one_line, recipe_values
from tuner.config.schema import Config
from tuner.config.view import leaves
from tuner.errors import ConfigError, did_you_mean

WIDTH = 108


def config_text(config: Config, extra: Path | None = None) -> str:
    """The config as YAML, which is a recipe that means the same. Behind a value that is not that of the
    default run stands the default's.
    """
    default = recipe_values(compose([]))
    nested: dict[str, Any] = {}
    for path, value in recipe_values(config).items():
        *groups, name = path.split(".")
        inner = nested
        for group in groups:
            inner = inner.setdefault(group, {})
        before = on_one_line(default[path]) if path in default else "nothing"
        mark = "" if default.get(path) == value else f"  # {before}"
        inner[name] = _Line(f"{on_one_line({name: value})}{mark}")
    head = "# What stands behind a value is that of the default run."
    return "\n".join([head, *defaults_lines(config, extra), *_lines(nested, 0)])


class _Line(str):
    """A field's line."""

    __slots__ = ()


def _lines(nested: dict[str, Any], depth: int) -> Iterator[str]:
    """The fields of a group, and then the groups inside it."""
    pad = "  " * depth
    yield from (f"{pad}{line}" for line in nested.values() if isinstance(line, _Line))
    for name, inner in nested.items():
        if not isinstance(inner, _Line):
            yield f"{pad}{name}:"
            yield from _lines(inner, depth + 1)


def refuse_bare(words: Sequence[str]) -> None:
    """Raise ConfigError for words that are about nothing here."""
    if words:
        raise ConfigError(
            f"{words[0]!r} is neither a recipe nor field=value. python -m tuner config --fields {words[0]} "
            "shows the fields that it is about."
        )


def fields_text(words: Sequence[str] = ()) -> str:
    """All fields, or those whose name or documentation has one of the words: name, type and default; then
    what it is, and what it decides.
    """
    documented, kinds = dict(field_documentation(Config)), field_paths()
    found = [
        (path, declared, value)
        for path, declared, value in leaves(Config())
        if not words or any(_is_about(word.lower(), path, documented[path]) for word in words)
    ]
    if not found:
        raise ConfigError(
            f"no field's name or documentation has {' or '.join(words)}.{did_you_mean(words[0], documented)}"
        )
    return "\n\n".join(
        "\n".join(
            [
                f"{path} = {on_one_line(value)}    {describe_type(kinds[path])}",
                *_wrapped(documented[path]),
                *_wrapped(decides(declared)),
            ]
        )
        for path, declared, value in found
    )


def _is_about(word: str, path: str, text: str) -> bool:
    return word in path.lower() or re.search(rf"\b{re.escape(word)}", text.lower()) is not None


def decides(declared: Declaration) -> str:
    """What a field decides, in words."""
    if declared.kind == "neutral":
        return "decides speed, rounding or display only: nothing is made again"
    if declared.kind == "place":
        return "says where content lies: the content decides, and not the place"
    stages = ", ".join(sorted(declared.stages))
    return f"decides what {stages} makes" if stages else "tells runs apart"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
