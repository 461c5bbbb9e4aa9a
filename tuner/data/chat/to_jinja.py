"""The same template in Jinja, as transformers and serving engines read it: tokenised there, it gives the ids
of tuner.data.chat.template.Template.

Except that those engines do read special tokens out of a turn's text, know no border inside an answer that is
already written, and write no last end token where a turn is ended by the next one. A row that the template
refuses is refused there too, by `raise_exception`. Ids of calls can't be made in Jinja: where a model wants
them of one length, others are refused.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from tuner.data.chat.compile import TemplateTexts, check_fields
from tuner.data.tokenizer.load import Vocabulary
from tuner.errors import ConfigError


def to_jinja(chat: Any, vocabulary: Vocabulary) -> str:
    """A template as text. Raises ConfigError or DataError where `chat` does not fit the tokenizer."""
    if chat.jinja:
        if vocabulary.template is None:
            raise ConfigError(
                "model/chat=tokenizer takes the tokenizer's own chat template, and it has none. Choose a "
                "template (model/chat=…)."
            )
        return (
            vocabulary.template
            if chat.default_system is None
            else _begun(chat.default_system) + vocabulary.template
        )
    check_fields(chat)
    return "\n".join(_Writer(chat, vocabulary).lines()) + "\n"


def _literal(text: str) -> str:
    """A Jinja string, on one line."""
    return json.dumps(text, ensure_ascii=False)


def _do(statement: str) -> str:
    return f"{{%- {statement} -%}}"


def _begun(system: str) -> str:
    """Puts a system turn in front of conversations that do not begin with one."""
    turn = f"[{{'role': 'system', 'content': {_literal(system)}}}]"
    return (
        _do("if not messages or messages[0]['role'] != 'system'")
        + _do(f"set messages = {turn} + messages")
        + _do("endif")
    )


def _say(*terms: str) -> list[str]:
    """A line that writes the terms; those that are empty strings are left out, and nothing is written of
    nothing.
    """
    kept = [term for term in terms if term != '""']
    return [f"{{{{- {' + '.join(kept)} -}}}}"] if kept else []


def _refuse(reason: str) -> str:
    return f"{{{{- raise_exception({_literal(reason)}) -}}}}"


def _slot_raw() -> list[str]:
    """Sets `raw.text` to the fields of a function, texts among them as they are."""
    return [
        _do("set raw = namespace(text='')") + _do("for key, field in function.items() if key != 'return'"),
        _do("set field = '\"' + field + '\"' if field is string else field | tojson"),
        _do("set raw.text = raw.text + (', ' if not loop.first else '') + '\"' + key + '\": ' + field")
        + _do("endfor"),
    ]


class _Writer:
    """The lines of one template. All white space between them is taken away by the dashes of the lines."""

    def __init__(self, chat: Any, vocabulary: Vocabulary) -> None:
        self._chat = chat
        self._texts = TemplateTexts(chat, vocabulary)
        self._places = (
            "user" in chat.system_in or "user" in chat.tools_in or chat.reasoning or chat.no_reasoning
        )

    def _cut(self, name: str, place: str = "{text}") -> tuple[str, str]:
        before, _, after = self._texts.full(name).partition(place)
        return _literal(before), _literal(after)

    def _slots(self, name: str, terms: Mapping[str, str]) -> list[str]:
        parts = re.split(f"\\{{({'|'.join(terms)})\\}}", self._texts.full(name))
        return [terms[part] if i % 2 else _literal(part) for i, part in enumerate(parts)]

    def _field(self, name: str) -> str:
        return _literal(self._texts.full(name))

    def _trimmed(self, term: str, role: str) -> str:
        return f"({term}) | trim" if role in self._chat.trim else term

    def lines(self) -> list[str]:
        chat = self._chat
        default = "none" if chat.default_system is None else _literal(chat.default_system)
        first = _do("if messages and messages[0]['role'] == 'system'")
        lines = [
            first + _do("set opening = messages[0]['content']") + _do("set turns = messages[1:]"),
            _do("else") + _do(f"set opening = {default}") + _do("set turns = messages") + _do("endif"),
        ]
        if self._places:
            lines += [
                _do("set at = namespace(first=-1, last=turns | length - 1)"),
                _do("for turn in turns")
                + _do("if turn['role'] == 'user'")
                + _do("if at.first < 0")
                + _do("set at.first = loop.index0")
                + _do("endif"),
                _do("set at.last = loop.index0") + _do("endif") + _do("endfor"),
            ]
        lines += self._refusals()
        lines += _say(self._field("begin"))
        lines += self._tools_turn("first") + self._system() + self._tools_turn("after_system")
        lines += [
            _do("for turn in turns"),
            _do("if turn['role'] == 'user'"),
            *self._user(),
            _do("elif turn['role'] == 'assistant'"),
            *self._assistant(),
        ]
        lines += [
            _do("elif turn['role'] == 'tool'"),
            *self._result(),
            _do("elif turn['role'] == 'system'"),
            *self._later_system(),
            _do("else"),
        ]
        lines += [
            (
                f"{{{{- raise_exception({_literal('the chat template has no turn for the role ')} + "
                "turn['role']) -}}"
            ),
            _do("endif"),
            _do("endfor"),
        ]
        prompt, finish = _say(_literal(self._texts.prompt())), _say(self._field("finish"))
        if prompt:
            lines += [_do("if add_generation_prompt"), *prompt, _do("endif")]
        if finish:
            lines += [_do("if not add_generation_prompt"), *finish, _do("endif")]
        return lines

    def _refusals(self) -> list[str]:
        chat, lines = self._chat, []
        if not chat.tools:
            lines.append(_do("if tools") + _refuse("the chat template has no place for tools") + _do("endif"))
        if "user" in chat.system_in:
            lines.append(
                _do("if opening is not none and at.first < 0")
                + _refuse("the system prompt is written into a user's turn, and there is none")
            )
            lines.append(_do("endif"))
        if chat.tools and "user" in chat.tools_in:
            lines.append(
                _do("if tools and at.first < 0")
                + _refuse("the tools are written into a user's turn, and there is none")
                + _do("endif")
            )
        return lines

    def _tools(self) -> list[str]:
        """All tools, where there are any."""
        indent = "" if self._chat.tool_indent is None else f"(indent={self._chat.tool_indent})"
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
        before, after = self._cut("tools", "{tools}")
        raw = _slot_raw() if "{raw}" in self._chat.tool else []
        one = _say(*(f"({term})" if "|" in term else term for term in self._slots("tool", terms)))
        lines = [
            *_say(before),
            _do("for tool in tools") + _do("set function = tool['function'] if tool['function'] else tool"),
            *raw,
        ]
        if join := _say(self._field("tool_join")):
            lines += [_do("if not loop.first"), *join, _do("endif")]
        return [*lines, *one, _do("endfor"), *_say(after)]

    def _tools_turn(self, where: str) -> list[str]:
        if not self._chat.tools or self._chat.tools_in != where:
            return []
        return [_do("if tools"), *self._tools(), _do("endif")]

    def _system(self) -> list[str]:
        """The first system turn."""
        chat = self._chat
        if chat.system_in == "refused":
            return [
                _do("if opening is not none"),
                _refuse("the chat template has no place for a system prompt"),
                _do("endif"),
            ]
        if chat.system_in != "turn":
            return []
        before, after = self._cut("system")
        with_tools = bool(chat.tools) and chat.tools_in == "system"
        if chat.tools and chat.system_with_tools:
            tool_before, tool_after = self._cut("system_with_tools")
            before, after = f"({tool_before} if tools else {before})", f"({tool_after} if tools else {after})"
        text = [_do("if opening is not none"), *_say(self._trimmed("opening", "system")), _do("endif")]
        if not with_tools:
            return [
                _do("if opening is not none"),
                *_say(before, f"({self._trimmed('opening', 'system')})", after),
                _do("endif"),
            ]
        gap = _say(self._field("tools_gap"))
        tools = [
            _do("if tools"),
            *([_do("if opening is not none"), *gap, _do("endif")] if gap else []),
            *self._tools(),
            _do("endif"),
        ]
        return [
            _do("if opening is not none or tools"),
            *_say(before),
            *text,
            *tools,
            *_say(after),
            _do("endif"),
        ]

    def _later_system(self) -> list[str]:
        if self._chat.system_in != "turn":
            return [_refuse("the chat template has no place for a system turn that is not the first one")]
        before, after = self._cut("system")
        text = self._trimmed("turn['content']", "system")
        return _say(before, f"({text})", after)

    def _user(self) -> list[str]:
        chat = self._chat
        text = "turn['content']"
        if "user" in chat.system_in:
            before, after = self._cut("system")
            place = "at.first" if chat.system_in == "first_user" else "at.last"
            system = (
                f"({before} + opening + {after} if opening is not none and loop.index0 == {place} else '')"
            )
            alone = "user" in chat.trim and "system" in chat.trim
            text = f"{system} + ({text} | trim)" if alone else self._trimmed(f"{system} + {text}", "user")
        else:
            text = self._trimmed(text, "user")
        before, after = self._cut("user")
        tools: list[str] = []
        if chat.tools and "user" in chat.tools_in:
            place = "at.first" if chat.tools_in == "first_user" else "at.last"
            tools = [_do(f"if tools and loop.index0 == {place}"), *self._tools(), _do("endif")]
        if chat.tools_in == "first_user":
            return [*_say(before), *tools, *_say(f"({text})", after)]
        return [*tools, *_say(before, f"({text})", after)]

    def _assistant(self) -> list[str]:
        chat = self._chat
        text = self._trimmed("turn['content'] or ''", "assistant")
        lines = [
            _do("set calls = turn['tool_calls'] or []"),
            _do(f"set text = {text}"),
            *self._thought(),
        ]
        if not chat.calls:
            lines.append(
                _do("if calls") + _refuse("the chat template has no place for calls of tools") + _do("endif")
            )
            return [*lines, *self._turn("assistant", "end", body=[*_say("thought", "text")])]
        if chat.calls_in == "refused":
            lines.append(
                _do("if calls and text")
                + _refuse("the chat template writes a text or calls of tools, not both")
                + _do("endif")
            )
        with_calls = "calls_turn" if chat.calls_turn else "assistant"
        gap = _say(self._field("calls_gap"))
        if chat.calls_in == "apart":
            lines += [
                _do("if text or not calls"),
                *self._turn("assistant", "end", body=_say("thought", "text")),
                _do("set thought = ''"),
                _do("endif"),
            ]
            return [
                *lines,
                _do("if calls"),
                *self._turn(with_calls, "calls_end", body=[*_say("thought"), *self._calls()]),
                _do("endif"),
            ]
        body = [
            *_say("thought", "text"),
            *([_do("if text"), *gap, _do("endif")] if gap else []),
            *self._calls(),
        ]
        lines += [_do("if calls"), *self._turn(with_calls, "calls_end", body=body)]
        return [
            *lines,
            _do("else"),
            *self._turn("assistant", "end", body=_say("thought", "text")),
            _do("endif"),
        ]

    def _turn(self, name: str, end: str, *, body: list[str]) -> list[str]:
        """An assistant's turn with `body` in it."""
        before, _, after = self._texts.full(name).partition("{text}")
        if self._chat.end_in == "turn" and getattr(self._chat, end):
            after = after.replace(self._texts.full("end"), self._texts.full(end), 1)
        return [*_say(_literal(before)), *body, *_say(_literal(after))]

    def _thought(self) -> list[str]:
        """Sets `thought` to what is written for it, and takes it out of a text that begins with it."""
        chat = self._chat
        lines = [_do("set thought = turn['reasoning_content'] or turn['reasoning'] or ''")]
        if not chat.reasoning:
            lines.append(
                _do("if thought") + _refuse("the chat template has no place for thoughts") + _do("endif")
            )
        before, after = self._cut("reasoning")
        opened, closed = (
            _literal(text.strip()) for text in self._texts.full("reasoning").partition("{text}")[::2]
        )
        if opened != '""' and closed != '""':
            lines += [
                _do(f"if not thought and {closed} in text and text.lstrip().startswith({opened})"),
                _do(f"set thought = text.split({closed})[0].split({opened})[1:] | join({opened})"),
                _do(f"set text = (text.split({closed})[1:] | join({closed})).lstrip()") + _do("endif"),
            ]
        if chat.reasoning:
            shown = "thought" if chat.reasoning_in == "every_turn" else "thought and loop.index0 > at.last"
            lines += [
                _do(f"if {shown}"),
                _do("set text = text.lstrip('\\n')")
                + _do(f"set thought = {before} + thought.strip('\\n') + {after}"),
            ]
        if chat.no_reasoning:
            when = {
                "every_turn": "true",
                "last_turns": "loop.index0 > at.last",
                "last_turn": "loop.last and loop.index0 > at.last",
            }
            empty = _do("set text = text.lstrip('\\n')") + _do(f"set thought = {self._field('no_reasoning')}")
            lines += [_do(f"{'elif' if chat.reasoning else 'if'} {when[chat.no_reasoning_in]}"), empty]
        if chat.reasoning or chat.no_reasoning:
            lines += [_do("else"), _do("set thought = ''"), _do("endif")]
        return lines

    def _calls(self) -> list[str]:
        chat = self._chat
        terms = {
            "name": "function['name']",
            "arguments": (
                "(function['arguments'] if function['arguments'] is string else function['arguments'] | "
                "tojson)"
            ),
            "id": "call['id']",
        }
        before, after = self._cut("calls", "{calls}")
        lines = [
            *_say(before),
            _do("for call in calls") + _do("set function = call['function'] if call['function'] else call"),
        ]
        if "{id}" in chat.call:
            lines += self._id("call['id']")
        if join := _say(self._field("call_join")):
            lines += [_do("if not loop.first"), *join, _do("endif")]
        return [*lines, *_say(*self._slots("call", terms)), _do("endfor"), *_say(after)]

    def _id(self, term: str) -> list[str]:
        length = self._chat.id_length
        wrong = f"not {term}" if length is None else f"not {term} or {term} | length != {length}"
        what = "an id" if length is None else f"an id of {length} letters and digits"
        return [
            _do(f"if {wrong}")
            + _refuse(f"the chat template writes the ids of calls, and each must have {what}")
            + _do("endif")
        ]

    def _result(self) -> list[str]:
        chat = self._chat
        if not chat.results:
            return [_refuse("the chat template has no place for an answer of a tool")]
        text = self._trimmed("turn['content']", "tool")
        before, after = self._cut("results", "{results}")
        lines = [_do("if loop.first or turns[loop.index0 - 1]['role'] != 'tool'"), *_say(before)]
        if join := _say(self._field("result_join")):
            lines += [_do("else"), *join]
        lines.append(_do("endif"))
        if "{id}" in chat.result:
            lines += self._id("turn['tool_call_id']")
        if "{name}" in chat.result:
            lines += [
                _do("set tool = namespace(name=turn['name'] or '')")
                + _do("for other in turns")
                + _do("for call in other['tool_calls'] or []"),
                _do("if not tool.name and call['id'] and call['id'] == turn['tool_call_id']"),
                _do("set tool.name = (call['function'] if call['function'] else call)['name']")
                + _do("endif")
                + _do("endfor")
                + _do("endfor"),
            ]
        terms = {
            "text": f"({text})",
            "json": f"(({text}) | tojson)",
            "name": "tool.name",
            "id": "turn['tool_call_id']",
        }
        lines += _say(*self._slots("result", terms))
        if close := _say(after):
            lines += [_do("if loop.last or turns[loop.index0 + 1]['role'] != 'tool'"), *close, _do("endif")]
        return lines
