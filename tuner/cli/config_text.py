"""A composed config as YAML, and the fields of the config with their documentation."""

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from typing import Any, get_type_hints

import yaml

from tuner.config.build import describe_type
from tuner.config.compose import compose
from tuner.config.fields import Declaration
from tuner.config.recipes import defaults_lines, field_documentation, recipe_values
from tuner.config.schema import Config
from tuner.config.view import leaves
from tuner.errors import ConfigError, did_you_mean

WIDTH = 108


def config_text(config: Config) -> str:
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
        before = _yaml(default[path]) if path in default else "nothing"
        inner[name] = _Line(f"{_yaml({name: value})}{'' if default.get(path) == value else f'  # {before}'}")
    head = "# What stands behind a value is that of the default run."
    return "\n".join([head, *defaults_lines(config), *_lines(nested, 0)])


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


def _yaml(value: Any) -> str:
    """A value, or a key and its value, on one line."""
    text = yaml.safe_dump(value, allow_unicode=True, default_flow_style=True, sort_keys=False, width=10**6)
    text = text.removesuffix("\n...\n").strip()
    return text[1:-1] if isinstance(value, dict) and len(value) == 1 else text


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
    documented, kinds = dict(field_documentation(Config)), dict(_types(Config))
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
                f"{path} = {_yaml(_plain(value))}    {describe_type(kinds[path])}",
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


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)


def _types(cls: type, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, hint in get_type_hints(cls).items():
        if is_dataclass(hint):
            yield from _types(hint, f"{path}{name}.")  # type: ignore[arg-type]
        else:
            yield f"{path}{name}", hint
