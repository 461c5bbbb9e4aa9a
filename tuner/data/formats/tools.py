"""Tools that a row offers, and calls of them."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from tuner.data.conversation import Call, RowError
from tuner.data.formats.fields import named, parsed, quoted, sound, text, told


def tools(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What the assistant may call: `tools` or `functions`, a list or JSON in a text, each in OpenAI's form. Bare functions are wrapped into it."""
    found = [(key, value) for key in ("tools", "functions") if (value := row.get(key))]
    if not found:
        return ()
    if len(found) > 1:
        raise RowError("the row has both tools and functions, and one of them is expected")
    key, value = found[0]
    return _written(value, key) if isinstance(value, str) else _all(value, key)


@lru_cache(maxsize=64)
def _written(value: str, key: str) -> tuple[Any, ...]:
    # the rows of a set often offer the same tools, and nobody writes into them
    return _all(parsed(value, key), key) if value.strip() else ()


def _all(value: Any, key: str) -> tuple[Any, ...]:
    if value in (None, {}, []):
        return ()
    if not isinstance(value, list):
        raise RowError(f"{key} must be a list of functions, and this is {told(value)}")
    sound(value, key)
    return tuple(_tool(parsed(entry, key) if isinstance(entry, str) else entry, key) for entry in value)


def _tool(value: Any, key: str) -> Any:
    if not isinstance(value, Mapping):
        raise RowError(f"{key} must be a list of functions, and one of them is {told(value)}")
    if "function" in value or value.get("type", "function") != "function":
        kind, inner = value.get("type", "function"), value.get("function")
        if kind != "function" or not isinstance(inner, Mapping):
            raise RowError(f'{key} has an entry of the type {told(kind)}; expected is {{"type": "function", "function": {{"name": …}}}}')
        _name(inner, key)
        return value if "type" in value else {"type": "function", **value}
    _name(value, key)
    return {"type": "function", "function": {name: part for name, part in value.items() if name != "type"}}


def calls(value: Any) -> tuple[Call, ...]:
    """OpenAI's `tool_calls`: a list of `{"id", "type": "function", "function": {"name", "arguments"}}`; the inner object alone is taken too."""
    if not isinstance(value, list):
        raise RowError(f"tool_calls must be a list, and this is {told(value)}")
    result = []
    for entry in value:
        if not isinstance(entry, Mapping):
            raise RowError(f"tool_calls must be a list of calls, and one of them is {told(entry)}")
        kind = entry.get("type")
        if kind not in (None, "function"):
            raise RowError(f"a call of the type {told(kind)}; only those of functions can be taken")
        result.append(call(entry.get("function", entry), entry.get("id")))
    return tuple(result)


def call(value: Any, id_: Any = None) -> Call:
    """`{"name", "arguments"}`; the arguments are an object, or one written as JSON in a text. None of them is none."""
    if not isinstance(value, Mapping):
        raise RowError(f'a call must be an object {{"name", "arguments"}}, and this is {told(value)}')
    name = _name(value, "a call")
    arguments = value.get("arguments")
    of = f"arguments of the call of {quoted(name)}"
    if isinstance(arguments, str):
        arguments = parsed(arguments, f"the {of}")
    elif arguments is not None:
        sound(arguments, f"the {of}")
    if arguments is not None and not isinstance(arguments, Mapping):
        raise RowError(f"the {of} must be an object, or a text that is JSON of one, and this is {told(arguments)}")
    return Call(name=name, arguments={} if arguments is None else arguments, id=None if id_ is None else text(id_, "the id of a call"))


def spoken(value: Any, name: str) -> tuple[Call, ...]:
    """`{"name", "arguments"}` or a list of them, as it is or as JSON in a text: ShareGPT's function_call, and the part of the type tool_call."""
    found = parsed(value, name) if isinstance(value, str) else value
    entries: Sequence[Any] = found if isinstance(found, list) else [found]
    if not entries:
        raise RowError(f"{name} must be a call, and this is an empty list")
    return tuple(call(entry, entry.get("id") if isinstance(entry, Mapping) else None) for entry in entries)


def _name(value: Mapping[str, Any], where: str) -> str:
    if not value.get("name"):
        raise RowError(f"{where} has a function without a name (its keys are {named(value)})")
    return text(value["name"], "the name of a function")
