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

VALUES = frozenset(("default", "const", "example", "examples", "enum"))
"""keywords of a schema that hold values, among which null is one"""
BY_NAME = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"))
"""those that hold schemas under names of the author's"""
ANY_OF = ("anyOf", "oneOf", "allOf")
TYPED = frozenset(("type", "enum", "const", "$ref", *ANY_OF))
BESIDE = "/"
"""stands before a key of a tool's definition where that is no argument"""
FILLER, NULLABLE, DECLARED, UNKNOWN = "filler", "nullable", "declared", "unknown"

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
        schemas = schemas_of(tools)
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


def schemas_of(tools: tuple[Any, ...]) -> dict[str, Any]:
    """The schema of each tool's arguments, by name."""
    functions = [
        tool["function"]
        for tool in tools
        if isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping)
    ]
    return {
        function["name"]: _Schema(root=function.get("parameters"))
        for function in functions
        if isinstance(function.get("name"), str)
    }


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


def is_null(value: Any) -> bool:
    """Whether a value is null, or an object that holds nothing but nulls."""
    return value is None or (isinstance(value, Mapping) and bool(value) and all(map(is_null, value.values())))


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Schema:
    """A part of a JSON schema, and all of it, in which its references point."""

    root: Any
    of: Any = ...

    def at(self, part: Any) -> "_Schema":
        return _Schema(root=self.root, of=part)

    def parts(self) -> list[Mapping[str, Any]]:
        """The schema, and those that it is put together from."""
        found: list[Mapping[str, Any]] = []
        open_ = [self.root if self.of is ... else self.of]
        while open_ and len(found) < 64:
            part = open_.pop()
            if not isinstance(part, Mapping) or any(part is one for one in found):
                continue
            found.append(part)
            open_ += [inner for word in ANY_OF if isinstance(part.get(word), list) for inner in part[word]]
            if isinstance(part.get("$ref"), str):
                open_.append(self._referred(part["$ref"]))
        return found

    def _referred(self, reference: str) -> Any:
        value = self.root
        for step in reference.removeprefix("#").strip("/").split("/"):
            value = (
                value.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(value, Mapping) else None
            )
        return value

    def named(self, key: str) -> tuple[str, "_Schema"]:
        """What it says of null under a key, and the schema of what else may stand there."""
        parts, known = self.parts(), False
        for part in parts:
            properties = part.get("properties", part if self.of is ... and _is_flat(part) else None)
            if isinstance(properties, Mapping):
                known = True
                if not is_null(properties.get(key)):
                    inner = self.at(properties[key])
                    return (NULLABLE if inner.takes_null() else DECLARED), inner
        more = [
            part["additionalProperties"]
            for part in parts
            if part.get("additionalProperties") not in (None, False)
        ]
        if more or any(part.get("patternProperties") for part in parts):
            return UNKNOWN, self.at(more[0] if more else None)
        return (FILLER if known else UNKNOWN), self.at(None)

    def item(self) -> "_Schema":
        """The schema of a list's entries."""
        return self.at(
            next((part["items"] for part in self.parts() if isinstance(part.get("items"), Mapping)), None)
        )

    def takes_null(self) -> bool:
        """Whether it declares that null may stand there."""
        for part in self.parts():
            kinds = part.get("type")
            if (
                kinds == "null"
                or (isinstance(kinds, list) and "null" in kinds)
                or part.get("nullable") is True
            ):
                return True
            if (isinstance(part.get("enum"), list) and None in part["enum"]) or (
                "const" in part and part["const"] is None and len(part) == 1
            ):
                return True
        return False


def _is_flat(part: Mapping[str, Any]) -> bool:
    """Whether a tool's parameters are the properties themselves, as some write them."""
    return (
        bool(part)
        and part.keys().isdisjoint(("type", *BY_NAME, *ANY_OF, "$ref"))
        and all(isinstance(one, Mapping | None) for one in part.values())
    )


def _kept(value: Any, schema: "_Schema | None", path: str, stays: Decide) -> Any:
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
