"""The chat template: a conversation → ids, and which of them are trained. Nothing else decides the loss mask.

    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello!<|im_end|>\\n
    ^ id        ^ piece ^ id      ^p  ^ id        ^ piece   | ^    ^ id      ^ piece
                                                   border --+
                                                             ~~~~~~~~~~~~~~~ trained

Special tokens enter by their id and text is never parsed for them, so a person who writes `<|im_end|>` ends no turn. The text
between two special tokens is one piece for the tokenizer, as a serving engine sees it. Where the assistant starts to write is a
token border, because in generation it is one: the prompt is tokenised before the answer exists. Most answers fall on a border
by themselves; where a token would straddle it (an answer that starts with a line break), the two sides are tokenised apart.

Not covered: tool turns, reasoning, a template that changes a text by its position, and a tokenizer that writes a space before
the first text only (SentencePiece's dummy prefix).
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tuner.data.conversation import Conversation, Message
from tuner.errors import ConfigError, DataError

VERSION = 1
"""bumped when the same conversation and template would give other ids or another mask"""

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """A conversation as the model sees it."""

    ids: NDArray[np.int32]
    """[T] token ids"""
    trained: NDArray[np.bool_]
    """[T] whether the token is a target, predicted from the one before it"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """What the tokenizer gets at once: one special token, or all text up to the next one."""

    id: int | None = None
    """of the special token"""
    head: str = ""
    """text that stands before the border"""
    answer: str = ""
    """text that the assistant wrote, from the border on"""
    trained: bool = False
    """whether the special token or the answer is trained; a head never is"""


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a model directory. It cuts and pads nothing, and reads no special token out of text.

    Raises DataError when there is no tokenizer.json, or when it can't be read.
    """
    file = directory / "tokenizer.json"
    if not file.is_file():
        raise DataError(f"{directory} has no tokenizer.json, which turns text into tokens. Copy it from the model's publisher into that directory.")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust side raises bare Exception
        raise DataError(f"{file} can't be read as a tokenizer ({error}). Fetch the file again.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def compile_template(chat: Any, tokenizer: Tokenizer) -> "Template":
    """Fit the template `chat` (a tuner.schema.Chat, or a stage's view of one) to a tokenizer.

    Raises ConfigError when the template contradicts itself, and DataError when a special token of it is not one id of the tokenizer.
    """
    for role in ROLES:
        if getattr(chat, role).count("{text}") != 1:
            raise ConfigError(f"model.chat.{role} is {getattr(chat, role)!r}; it must hold {{text}} exactly once, where the turn's text goes.")
    if not chat.end or chat.end not in chat.special:
        raise ConfigError(
            f"model.chat.end is {chat.end!r}, and must be one of the special tokens {list(chat.special)}: "
            "it ends an answer, in training and in generation. Choose a template, as in model/chat=chatml, or name its end token."
        )
    if "{text}" + chat.end not in chat.assistant:
        raise ConfigError(f"model.chat.assistant is {chat.assistant!r}; in it model.chat.end ({chat.end}) must follow {{text}} at once.")
    ids = {}
    for token in chat.special:
        id_ = tokenizer.token_to_id(token)
        if id_ is None:
            raise DataError(
                f"the chat template needs the special token {token}, and the model's tokenizer has none of that name. "
                "Choose the template the model was made for (model/chat=…), or a model whose tokenizer has it."
            )
        if id_ in tokenizer.encode(token, add_special_tokens=False).ids:
            raise DataError(
                f"the tokenizer reads {token} out of ordinary text, so a row could end a turn. "
                'In its tokenizer.json, under added_tokens, this token needs "special": true.'
            )
        ids[token] = id_
    return Template(chat, tokenizer, ids)


class Template:
    """A chat template compiled for one tokenizer, by `compile_template`."""

    def __init__(self, chat: Any, tokenizer: Tokenizer, ids: Mapping[str, int]) -> None:
        self._tokenizer, self._ids = tokenizer, ids
        self._begin: str = chat.begin
        self._default_system: str | None = chat.default_system
        self._turns: dict[str, list[str]] = {role: getattr(chat, role).split("{text}") for role in ROLES}
        self._end: str = chat.end
        self.end_id: int = ids[chat.end]
        """the token that ends an answer: generation stops at it"""

    def encode(self, conversations: Sequence[Conversation]) -> list[Encoded]:
        """All conversations, in one batch for the tokenizer's threads. The first token of each is never trained."""
        return self._encode([self._write(conversation.messages) for conversation in conversations])

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids up to where the assistant starts to write its answer to `messages`."""
        ids: list[int] = self._encode([self._write(messages, opened=True)])[0].ids.tolist()
        return ids

    def _split(self, text: str, *, trained: bool = False) -> Iterator[Piece]:
        """The template's own text, cut at its special tokens: "<|im_start|>user\\n" gives the token, then "user\\n"."""
        start = 0
        while start < len(text):
            found = [(at, -len(token), token) for token in self._ids if (at := text.find(token, start)) >= 0]
            at, _, token = min(found, default=(len(text), 0, ""))
            if at > start:
                yield Piece(head=text[start:at])
            if token:
                yield Piece(id=self._ids[token], trained=trained)
            start = at + len(token)

    def _parts(self, messages: Sequence[Message], opened: bool) -> Iterator[Piece]:
        yield from self._split(self._begin)
        if self._default_system is not None and all(message.role != "system" for message in messages):
            messages = (Message(role="system", content=self._default_system), *messages)
        for message in messages:
            before, after = self._turns[message.role]
            yield from self._split(before)
            if message.role == "assistant":
                yield Piece(answer=message.content, trained=message.trains)
                yield from self._split(self._end, trained=message.trains)
                yield from self._split(after.removeprefix(self._end))
            else:
                yield Piece(head=message.content)
                yield from self._split(after)
        if opened:
            yield from self._split(self._turns["assistant"][0])

    def _write(self, messages: Sequence[Message], opened: bool = False) -> list[Piece]:
        pieces: list[Piece] = []
        for part in self._parts(messages, opened):
            if part.id is None and pieces and pieces[-1].id is None:
                # an answer is always followed by the end token, so what came before is all head
                pieces[-1] = replace(part, head=pieces[-1].head + part.head)
            else:
                pieces.append(part)
        return [piece for piece in pieces if piece.id is not None or piece.head or piece.answer]

    def _tokens(self, texts: Iterable[str]) -> dict[str, list[int]]:
        texts = list(dict.fromkeys(texts))
        return dict(zip(texts, (row.ids for row in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)), strict=True))

    def _encode(self, writings: Sequence[Sequence[Piece]]) -> list[Encoded]:
        texts = [piece for pieces in writings for piece in pieces if piece.id is None]
        whole = self._tokens(piece.head + piece.answer for piece in texts)
        heads = self._tokens(piece.head for piece in texts if piece.answer)
        straddled = [piece for piece in texts if piece.answer and whole[piece.head + piece.answer][: len(heads[piece.head])] != heads[piece.head]]
        apart = self._tokens(piece.answer for piece in straddled)
        encoded = []
        for pieces in writings:
            ids: list[int] = []
            trained: list[bool] = []
            for piece in pieces:
                row = [piece.id] if piece.id is not None else whole[piece.head + piece.answer]
                head = heads[piece.head] if piece.answer else row
                if piece.answer and row[: len(head)] != head:
                    row = head + apart[piece.answer]
                ids += row
                untrained = 0 if piece.id is not None else len(head)
                trained += [False] * untrained + [piece.trained] * (len(row) - untrained)
            trained[:1] = [False] * len(trained[:1])
            encoded.append(Encoded(ids=np.array(ids, dtype=np.int32), trained=np.array(trained, dtype=np.bool_)))
        return encoded


