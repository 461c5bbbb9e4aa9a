"""A chat template that is written out of the fields of model.chat: the turns of a conversation into a
draft, and which of them are trained.
"""

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from tuner.data.chat.draft import Draft
from tuner.data.chat.encode import Encoded, encode_conversations, encode_draft, encode_texts
from tuner.data.chat.layout import AssistantTurn, Layout, Placeholder, TextWithPlaceholders, TurnOpening
from tuner.data.chat.placement import NOWHERE, TOOLS_ONLY, Placement, place
from tuner.data.chat.split_special import FixedText
from tuner.data.chat.tool_calls import CallIds, check_place, required_value, to_json, tool_text
from tuner.data.conversation import Conversation, Message, RowError
from tuner.errors import ConfigError


class FieldTemplate:
    """The template for one vocabulary. What it offers is said in tuner.data.chat.template.Template."""

    def __init__(self, chat: Any, layout: Layout) -> None:
        self._layout, self.vocabulary = layout, layout.vocabulary
        self.tokenizer: Tokenizer = layout.vocabulary.tokenizer
        self.end_id, self.stops, self.reasons = layout.end_id, layout.stops, bool(chat.reasoning)
        self._default = (
            None if chat.default_system is None else Message(role="system", content=chat.default_system)
        )
        self._system_in, self._tools_in, self._calls_in = (
            str(chat.system_in),
            str(chat.tools_in),
            str(chat.calls_in),
        )
        self._thoughts_in, self._empty_in = (
            str(chat.reasoning_in),
            str(chat.no_reasoning_in) if chat.no_reasoning else "",
        )
        self._trim = frozenset(chat.trim)
        self._indent: int | None = chat.tool_indent
        self._id_length: int | None = chat.id_length
        self._tool_names = [part.name for part in layout.tool if isinstance(part, Placeholder)]
        self._simple = not (chat.reasoning or chat.no_reasoning or chat.trim or self._system_in != "turn")
        """whether a turn of text is written as it stands, wherever it stands"""

    def encode(self, conversations: Sequence[Conversation], *, keep_reasoning: bool = False) -> Encoded:
        def write(draft: Draft, conversation: Conversation) -> None:
            self._write(draft, conversation.messages, conversation.tools, keep_reasoning, opened=False)

        return encode_conversations(self.vocabulary, conversations, write)

    def texts(self, texts: Sequence[str]) -> Encoded:
        return encode_texts(texts, self.vocabulary, self.end_id)

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> list[int]:
        draft = Draft(self.vocabulary)
        try:
            self._write(draft, messages, tools, False, opened=True)
        except RowError as error:
            raise ConfigError(f"This can't be written for the model: {error}.") from error
        draft.close()
        ids: list[int] = encode_draft(draft, self.vocabulary, {}).ids.tolist()
        return ids

    def _write(
        self, draft: Draft, messages: Sequence[Message], tools: Sequence[Any], keep: bool, *, opened: bool
    ) -> None:
        """One document; with `opened` the assistant is to speak next. Raises RowError."""
        layout = self._layout
        if self._default is not None and (not messages or messages[0].role != "system"):
            messages = (self._default, *messages)
        draft.fixed(layout.begin)
        if self._simple and not tools:
            self._turns(draft, messages, NOWHERE, keep)
        else:
            messages, places = place(
                layout, messages, tools, system_in=self._system_in, tools_in=self._tools_in
            )
            self._turns(draft, messages, places, keep)
            if places.tools_before == len(messages):
                self._tools(draft, tools)
        if opened:
            draft.fixed(layout.prompt)
            return
        if (
            messages
            and messages[-1].role == "assistant"
            and layout.last_end is not None
            and layout.last_call_end is not None
        ):
            draft.fixed(layout.last_call_end if messages[-1].calls else layout.last_end)
        draft.fixed(layout.finish)

    def _turns(self, draft: Draft, messages: Sequence[Message], places: Placement, keep: bool) -> None:
        layout, simple, call_ids = self._layout, self._simple, None
        before_user, after_user = layout.user
        say, opening = layout.say, layout.say.plain
        for i, message in enumerate(messages):
            role, content = message.role, message.content
            if i == places.tools_before:
                self._tools(draft, places.tools)
            if role == "user":
                draft.fixed(before_user)
                if i == places.tools_inside:
                    self._tools(draft, places.tools)
                draft.text(
                    content
                    if simple
                    else self._asked(content, places.system if i == places.system_at else "")
                )
                draft.fixed(after_user)
            elif role == "assistant":
                if simple and not message.calls and not message.reasoning:
                    self._open(draft, opening, message.trains)
                    draft.text(content)
                    self._end(draft, say, message.trains)
                else:
                    call_ids = call_ids or CallIds(self._id_length)
                    self._assistant(
                        draft,
                        message,
                        call_ids,
                        after_question=i > places.last_user,
                        last=i == len(messages) - 1,
                        keep=keep,
                    )
            elif role == "system":
                self._system(draft, message, places.tools if i == 0 else (), inside=i == places.tools_inside)
            else:
                call_ids = call_ids or CallIds(self._id_length)
                follows, goes_on = (
                    0 <= j < len(messages) and messages[j].role == "tool" for j in (i - 1, i + 1)
                )
                self._result(draft, message, call_ids, follows=follows, goes_on=goes_on)

    def _asked(self, content: str, system: str) -> str:
        """A user's text, with a system prompt in front of it."""
        if "user" not in self._trim:
            return system + content
        return system + content.strip() if "system" in self._trim else (system + content).strip()

    def _system(self, draft: Draft, message: Message, tools: Sequence[Any], *, inside: bool) -> None:
        """A system turn, the first one of a conversation with `tools`, which may be written `inside` it."""
        layout = self._layout
        if self._system_in != "turn" and message is not TOOLS_ONLY:
            what = (
                "a system prompt"
                if self._system_in == "refused"
                else "a system turn that is not its first one"
            )
            raise RowError(
                f"the row has {what}, and the chat template has no place for it "
                f"(model.chat.system_in={self._system_in})"
            )
        before, after = layout.system_with_tools if tools else layout.system
        draft.fixed(before)
        draft.text(message.content.strip() if "system" in self._trim else message.content)
        if tools and inside:
            if message is not TOOLS_ONLY:
                draft.fixed(layout.tools_gap)
            self._tools(draft, tools)
        draft.fixed(after)

    def _tools(self, draft: Draft, tools: Sequence[Any]) -> None:
        layout = self._layout
        for part in layout.tools:
            if isinstance(part, FixedText):
                draft.fixed(part)
                continue
            for i, tool in enumerate(tools):
                if i:
                    draft.fixed(layout.tool_join)
                _fill(
                    draft,
                    layout.tool,
                    {name: tool_text(tool, name, self._indent) for name in self._tool_names},
                )

    def _assistant(
        self,
        draft: Draft,
        message: Message,
        call_ids: CallIds,
        *,
        after_question: bool,
        last: bool,
        keep: bool,
    ) -> None:
        """A turn of the assistant with all that can be in it. One whose thoughts are hidden is not
        trained.
        """
        layout, content, thought = self._layout, message.content, message.reasoning or ""
        check_place(message.calls, layout.calls, "calls of tools", "calls")
        check_place(thought, layout.thought_after, "thoughts", "reasoning")
        shown = bool(thought) and (keep or after_question or self._thoughts_in == "every_turn")
        empty = not shown and (
            self._empty_in == "every_turn"
            or (after_question and (self._empty_in == "last_turns" or (last and bool(self._empty_in))))
        )
        trains = message.trains and (shown or not thought)
        if "assistant" in self._trim:
            content = content.strip()
        if shown or empty:
            content = content.lstrip("\n")
        if message.calls and content and self._calls_in == "refused":
            raise RowError(
                "the row has a turn with a text and calls of tools, and the chat template writes one or the "
                "other (model.chat.calls_in=refused)"
            )
        apart = bool(message.calls and content) and self._calls_in == "apart"
        say = layout.call if message.calls and not apart else layout.say
        self._open(draft, say.thought if shown else say.empty if empty else say.plain, trains)
        if shown and layout.thought_after is not None:
            draft.text(thought.strip("\n"))
            draft.written(layout.thought_after, trains)
        draft.text(content)
        if apart:
            self._end(draft, say, trains)
            say = layout.call
            self._open(draft, say.plain, trains)
        if message.calls:
            if content and not apart:
                draft.written(layout.calls_gap, trains)
            self._calls(draft, message, call_ids, trains)
        self._end(draft, say, trains)

    def _open(self, draft: Draft, opening: TurnOpening, trains: bool) -> None:
        draft.fixed(opening.head)
        if opening.block is not None:
            draft.border()
            draft.fixed(opening.block)
        draft.border(trains)
        if opening.rest is not None:
            draft.written(opening.rest, trains)

    def _end(self, draft: Draft, say: AssistantTurn, trains: bool) -> None:
        if say.mid is not None:
            draft.written(say.mid, trains)
        if say.end is None:
            draft.owe(trains)
            return
        draft.fixed(say.end, trains)
        draft.end_turn()
        draft.fixed(say.after)

    def _calls(self, draft: Draft, message: Message, call_ids: CallIds, trains: bool) -> None:
        layout = self._layout
        for part in layout.calls:
            if isinstance(part, FixedText):
                draft.written(part, trains)
                continue
            for i, call in enumerate(message.calls):
                if i:
                    draft.written(layout.call_join, trains)
                known = call_ids.call(call)
                for piece in layout.one_call:
                    if isinstance(piece, FixedText):
                        draft.written(piece, trains)
                    else:
                        draft.text(required_value(known, piece.name))

    def _result(
        self, draft: Draft, message: Message, call_ids: CallIds, *, follows: bool, goes_on: bool
    ) -> None:
        """A tool's answer: those that come one after the other share a turn."""
        layout = self._layout
        check_place("tool", layout.result_turn, "an answer of a tool", "results")
        draft.fixed(layout.result_join if follows else layout.results[0])
        text = message.content.strip() if "tool" in self._trim else message.content
        _fill(draft, layout.result, {**call_ids.answer(message), "text": text, "json": to_json(text)})
        if not goes_on:
            draft.fixed(layout.results[1])


def _fill(draft: Draft, slots: TextWithPlaceholders, texts: Any) -> None:
    for piece in slots:
        if isinstance(piece, FixedText):
            draft.fixed(piece)
        else:
            draft.text(required_value(texts, piece.name))
