"""Tools that a row offers, and calls of them, in the forms of many vendors. A key that says something and is
none of these is refused by name.

tools   OpenAI's `{"type": "function", "function": {"name", "description", "parameters"}}` or the inner object
        alone; Anthropic's `input_schema` and MCP's `inputSchema` become `parameters`; Gemini's
        `{"functionDeclarations": […]}` is a list of them
calls   OpenAI's `{"id", "type": "function", "function": {"name", "arguments"}}` or the inner object alone;
        the arguments may also stand under `parameters` (Llama 3.1), `args` (LangChain, Gemini), `input`
        (Anthropic) and the like; none, null or a blank text is no argument
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from tuner.data.conversation import Call, RowError
from tuner.data.formats.checks import checked_json, in_words, key_list, parse_json, quoted, text_of

OFFERED = ("tools", "functions")
ALSO = (
    "available_tools",
    "available_functions",
    "tool_definitions",
    "function_definitions",
    "tool_schemas",
    "tools_schema",
    "tool_list",
)
"""columns that are tools where they look like some"""
GROUPS = ("functionDeclarations", "function_declarations")
SCHEMAS = (
    "parameters",
    "input_schema",
    "inputSchema",
    "parameters_json_schema",
    "parametersJsonSchema",
    "args_schema",
)
DOCUMENTS = frozenset(
    (
        "name description parameters strict type title annotations required optional returns return "
        "return_type response responses result results output output_schema outputSchema example examples "
        "input_examples errors category tags version domain api_name tool_name notes note"
    ).split()
)
"""what says something about a function; the template writes it with the tool"""
WRAPPER = frozenset(("type", "function", "strict"))
NAMES = ("name", "tool_name", "function_name")
ARGUMENTS = tuple("arguments parameters args input kwargs params tool_input tool_args tool_arguments".split())
IDS = ("call_id", "tool_call_id", "tool_use_id", "id")
KINDS = (None, "function", "tool_call", "tool_use", "function_call")
INNER = ("function", "functionCall", "function_call")
BESIDE = frozenset((*IDS, "type", "index"))
"""keys of a call that say nothing to the model"""
CALL = BESIDE | {*NAMES, *ARGUMENTS}


def offered_tools(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What the assistant may call: `tools` or `functions`, a list or JSON in a text, each in OpenAI's
    form.
    """
    found = [
        (key, value)
        for key in (*OFFERED, *ALSO)
        if (value := row.get(key)) and (key in OFFERED or is_offer(value))
    ]
    if not found:
        return ()
    if len(found) > 1:
        raise RowError(f"the row has both {found[0][0]} and {found[1][0]}, and one of them is expected")
    key, value = found[0]
    return _written(value, key) if isinstance(value, str) else _all(value, key)


def is_offer(value: Any) -> bool:
    """Whether a value looks like tools: a list of objects, each with a name; or such a list in a text."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.lstrip()[:1] == "[" else None
        except (ValueError, RecursionError):
            return False
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, dict) and not {"name", "function", *GROUPS}.isdisjoint(one) for one in value)
    )


@lru_cache(maxsize=64)
def _written(value: str, key: str) -> tuple[Any, ...]:
    # the rows of a set often offer the same tools, and nobody writes into them
    return _all(parse_json(value, key), key) if value.strip() else ()


def _all(value: Any, key: str) -> tuple[Any, ...]:
    if value in (None, {}, []):
        return ()
    if not isinstance(value, list):
        raise RowError(f"{key} must be a list of functions, and this is {in_words(value)}")
    checked_json(value, key)
    entries = [parse_json(entry, key) if isinstance(entry, str) else entry for entry in value]
    return tuple(_tool(entry, key) for group in entries for entry in _ungrouped(group, key))


def _ungrouped(entry: Any, key: str) -> Sequence[Any]:
    group = next((name for name in GROUPS if isinstance(entry, dict) and entry.get(name)), None)
    if group is None:
        return [entry]
    _refuse(entry, frozenset((group,)), f"an entry of {key}")
    inner = entry[group]
    if not isinstance(inner, list):
        raise RowError(f"{group} must be a list of functions, and this is {in_words(inner)}")
    return inner


def _tool(value: Any, key: str) -> Any:
    if not isinstance(value, Mapping):
        raise RowError(f"{key} must be a list of functions, and one of them is {in_words(value)}")
    kind, inner = value.get("type") or "function", value.get("function")
    if kind == "custom" and isinstance(value.get("input_schema"), dict):
        kind = "function"  # Anthropic's word for it
    if inner is not None or kind != "function":
        if kind != "function" or not isinstance(inner, Mapping):
            raise RowError(
                f"{key} has an entry of the type {in_words(kind)}; expected is "
                '{"type": "function", "function": {"name": …}}'
            )
        _refuse(value, WRAPPER, f"the tool {_name(inner, key)!r}")
        function = _function(inner, key)
        if function is inner and "type" in value and value.keys() <= WRAPPER:
            return value
        return {"type": "function"} | {
            name: function if name == "function" else part
            for name, part in value.items()
            if name in WRAPPER - {"type"}
        }
    return {
        "type": "function",
        "function": {
            name: part for name, part in _function(value, key).items() if name not in ("type", "function")
        },
    }


def _function(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """With its schema under `parameters`."""
    called = f"the tool {quoted(_name(value, key))}"
    _refuse(value, DOCUMENTS | {*SCHEMAS}, called)
    schemas = [name for name in SCHEMAS if value.get(name) is not None]
    if len(schemas) > 1:
        raise RowError(f"{called} has both {schemas[0]} and {schemas[1]}, and one of them is expected")
    other = next((name for name in schemas if name != "parameters"), None)
    if other is None and value.keys() <= DOCUMENTS:
        return value
    spare = {*SCHEMAS, "parameters"} - {other or "parameters"}
    return {
        "parameters" if name == other else name: part
        for name, part in value.items()
        if name not in spare and (name in DOCUMENTS or part is not None)
    }


def _refuse(value: Mapping[str, Any], known: frozenset[str], what: str) -> None:
    """Raise RowError for a key that says something and isn't known."""
    if value.keys() <= known:
        return
    unknown = [key for key in value if key not in known and value[key] is not None]
    if unknown:
        expected = (
            ", ".join(sorted(known - {*SCHEMAS[1:], *ARGUMENTS[1:], *NAMES[1:], *IDS[1:]})[:8])
            if len(known) < 20
            else "name, description, parameters"
        )
        raise RowError(f"{what} has {key_list(unknown)}, which can't be read; known are {expected}")