def to_jinja(chat: Any) -> str:
    """The same template in Jinja, as transformers and serving engines read it; tokenised there, it gives the ids of `Template`.

    Except that those engines do read special tokens out of a turn's text, and know no border inside an answer that is already written.
    """

    def turn(role: str) -> str:
        before, after = getattr(chat, role).split("{text}")
        return f"{{{{ {_literal(before)} + message['content'] + {_literal(after)} }}}}"

    default = "" if chat.default_system is None else _literal(chat.system.replace("{text}", chat.default_system))
    return "".join(
        (
            f"{{{{ {_literal(chat.begin)} }}}}" if chat.begin else "",
            f"{{% if messages | selectattr('role', 'equalto', 'system') | list | length == 0 %}}{{{{ {default} }}}}{{% endif %}}" if default else "",
            "{% for message in messages %}",
            f"{{% if message['role'] == 'system' %}}{turn('system')}",
            f"{{% elif message['role'] == 'user' %}}{turn('user')}",
            f"{{% elif message['role'] == 'assistant' %}}{turn('assistant')}",
            "{% else %}{{ raise_exception('the chat template has no turn for the role ' + message['role']) }}{% endif %}",
            "{% endfor %}",
            f"{{% if add_generation_prompt %}}{{{{ {_literal(chat.assistant.split('{text}')[0])} }}}}{{% endif %}}",
        )
    )


def _literal(text: str) -> str:
    """A Jinja string, on one line: blocks are trimmed at line breaks, strings are not."""
    return json.dumps(text, ensure_ascii=False)
