"""Documents of at most data.length tokens: what is longer is truncated, split or dropped."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tuner.data.chat.encode import Encoded
from tuner.data.conversation import Conversation, DocumentRole, exchanges
from tuner.data.tokenize.samples import Part

Encode = Callable[[Sequence[Conversation]], Encoded]


@dataclass(frozen=True, slots=True)
class Whole:
    """A part of a row as tokens, as long as it is."""

    part: Part
    encoded: Encoded
    index: int
    """which of the encoded documents it is"""

    @property
    def size(self) -> int:
        """Tokens."""
        return int(self.encoded.offsets[self.index + 1] - self.encoded.offsets[self.index])

    @property
    def conversation(self) -> Conversation | None:
        """None for a plain text."""
        return self.part.content if isinstance(self.part.content, Conversation) else None

    @property
    def turn_ends(self) -> tuple[int, ...]:
        """How many tokens there are up to the end of each assistant turn: where it can be cut."""
        return self.encoded.ends[self.index]

    @property
    def problem(self) -> str | None:
        """Why the template can't write it."""
        return self.encoded.problems.get(self.index)


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """Tokens of one row, or of a part of it."""

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    cut: str = ""
    """`truncated` or `split`, where it is not the whole"""


def fit(whole: Whole, length: int, rule: str, encode: Encode) -> Iterator[Document]:
    """The documents of a part in at most `length` tokens each; none where it is dropped.

    rule    data.overlong; what is compared with other answers is truncated where others are split
    encode  conversations → ids and mask
    """
    encoded, conversation = whole.encoded, whole.conversation
    start, end = int(encoded.offsets[whole.index]), int(encoded.offsets[whole.index + 1])
    ids, trained = encoded.ids[start:end], encoded.trained[start:end]
    if end - start <= length:
        yield Document(ids=ids, trained=trained)
        return
    if rule == "auto":
        rule = "truncate" if conversation else "split"
    if rule == "split" and whole.part.role is not DocumentRole.NONE:
        rule = "truncate"
    if rule == "truncate":
        ends = [at for at in whole.turn_ends if at <= length and trained[:at].any()]
        at = max(ends, default=length)
        yield Document(ids=ids[:at], trained=trained[:at], cut="truncated")
    elif rule == "split" and conversation and len(groups := list(_groups(conversation, length, encode))) > 1:
        parts = encode(groups)
        for i in range(len(groups)):
            piece = slice(int(parts.offsets[i]), int(parts.offsets[i + 1]))
            yield from windows(parts.ids[piece], parts.trained[piece], length)
    elif rule == "split":
        yield from windows(ids, trained, length)


def _groups(conversation: Conversation, length: int, encode: Encode) -> Iterator[Conversation]:
    """Exchanges in groups that fit into a pack together, as far as their lengths alone say so; each with the
    system turn in front.
    """
    systems = tuple(message for message in conversation.messages[:1] if message.role == "system")
    groups = list(exchanges(conversation.messages[len(systems) :]))
    alone = encode([replace(conversation, messages=(*systems, *group)) for group in groups])
    open_, room = list(systems), length
    for group, size in zip(groups, np.diff(alone.offsets).tolist(), strict=True):
        if size > room and len(open_) > len(systems):
            yield replace(conversation, messages=tuple(open_))
            open_, room = list(systems), length
        open_ += group
        room -= size
    yield replace(conversation, messages=tuple(open_))


def windows(ids: NDArray[np.int32], trained: NDArray[np.bool_], length: int) -> Iterator[Document]:
    """Tokens in pieces of `length`, the last one shorter; the first token of each has nothing before it,
    and is not trained.
    """
    for at in range(0, len(ids), length):
        piece = trained[at : at + length].copy()
        piece[0] = False
        yield Document(ids=ids[at : at + length], trained=piece, cut="split")