def read_calls(value: Any) -> tuple[Call, ...]:
    """OpenAI's `tool_calls`: a list of calls, or one written as JSON in a text."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        value = parse_json(value, "tool_calls")
    if not isinstance(value, list):
        raise RowError(f"tool_calls must be a list, and this is {in_words(value)}")
    for entry in value:
        if not isinstance(entry, Mapping):
            raise RowError(f"tool_calls must be a list of calls, and one of them is {in_words(entry)}")
    return tuple(read_call(entry) for entry in value)


def read_call(value: Any) -> Call:
    """One call, in any of the forms. Raises RowError."""
    if not isinstance(value, Mapping):
        raise RowError(f'a call must be an object {{"name", "arguments"}}, and this is {in_words(value)}')
    id_ = _id(value)
    inner = next((key for key in INNER if value.get(key) is not None), None)
    if inner is not None and isinstance(value[inner], Mapping):
        _refuse(value, BESIDE | {inner}, f"a call of {quoted(_name(value[inner], 'a call'))}")
        value = value[inner]
        inside = _id(value)
        id_ = inside if id_ is None else id_
    elif inner == "function" and isinstance(value["function"], str):
        value = {"name": value["function"]} | {key: part for key, part in value.items() if key != "function"}
    elif inner is not None:
        raise RowError(
            f'a call must be an object {{"name", "arguments"}}, and this is {in_words(value[inner])}'
        )
    name = _name(value, "a call", NAMES)
    _refuse(value, CALL, f"a call of {quoted(name)}")
    if len(names := [key for key in NAMES if value.get(key) is not None]) > 1:
        raise RowError(
            f"a call of {quoted(name)} has both {names[0]} and {names[1]}, and one of them is expected"
        )
    return Call(name=name, arguments=_arguments(value, name), id=id_)


def _id(value: Mapping[str, Any]) -> str | None:
    """The id of a call, by which its answer refers to it, and not that of the entry. Raises RowError, also
    where something else is beside it.
    """
    if not isinstance(kind := value.get("type"), str | None) or kind not in KINDS:
        raise RowError(f"a call of the type {in_words(kind)}; only those of functions can be taken")
    if not isinstance(index := value.get("index"), int | None):
        raise RowError(f"the index of a call must be a number, and this is {in_words(index)}")
    return next(
        iter([text_of(value[key], "the id of a call") for key in IDS if value.get(key) is not None]), None
    )


def _arguments(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    given = [key for key in ARGUMENTS if value.get(key) is not None]
    if len(given) > 1:
        raise RowError(
            f"a call of {quoted(name)} has both {given[0]} and {given[1]}, and one of them is expected"
        )
    if not given:
        return {}
    of, arguments = f"{given[0]} of the call of {quoted(name)}", value[given[0]]
    if isinstance(arguments, str):
        arguments = parse_json(arguments, f"the {of}") if arguments.strip() else {}
    else:
        checked_json(arguments, f"the {of}")
    if arguments is not None and not isinstance(arguments, Mapping):
        raise RowError(
            f"the {of} must be an object, or a string with the JSON of one, and this is {in_words(arguments)}"
        )
    return {} if arguments is None else arguments


def calls_in_text(value: Any, name: str) -> tuple[Call, ...]:
    """A call or a list of them, as it is or as JSON in a text: ShareGPT's function_call, and the part of
    the type tool_call.
    """
    found = parse_json(value, name) if isinstance(value, str) else value
    entries: Sequence[Any] = found if isinstance(found, list) else [found]
    if not entries:
        raise RowError(f"{name} must be a call, and this is an empty list")
    return tuple(read_call(entry) for entry in entries)


def _name(value: Mapping[str, Any], where: str, keys: Sequence[str] = ("name",)) -> str:
    found = next((value[key] for key in keys if value.get(key)), None)
    if not found:
        raise RowError(f"{where} has a function without a name (its keys are {key_list(value)})")
    return text_of(found, "the name of a function")
