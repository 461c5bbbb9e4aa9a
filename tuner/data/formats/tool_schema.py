"""What the JSON schema of a tool's arguments says of a null in a call."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BY_NAME = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"))
"""keywords that hold schemas under names of the author's"""
ANY_OF = ("anyOf", "oneOf", "allOf")
FILLER, NULLABLE, DECLARED, UNKNOWN = "filler", "nullable", "declared", "unknown"
"""what a schema says of a null: its key is not declared, it may be null, it is declared as something else,
or nothing
"""


def tool_schemas(tools: tuple[Any, ...]) -> dict[str, Any]:
    """The schema of each tool's arguments, by name."""
    functions = [
        tool["function"]
        for tool in tools
        if isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping)
    ]
    return {
        function["name"]: ToolSchema(root=function.get("parameters"))
        for function in functions
        if isinstance(function.get("name"), str)
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolSchema:
    """A part of a JSON schema, and all of it, in which its references point."""

    root: Any
    of: Any = ...

    def at(self, part: Any) -> "ToolSchema":
        return ToolSchema(root=self.root, of=part)

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

    def named(self, key: str) -> tuple[str, "ToolSchema"]:
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

    def item(self) -> "ToolSchema":
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


def is_null(value: Any) -> bool:
    """Whether a value is null, or an object that holds nothing but nulls."""
    return value is None or (isinstance(value, Mapping) and bool(value) and all(map(is_null, value.values())))
