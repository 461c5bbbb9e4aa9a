"""Plain values → the frozen config tree: every key known, every value of its type, nothing that contradicts.

This is the only judge of a config: shipped YAML, recipes, the command line and a worker's job file all pass
through here.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tuner.config.schema import Config
from tuner.config.validate import validate
from tuner.errors import ConfigError, did_you_mean


def field_paths() -> dict[str, Any]:
    """Every leaf of the config, by dotted path, with its type."""

    def walk(cls: Any, path: str) -> Iterable[tuple[str, Any]]:
        hints = get_type_hints(cls)
        for f in fields(cls):
            if is_dataclass(hints[f.name]):
                yield from walk(hints[f.name], f"{path}{f.name}.")
            elif _node_of(hints[f.name]) is None:
                yield f"{path}{f.name}", hints[f.name]

    return dict(walk(Config, ""))


def _node_of(hint: Any) -> Any:
    """The class of the nodes in a list of nodes, or None for any other type."""
    return get_args(hint)[0] if get_origin(hint) is tuple and is_dataclass(get_args(hint)[0]) else None


def build_config(values: Mapping[str, Any], *, whole: bool = True) -> Config:
    """The config that `values` describe, a nested mapping in which every field is optional. Raises
    ConfigError.

    A config that is not `whole` may lack what a run needs, such as the path of `data=local`.
    """
    config: Config = _build(Config, values, "")
    if whole:
        validate(config)
    return config


def dump_config(config: Config) -> dict[str, Any]:
    """The nested mapping that builds an equal config: JSON and YAML can hold it.

    >>> build_config(dump_config(Config(seed=3)), whole=False) == Config(seed=3)
    True
    """
    values: dict[str, Any] = _plain(asdict(config))
    return values


def flatten(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested mapping, by dotted path.

    >>> list(flatten({"algo": {"r": 4, "freeze": []}, "choices": {}}))
    [('algo.r', 4), ('algo.freeze', []), ('choices', {})]
    """
    for key, item in values.items():
        if isinstance(item, dict) and item:
            yield from flatten(item, f"{path}{key}.")
        else:
            yield f"{path}{key}", item


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _build(cls: Any, values: Any, path: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path.rstrip('.')} is a group of fields, not a value; it was given {values!r}.")
    hints = get_type_hints(cls)
    if unknown := [key for key in values if key not in hints]:
        raise ConfigError(
            f"{path}{unknown[0]} is not a field of the config."
            f"{did_you_mean(f'{path}{unknown[0]}', field_paths())}"
        )
    built = {}
    for f in fields(cls):
        hint = hints[f.name]
        if is_dataclass(hint):
            built[f.name] = _build(hint, values.get(f.name, {}), f"{path}{f.name}.")
        elif node := _node_of(hint):
            built[f.name] = tuple(
                _build(node, item, f"{path}{f.name}.{i}.") for i, item in enumerate(values.get(f.name, ()))
            )
        elif f.name in values:
            built[f.name] = coerce(values[f.name], hint, f"{path}{f.name}")
        elif f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError(f"{path}{f.name} is missing and has no default.")
    return cls(**built)


def coerce(value: Any, hint: Any, path: str) -> Any:
    """`value` as the type `hint`; a number written as text counts, a number for a text does only where
    nothing is lost.
    """
    result = _as(value, hint)
    if result is not _NO:
        return result
    options = _options(hint)
    if (wrong := _wrong_member(value, options)) is not None:
        word, known = wrong
        raise ConfigError(
            f"{path} holds {word!r}, but its members are of {', '.join(known)}."
            f"{did_you_mean(str(word), known)}"
        )
    words = [str(word) for option in options if get_origin(option) is Literal for word in get_args(option)]
    raise ConfigError(
        f"{path} is {value!r}, but must be "
        f"{describe_type(hint)}.{did_you_mean(str(value), words) if words else ''}"
    )


def _wrong_member(value: Any, options: tuple[Any, ...]) -> tuple[Any, list[str]] | None:
    """The first of a list that is not among the words that it may hold, and these; None for anything else."""
    for option in options if isinstance(value, list | tuple) else ():
        if get_origin(option) is tuple and get_origin(kind := get_args(option)[0]) is Literal:
            return next(
                ((item, [*map(str, get_args(kind))]) for item in value if _as(item, kind) is _NO), None
            )
    return None


_NO: Any = object()


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _as(value: Any, hint: Any) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        # of 1 and 1.0, one is a count and the other a share
        options = [float, *args] if {int, float} <= {*args} and not _whole(value) else args
        return next((result for option in options if (result := _as(value, option)) is not _NO), _NO)
    if hint is NoneType:
        return None if value is None else _NO
    if origin is Literal:
        return value if value in args else _NO
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        items = [_as(item, kind) for item, kind in zip(value, kinds, strict=False)]
        return tuple(items) if len(value) == len(kinds) and _NO not in items else _NO
    if origin is dict and isinstance(value, Mapping):
        pairs = {_as(key, args[0]): _as(item, args[1]) for key, item in value.items()}
        return pairs if _NO not in pairs and _NO not in pairs.values() else _NO
    if hint is bool:
        return value if isinstance(value, bool) else _NO
    if hint is str:
        return (
            value
            if isinstance(value, str)
            else str(value)
            if isinstance(value, int) and not isinstance(value, bool)
            else _NO
        )
    if hint in (int, float):
        return _number(value, hint)
    return _NO


def _whole(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value) is not None)


def _number(value: Any, hint: type) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return _NO
    try:
        number = float(value)  # PyYAML reads 1e-4 as text
    except ValueError:
        return _NO
    if not math.isfinite(number):
        return _NO
    if hint is float:
        return number
    return int(value) if isinstance(value, int) else int(number) if number.is_integer() else _NO


def describe_type(hint: Any) -> str:
    """What a value of a type may be, in words."""
    return " or ".join(_describe(option) for option in _options(hint))


def _describe(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(str(word) for word in args)
    if origin is tuple:
        return (
            f"a list such as [{', '.join('1.0' if a is float else 'a' for a in args if a is not Ellipsis)}]"
        )
    names = {NoneType: "null", bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return "a mapping such as {key: text}" if origin is dict else names[hint]
