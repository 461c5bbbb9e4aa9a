"""Nulls that a columnar schema filled in: a table has all keys in all rows, and so have the calls and tools
that lay in one.

A null among the arguments of a call is filler where this tool's own schema declares no such key. Without a
schema it is where the key has a value only in calls of other tools of the source (`tuner.data.survey.scan`),
and so it is with what stands beside the schema in a tool's definition. A key that is declared and may be null
stays; so does what can't be told, and is counted. In a tool's schema no keyword may be null, but for those
that hold a value of the author's, such as `default`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tuner.data.conversation import Call, Conversation, Message
from tuner.data.formats.tool_schema import (
    BY_NAME,
    FILLER,
    NULLABLE,
    UNKNOWN,
    ToolSchema,
    is_null,
    tool_schemas,
)

VALUES = frozenset(("default", "const", "example", "examples", "enum"))
"""keywords of a schema that hold values, among which null is one"""
BESIDE = "/"
"""stands before a key of a tool's definition where that is no argument"""

Decide = Callable[[str, str], bool]
"""path of a null, and what its schema says of it → whether it stays"""


@dataclass(kw_only=True, slots=True)
class Nulls:
    """Nulls of some rows, by tool and key."""

    arguments: Counter[str] = field(default_factory=Counter)
    """left out of calls"""
    tools: Counter[str] = field(default_factory=Counter)
    """left out of the definitions of tools"""
    doubtful: Counter[str] = field(default_factory=Counter)
    """kept, as it can't be told whether somebody meant them"""

    def add(self, other: "Nulls") -> None:
        """Count those too."""
        for mine, more in (
            (self.arguments, other.arguments),
            (self.tools, other.tools),
            (self.doubtful, other.doubtful),
        ):
            mine.update(more)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.arguments or self.tools or self.doubtful)


def stripped(conversation: Conversation, filler: frozenset[tuple[str, str]], found: Nulls) -> Conversation:
    """The same without filler, which is counted in `found`; what `filler` holds is known to be some."""
    tools = conversation.tools
    if tools and any(map(_holds_null, tools)):
        tools = tuple(_tool(tool, filler, found) for tool in tools)
    messages = conversation.messages
    if any([message.calls for message in messages]) and any(
        _holds_null(call.arguments) for message in messages for call in message.calls
    ):
        schemas = tool_schemas(tools)
        messages = tuple(
            replace(message, calls=_calls(message, schemas, filler, found)) if message.calls else message
            for message in messages
        )
    if tools is conversation.tools and messages is conversation.messages:
        return conversation
    return replace(conversation, tools=tools, messages=messages)


def _calls(
    message: Message, schemas: Mapping[str, Any], filler: frozenset[tuple[str, str]], found: Nulls
) -> tuple[Call, ...]:
    def without(call: Call) -> Call:
        def stays(path: str, kind: str) -> bool:
            goes = kind == FILLER or (kind == UNKNOWN and (call.name, path) in filler)
            if goes:
                found.arguments[f"{call.name}.{path}"] += 1
            elif kind != NULLABLE:
                found.doubtful[f"{call.name}.{path}"] += 1
            return not goes

        return (
            replace(call, arguments=_kept(call.arguments, schemas.get(call.name), "", stays))
            if _holds_null(call.arguments)
            else call
        )

    return tuple(map(without, message.calls))


def parts_of(tools: tuple[Any, ...], *, null: bool) -> Iterator[tuple[str, str]]:
    """The keys of tools' definitions that are null, or those that are not: (tool, key)."""
    for tool in tools:
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if isinstance(function, Mapping):
            yield from (
                (str(function.get("name")), f"{BESIDE}{key}")
                for key, part in function.items()
                if (part is None) == null
            )


def nulls_of(arguments: Any, schema: Any) -> Iterator[str]:
    """The paths of those nulls of a call of which its tool's schema says nothing."""
    found: list[tuple[str, str]] = []

    def stays(path: str, kind: str) -> bool:
        found.append((path, kind))
        return True

    if _holds_null(arguments):
        _kept(arguments, schema, "", stays)
    yield from (path for path, kind in found if kind == UNKNOWN)


def values_of(arguments: Any, path: str = "") -> Iterator[str]:
    """The paths at which a call has a value."""
    if isinstance(arguments, list):
        for part in arguments:
            yield from values_of(part, f"{path}[]")
    elif isinstance(arguments, Mapping):
        for key, part in arguments.items():
            if not is_null(part):
                here = _path(path, key)
                yield here
                yield from values_of(part, here)


def _holds_null(value: Any) -> bool:
    open_ = [value]
    while open_:
        inner = open_.pop()
        for part in (
            inner.values() if isinstance(inner, Mapping) else inner if isinstance(inner, list) else ()
        ):
            if part is None:
                return True
            if isinstance(part, dict | list):
                open_.append(part)
    return False


def _path(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _kept(value: Any, schema: "ToolSchema | None", path: str, stays: Decide) -> Any:
    """A value without the nulls that don't stay."""
    if isinstance(value, list):
        inner = schema.item() if schema else None
        return [_kept(part, inner, f"{path}[]", stays) for part in value]
    if not isinstance(value, Mapping):
        return value
    result = {}
    for key, part in value.items():
        kind, inner = schema.named(key) if schema else (UNKNOWN, None)
        here = _path(path, key)
        if part is None or (is_null(part) and kind in (FILLER, UNKNOWN)):
            if stays(here, kind):
                result[key] = part
        else:
            result[key] = _kept(part, inner, here, stays)
    return result


def _tool(tool: Any, filler: frozenset[tuple[str, str]], found: Nulls) -> Any:
    """Without nulls among the keywords of its schema; those beside it may be meant, but for what `filler`
    holds.
    """
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not _holds_null(tool):
        return tool
    name = str(function.get("name"))
    kept: dict[str, Any] = {}
    for key, value in function.items():
        if value is not None:
            kept[key] = _schema(value, f"{name}.{key}", found) if key == "parameters" else value
        elif (name, f"{BESIDE}{key}") in filler:
            found.tools[f"{name}.{key}"] += 1
        else:
            found.doubtful[f"{name}.{key}"] += 1
            kept[key] = value
    return {**tool, "function": kept}


def _schema(schema: Any, path: str, found: Nulls, *, names: bool = False) -> Any:
    """`names`: the keys are names of the author's, and no keywords."""
    if isinstance(schema, list):
        return [_schema(part, f"{path}[]", found) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    result = {}
    for key, part in schema.items():
        here = _path(path, key)
        if key in VALUES and not names and not (part is None and key == "enum"):
            if part is None or (key not in ("enum", "examples") and _holds_null(part)):
                found.doubtful[here] += 1
            result[key] = part
        elif is_null(part) and not (key in BY_NAME and part and not names):
            found.tools[here] += 1
        else:
            result[key] = _schema(part, here, found, names=not names and key in BY_NAME)
    return result
