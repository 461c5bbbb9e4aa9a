"""A tokenizer's own chat template in place of one of ours: its text is rendered, and what is trained is found
in that text.

Where turn k of the assistant begins is where the text of all turns before it ends, with the request that the
assistant speak: that text must be a beginning of the whole. The turn ends at the first end token behind it.
Which token that is, and that the rest holds, is tried on a few conversations when the template is compiled,
and looked at again on every row.

Special tokens are found in the text that was rendered, since a template writes them as text. Those that a row
itself spells are put out of the way before, by marks, and put back as ordinary text; a template that looks at
what a text says could tell the difference, and such rows are refused.

Not covered: a template that leaves out or changes what is trained, such as one that upper-cases; and a turn
that only the next one ends.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import Tokenizer

from tuner.data.chat.draft import Draft
from tuner.data.chat.encode import Encoded, encode_conversations, encode_draft, encode_texts
from tuner.data.chat.escape import escape_special_tokens, transformers_messages, unescape, with_sign
from tuner.data.chat.probe import find_turn_ends, shows_thoughts
from tuner.data.chat.sandbox import CALLED, Render, renderer
from tuner.data.chat.split_special import SpecialTokens
from tuner.data.chat.tool_calls import to_json
from tuner.data.conversation import Conversation, Message, RowError
from tuner.data.tokenizer.load import Vocabulary, with_special_tokens
from tuner.errors import ConfigError
from tuner.hardware.limits import reading

INSTEAD = "Name a template that is written for the model: model/chat=NAME (python -m tuner list chats)."


@dataclass(frozen=True, slots=True)
class RenderedTurn:
    """A turn of the assistant in a rendered text, as characters from its start."""

    start: int
    """where the assistant starts to write"""
    body: int
    """where what it wrote itself begins: behind a thought that the template put in"""
    stop: int
    """behind its end token"""
    trained: bool


def load_jinja_template(vocabulary: Vocabulary, default_system: str | None = None) -> "JinjaTemplate":
    """The tokenizer's own template, with a system prompt for conversations that do not begin with one.
    Raises ConfigError where it has none, or where a mask can't be derived from it.
    """
    if vocabulary.template is None:
        raise ConfigError(
            f"model/chat=tokenizer takes the tokenizer's own chat template, and it has none. {INSTEAD}"
        )
    tokenizer = vocabulary.tokenizer
    ids = {token: id_ for token, id_ in vocabulary.declared.items() if tokenizer.token_to_id(token) is None}
    vocabulary = with_special_tokens(
        vocabulary,
        [token for token in vocabulary.names.values() if tokenizer.token_to_id(token) is not None],
        ids,
    )
    try:
        with reading(CALLED):
            return JinjaTemplate(
                vocabulary, renderer(vocabulary.template or "", vocabulary.names), default_system
            )
    except RowError as error:
        raise ConfigError(
            f"The tokenizer's own chat template can't be trained with: {error}. {INSTEAD}"
        ) from error


class JinjaTemplate:
    """The tokenizer's own template, ready for use. What it offers is said in
    tuner.data.chat.template.Template.
    """

    def __init__(self, vocabulary: Vocabulary, render: Render, default_system: str | None) -> None:
        self.vocabulary, self._render = vocabulary, render
        self._default = () if default_system is None else (Message(role="system", content=default_system),)
        self.tokenizer: Tokenizer = vocabulary.tokenizer
        added = self.tokenizer.get_added_tokens_decoder()
        self._special = SpecialTokens(
            vocabulary, {token.content: id_ for id_, token in added.items() if token.special}
        )
        self._end, self._opening = find_turn_ends(render, self._special.pattern)
        self.end_id: int = self._special.ids[self._end]
        eos = None if vocabulary.eos is None else self.tokenizer.token_to_id(vocabulary.eos)
        self.stops = frozenset([self.end_id] if eos is None else [self.end_id, eos])
        self.reasons = shows_thoughts(render)

    def encode(self, conversations: Sequence[Conversation], *, keep_reasoning: bool = False) -> Encoded:
        def write(draft: Draft, conversation: Conversation) -> None:
            self._write(draft, conversation, keep_reasoning)

        return encode_conversations(self.vocabulary, conversations, write)

    def texts(self, texts: Sequence[str]) -> Encoded:
        return encode_texts(texts, self.vocabulary, self.end_id)

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> list[int]:
        draft = Draft(self.vocabulary)
        try:
            messages = self._begun(messages)
            row, marks = escape_special_tokens(messages, tools, self._special.pattern)
            text = self._rendered(row, True) + self._opening
            self._compare(messages, tools, marks, text.removesuffix(self._opening), True)
        except RowError as error:
            raise ConfigError(f"This can't be written for the model: {error}.") from error
        self._draft(draft, text, (), marks)
        draft.close()
        ids: list[int] = encode_draft(draft, self.vocabulary, {}).ids.tolist()
        return ids

    def _write(self, draft: Draft, conversation: Conversation, keep: bool) -> None:
        messages, tools = self._begun(conversation.messages), conversation.tools
        row, marks = escape_special_tokens(messages, tools, self._special.pattern)
        text = self._rendered(row, False)
        self._compare(messages, tools, marks, text, False)
        self._complete(row, text)
        self._draft(draft, text, tuple(self._turns(row, text, keep)), marks)

    def _begun(self, messages: Sequence[Message]) -> Sequence[Message]:
        return messages if messages and messages[0].role == "system" else (*self._default, *messages)

    def _rendered(self, row: Conversation, opened: bool) -> str:
        return self._render(transformers_messages(row.messages), row.tools, opened)

    def _compare(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any],
        marks: Mapping[str, str],
        text: str,
        opened: bool,
    ) -> None:
        """Raises RowError when the marks changed what the template writes."""
        if marks and self._render(transformers_messages(messages), tools, opened) != unescape(text, marks):
            raise RowError(
                "the row spells a special token, and the tokenizer's own chat template writes the row "
                "otherwise when that is put out of the way"
            )

    def _complete(self, row: Conversation, text: str) -> None:
        """Raises RowError when the template leaves something of the row out. A short text could be
        anywhere, so each is looked for with a sign on it.
        """
        with_signs = [
            replace(m, content=with_sign(m.content, f"\ue002{i}\ue003")) if m.content.strip() else m
            for i, m in enumerate(row.messages)
        ]
        found = self._render(transformers_messages(with_signs), row.tools, False)
        for i, message in enumerate(row.messages):
            content = message.content.strip()
            if content and (
                f"\ue002{i}\ue003" not in found
                or (content not in text and to_json(content)[1:-1] not in text)
            ):
                raise RowError(
                    "the tokenizer's own chat template leaves out or changes the text of a turn "
                    f"({message.role})"
                )
            if any(call.name not in text for call in message.calls):
                raise RowError("the tokenizer's own chat template leaves out calls of tools")
            if message.reasoning and not self.reasons:
                raise RowError("the tokenizer's own chat template leaves out thoughts")
        for tool in row.tools:
            inner = tool.get("function", tool) if isinstance(tool, Mapping) else {}
            if str(inner.get("name", "")) not in text:
                raise RowError("the tokenizer's own chat template leaves out tools")

    def _turns(self, row: Conversation, text: str, keep: bool) -> Iterator[RenderedTurn]:
        """The assistant's turns. Raises RowError where one can't be found."""
        messages = row.messages
        for k, message in enumerate(messages):
            if message.role != "assistant":
                continue
            before = self._rendered(replace(row, messages=messages[:k]), True) + self._opening
            thought = (message.reasoning or "").strip("\n")
            start = len(before)
            if not text.startswith(before):
                start = _common(before, text)
                bare = len(self._rendered(replace(row, messages=messages[:k]), False))
                if not thought or not bare < start or text[start : start + len(thought)] != thought:
                    raise RowError(
                        f"what the tokenizer's own chat template writes before turn {k + 1} is not what it "
                        "writes when the assistant is to speak"
                    )
            end = text.find(self._end, start)
            if end < 0:
                raise RowError(
                    f"no {self._end} follows turn {k + 1} in what the tokenizer's own chat template writes"
                )
            stop = end + len(self._end)
            if message.calls:
                after = self._rendered(replace(row, messages=messages[: k + 1]), False)
                if not text.startswith(after[:stop]) or stop > len(after):
                    raise RowError(
                        f"turn {k + 1} calls a tool, and {self._end} does not end it in what the tokenizer's "
                        "own chat template writes"
                    )
            said = text[start:end]
            visible = bool(thought) and thought in said
            if thought and not visible and keep:
                raise RowError(
                    "the tokenizer's own chat template hides thoughts of earlier turns, and "
                    "data.reasoning=keep wants them shown"
                )
            at = 0 if visible else self._put_in(said, message)
            yield RenderedTurn(start, start + at, stop, message.trains and (visible or not thought))

    def _put_in(self, said: str, message: Message) -> int:
        """How much of a turn the template put in before what the assistant wrote: an empty thought, for
        one.
        """
        content = message.content.strip()
        if content:
            at = said.find(message.content)
            at = at if at >= 0 else max(said.find(content), 0)
        else:
            empty = EMPTY_THOUGHT.match(said)
            at = empty.end() if empty else 0
        return at if said[:at].strip() else 0

    def _draft(
        self, draft: Draft, text: str, turns: Sequence[RenderedTurn], marks: Mapping[str, str]
    ) -> None:
        """The rendered text, cut at its special tokens and at the borders of the turns."""
        borders = [
            (place, turn.trained and place == turn.body)
            for turn in turns
            for place in dict.fromkeys((turn.start, turn.body))
        ]
        ends = {turn.stop: turn.trained for turn in turns}
        waiting = iter([*borders, (len(text) + 1, False)])
        border, trains = next(waiting)
        inside = [(turn.body, turn.stop) for turn in turns if turn.trained]
        spans = iter([*inside, (len(text) + 1, len(text) + 1)])
        span = next(spans)
        at = 0
        for token in [*self._special.pattern.finditer(text), None]:
            stop = len(text) if token is None else token.start()
            while span[1] <= at:
                span = next(spans)
            if span[0] < at:
                draft.border(True)  # a text behind a special token that the assistant wrote
            while border <= stop:
                draft.text(unescape(text[at:border], marks))
                draft.border(trains)
                at = border
                border, trains = next(waiting)
            draft.text(unescape(text[at:stop], marks))
            if token is None:
                break
            while span[1] <= stop:
                span = next(spans)
            draft.fixed(self._special.token(self._special.ids[token[0]]), span[0] <= stop < span[1])
            at = token.end()
            if at in ends:
                draft.end_turn()


EMPTY_THOUGHT = re.compile(r"\s*<think>\s*</think>\s*")


def _common(a: str, b: str) -> int:
    """How many characters two texts begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
