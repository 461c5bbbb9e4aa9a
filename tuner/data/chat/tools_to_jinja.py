"""Tools, calls of tools and what they answered, as lines of a Jinja template."""

from tuner.data.chat.jinja_lines import JinjaFields, do, refuse, say


def _raw_lines() -> list[str]:
    """Sets `raw.text` to the fields of a function, texts among them as they are."""
    return [
        do("set raw = namespace(text='')") + do("for key, field in function.items() if key != 'return'"),
        do("set field = '\"' + field + '\"' if field is string else field | tojson"),
        do("set raw.text = raw.text + (', ' if not loop.first else '') + '\"' + key + '\": ' + field")
        + do("endfor"),
    ]


def tools_lines(fields: JinjaFields) -> list[str]:
    """All tools, where there are any."""
    indent = "" if fields.chat.tool_indent is None else f"(indent={fields.chat.tool_indent})"
    terms = {
        "tool": f"tool | tojson{indent}",
        "function": f"function | tojson{indent}",
        "parameters": (
            f"(function['parameters'] if function['parameters'] is defined else none) | tojson{indent}"
        ),
        "name": "(function['name'] or '')",
        "description": "(function['description'] or '')",
        "raw": "'{' + raw.text + '}'",
    }
    before, after = fields.cut("tools", "{tools}")
    raw = _raw_lines() if "{raw}" in fields.chat.tool else []
    one = say(*(f"({term})" if "|" in term else term for term in fields.slots("tool", terms)))
    lines = [
        *say(before),
        do("for tool in tools") + do("set function = tool['function'] if tool['function'] else tool"),
        *raw,
    ]
    if join := say(fields.field("tool_join")):
        lines += [do("if not loop.first"), *join, do("endif")]
    return [*lines, *one, do("endfor"), *say(after)]


def calls_lines(fields: JinjaFields) -> list[str]:
    """All calls of a turn."""
    chat = fields.chat
    terms = {
        "name": "function['name']",
        "arguments": (
            "(function['arguments'] if function['arguments'] is string else function['arguments'] | tojson)"
        ),
        "id": "call['id']",
    }
    before, after = fields.cut("calls", "{calls}")
    lines = [
        *say(before),
        do("for call in calls") + do("set function = call['function'] if call['function'] else call"),
    ]
    if "{id}" in chat.call:
        lines += _id_lines(fields, "call['id']")
    if join := say(fields.field("call_join")):
        lines += [do("if not loop.first"), *join, do("endif")]
    return [*lines, *say(*fields.slots("call", terms)), do("endfor"), *say(after)]


def _id_lines(fields: JinjaFields, term: str) -> list[str]:
    length = fields.chat.id_length
    wrong = f"not {term}" if length is None else f"not {term} or {term} | length != {length}"
    what = "an id" if length is None else f"an id of {length} letters and digits"
    return [
        do(f"if {wrong}")
        + refuse(f"the chat template writes the ids of calls, and each must have {what}")
        + do("endif")
    ]


def result_lines(fields: JinjaFields) -> list[str]:
    """What a tool answered: answers that come one after the other share a turn."""
    chat = fields.chat
    if not chat.results:
        return [refuse("the chat template has no place for an answer of a tool")]
    text = fields.trimmed("turn['content']", "tool")
    before, after = fields.cut("results", "{results}")
    lines = [do("if loop.first or turns[loop.index0 - 1]['role'] != 'tool'"), *say(before)]
    if join := say(fields.field("result_join")):
        lines += [do("else"), *join]
    lines.append(do("endif"))
    if "{id}" in chat.result:
        lines += _id_lines(fields, "turn['tool_call_id']")
    if "{name}" in chat.result:
        lines += [
            do("set tool = namespace(name=turn['name'] or '')")
            + do("for other in turns")
            + do("for call in other['tool_calls'] or []"),
            do("if not tool.name and call['id'] and call['id'] == turn['tool_call_id']"),
            do("set tool.name = (call['function'] if call['function'] else call)['name']")
            + do("endif")
            + do("endfor")
            + do("endfor"),
        ]
    terms = {
        "text": f"({text})",
        "json": f"(({text}) | tojson)",
        "name": "tool.name",
        "id": "turn['tool_call_id']",
    }
    lines += say(*fields.slots("result", terms))
    if close := say(after):
        lines += [do("if loop.last or turns[loop.index0 + 1]['role'] != 'tool'"), *close, do("endif")]
    return lines
