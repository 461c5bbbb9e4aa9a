"""The same template in Jinja, as transformers and serving engines read it: tokenised there, it gives the ids
of tuner.data.chat.template.Template.

Except that those engines do read special tokens out of a turn's text, know no border inside an answer that is
already written, and write no last end token where a turn is ended by the next one. A row that the template
refuses is refused there too, by `raise_exception`. Ids of calls can't be made in Jinja: where a model wants
them of one length, others are refused.
"""

from typing import Any

from tuner.data.chat.field_checks import check_fields
from tuner.data.chat.jinja_lines import JinjaFields, do, literal, refuse, say
from tuner.data.chat.tools_to_jinja import calls_lines, result_lines, tools_lines
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
            else _system_first(chat.default_system) + vocabulary.template
        )
    check_fields(chat)
    return "\n".join(_Writer(chat, vocabulary).lines()) + "\n"


def _system_first(system: str) -> str:
    """Puts a system turn in front of conversations that do not begin with one."""
    turn = f"[{{'role': 'system', 'content': {literal(system)}}}]"
    return (
        do("if not messages or messages[0]['role'] != 'system'")
        + do(f"set messages = {turn} + messages")
        + do("endif")
    )


class _Writer(JinjaFields):
    """The lines of one template."""

    def __init__(self, chat: Any, vocabulary: Vocabulary) -> None:
        super().__init__(chat, vocabulary)
        self._places = (
            "user" in chat.system_in or "user" in chat.tools_in or chat.reasoning or chat.no_reasoning
        )

    def lines(self) -> list[str]:
        chat = self.chat
        default = "none" if chat.default_system is None else literal(chat.default_system)
        first = do("if messages and messages[0]['role'] == 'system'")
        lines = [
            first + do("set opening = messages[0]['content']") + do("set turns = messages[1:]"),
            do("else") + do(f"set opening = {default}") + do("set turns = messages") + do("endif"),
        ]
        if self._places:
            lines += [
                do("set at = namespace(first=-1, last=turns | length - 1)"),
                do("for turn in turns")
                + do("if turn['role'] == 'user'")
                + do("if at.first < 0")
                + do("set at.first = loop.index0")
                + do("endif"),
                do("set at.last = loop.index0") + do("endif") + do("endfor"),
            ]
        lines += self._refusals()
        lines += say(self.field("begin"))
        lines += self._tools_turn("first") + self._system() + self._tools_turn("after_system")
        lines += [
            do("for turn in turns"),
            do("if turn['role'] == 'user'"),
            *self._user(),
            do("elif turn['role'] == 'assistant'"),
            *self._assistant(),
        ]
        lines += [
            do("elif turn['role'] == 'tool'"),
            *result_lines(self),
            do("elif turn['role'] == 'system'"),
            *self._later_system(),
            do("else"),
        ]
        lines += [
            (
                f"{{{{- raise_exception({literal('the chat template has no turn for the role ')} + "
                "turn['role']) -}}"
            ),
            do("endif"),
            do("endfor"),
        ]
        prompt, finish = say(literal(self.texts.prompt())), say(self.field("finish"))
        if prompt:
            lines += [do("if add_generation_prompt"), *prompt, do("endif")]
        if finish:
            lines += [do("if not add_generation_prompt"), *finish, do("endif")]
        return lines

    def _refusals(self) -> list[str]:
        chat, lines = self.chat, []
        if not chat.tools:
            lines.append(do("if tools") + refuse("the chat template has no place for tools") + do("endif"))
        if "user" in chat.system_in:
            lines.append(
                do("if opening is not none and at.first < 0")
                + refuse("the system prompt is written into a user's turn, and there is none")
            )
            lines.append(do("endif"))
        if chat.tools and "user" in chat.tools_in:
            lines.append(
                do("if tools and at.first < 0")
                + refuse("the tools are written into a user's turn, and there is none")
                + do("endif")
            )
        return lines

    def _tools_turn(self, where: str) -> list[str]:
        if not self.chat.tools or self.chat.tools_in != where:
            return []
        return [do("if tools"), *tools_lines(self), do("endif")]

    def _system(self) -> list[str]:
        """The first system turn."""
        chat = self.chat
        if chat.system_in == "refused":
            return [
                do("if opening is not none"),
                refuse("the chat template has no place for a system prompt"),
                do("endif"),
            ]
        if chat.system_in != "turn":
            return []
        before, after = self.cut("system")
        with_tools = bool(chat.tools) and chat.tools_in == "system"
        if chat.tools and chat.system_with_tools:
            tool_before, tool_after = self.cut("system_with_tools")
            before, after = f"({tool_before} if tools else {before})", f"({tool_after} if tools else {after})"
        text = [do("if opening is not none"), *say(self.trimmed("opening", "system")), do("endif")]
        if not with_tools:
            return [
                do("if opening is not none"),
                *say(before, f"({self.trimmed('opening', 'system')})", after),
                do("endif"),
            ]
        gap = say(self.field("tools_gap"))
        tools = [
            do("if tools"),
            *([do("if opening is not none"), *gap, do("endif")] if gap else []),
            *tools_lines(self),
            do("endif"),
        ]
        return [
            do("if opening is not none or tools"),
            *say(before),
            *text,
            *tools,
            *say(after),
            do("endif"),
        ]

    def _later_system(self) -> list[str]:
        if self.chat.system_in != "turn":
            return [refuse("the chat template has no place for a system turn that is not the first one")]
        before, after = self.cut("system")
        text = self.trimmed("turn['content']", "system")
        return say(before, f"({text})", after)

    def _user(self) -> list[str]:
        chat = self.chat
        text = "turn['content']"
        if "user" in chat.system_in:
            before, after = self.cut("system")
            place = "at.first" if chat.system_in == "first_user" else "at.last"
            system = (
                f"({before} + opening + {after} if opening is not none and loop.index0 == {place} else '')"
            )
            alone = "user" in chat.trim and "system" in chat.trim
            text = f"{system} + ({text} | trim)" if alone else self.trimmed(f"{system} + {text}", "user")
        else:
            text = self.trimmed(text, "user")
        before, after = self.cut("user")
        tools: list[str] = []
        if chat.tools and "user" in chat.tools_in:
            place = "at.first" if chat.tools_in == "first_user" else "at.last"
            tools = [do(f"if tools and loop.index0 == {place}"), *tools_lines(self), do("endif")]
        if chat.tools_in == "first_user":
            return [*say(before), *tools, *say(f"({text})", after)]
        return [*tools, *say(before, f"({text})", after)]

    def _assistant(self) -> list[str]:
        chat = self.chat
        text = self.trimmed("turn['content'] or ''", "assistant")
        lines = [
            do("set calls = turn['tool_calls'] or []"),
            do(f"set text = {text}"),
            *self._thought(),
        ]
        if not chat.calls:
            lines.append(
                do("if calls") + refuse("the chat template has no place for calls of tools") + do("endif")
            )
            return [*lines, *self._turn("assistant", "end", body=[*say("thought", "text")])]
        if chat.calls_in == "refused":
            lines.append(
                do("if calls and text")
                + refuse("the chat template writes a text or calls of tools, not both")
                + do("endif")
            )
        with_calls = "calls_turn" if chat.calls_turn else "assistant"
        gap = say(self.field("calls_gap"))
        if chat.calls_in == "apart":
            lines += [
                do("if text or not calls"),
                *self._turn("assistant", "end", body=say("thought", "text")),
                do("set thought = ''"),
                do("endif"),
            ]
            return [
                *lines,
                do("if calls"),
                *self._turn(with_calls, "calls_end", body=[*say("thought"), *calls_lines(self)]),
                do("endif"),
            ]
        body = [
            *say("thought", "text"),
            *([do("if text"), *gap, do("endif")] if gap else []),
            *calls_lines(self),
        ]
        lines += [do("if calls"), *self._turn(with_calls, "calls_end", body=body)]
        return [
            *lines,
            do("else"),
            *self._turn("assistant", "end", body=say("thought", "text")),
            do("endif"),
        ]

    def _turn(self, name: str, end: str, *, body: list[str]) -> list[str]:
        """An assistant's turn with `body` in it."""
        before, _, after = self.texts.full(name).partition("{text}")
        if self.chat.end_in == "turn" and getattr(self.chat, end):
            after = after.replace(self.texts.full("end"), self.texts.full(end), 1)
        return [*say(literal(before)), *body, *say(literal(after))]

    def _thought(self) -> list[str]:
        """Sets `thought` to what is written for it, and takes it out of a text that begins with it."""
        chat = self.chat
        lines = [do("set thought = turn['reasoning_content'] or turn['reasoning'] or ''")]
        if not chat.reasoning:
            lines.append(
                do("if thought") + refuse("the chat template has no place for thoughts") + do("endif")
            )
        before, after = self.cut("reasoning")
        opened, closed = (
            literal(text.strip()) for text in self.texts.full("reasoning").partition("{text}")[::2]
        )
        if opened != '""' and closed != '""':
            lines += [
                do(f"if not thought and {closed} in text and text.lstrip().startswith({opened})"),
                do(f"set thought = text.split({closed})[0].split({opened})[1:] | join({opened})"),
                do(f"set text = (text.split({closed})[1:] | join({closed})).lstrip()") + do("endif"),
            ]
        if chat.reasoning:
            shown = "thought" if chat.reasoning_in == "every_turn" else "thought and loop.index0 > at.last"
            lines += [
                do(f"if {shown}"),
                do("set text = text.lstrip('\\n')")
                + do(f"set thought = {before} + thought.strip('\\n') + {after}"),
            ]
        if chat.no_reasoning:
            when = {
                "every_turn": "true",
                "last_turns": "loop.index0 > at.last",
                "last_turn": "loop.last and loop.index0 > at.last",
            }
            empty = do("set text = text.lstrip('\\n')") + do(f"set thought = {self.field('no_reasoning')}")
            lines += [do(f"{'elif' if chat.reasoning else 'if'} {when[chat.no_reasoning_in]}"), empty]
        if chat.reasoning or chat.no_reasoning:
            lines += [do("else"), do("set thought = ''"), do("endif")]
        return lines
