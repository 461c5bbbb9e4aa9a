"""Documents made of special tokens and texts → ids and the mask. Which text is trained is decided by who
writes the draft; how it is tokenised, here.

Text between two special tokens is one piece for the tokenizer, as a serving engine sees it. A border in it is
a token border all the same: up to there a prompt was tokenised before the rest existed. Most texts have a
token border there by themselves; where a token would straddle it, the two sides are tokenised apart.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tuner.data.chat.split_special import WHITE, FixedText
from tuner.data.conversation import Conversation, RowError
from tuner.data.tokenizer.load import Vocabulary


@dataclass(kw_only=True, slots=True)
class Encoded:
    """Documents as the model sees them, one after the other."""

    ids: NDArray[np.int32]
    """[sum T] token ids"""
    trained: NDArray[np.bool_]
    """[sum T] whether the token is a target, predicted from the one before it; never the first of a
    document
    """
    offsets: NDArray[np.int64]
    """[N+1] where each document begins"""
    ends: list[tuple[int, ...]]
    """for each document, how many of its tokens there are up to the end of each assistant turn: where it
    can be cut
    """
    problems: dict[int, str]
    """why a conversation can't be written; its document is empty"""


@dataclass(slots=True, eq=False)
class TextRun:
    """A text between two special tokens, with what there is to say of it. A plain, untrained one is a bare
    string.
    """

    text: str
    heads: tuple[str, ...]
    """its beginnings up to each border"""
    trained: bool
    """whether what follows the last border is trained"""
    first: bool = False
    """whether no token stands before it"""
    ids: list[int] = field(default_factory=list)
    """its tokens, once they are known"""
    border: int = 0
    """how many of them stand before the last border"""

    def sides(self) -> list[str]:
        """The texts between the borders."""
        return [self.text[len(a) : len(b)] for a, b in pairwise(("", *self.heads, self.text))]


END = object()
"""where an assistant's turn ends"""


class Draft:
    """Documents as they are written, a batch of them. The state between two calls is a text that no
    special token has ended yet.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._items: list[Any] = []  # str: untrained text; Run; list: untrained ids; tuple: trained ids; END
        self._bounds = [0]
        self._text = ""
        self._cuts: tuple[int, ...] = ()
        self._trained = False
        self._strip = False
        self._owed: bool | None = None
        self._first = vocabulary.later is not vocabulary.tokenizer

    def text(self, text: str) -> None:
        """Go on with a text."""
        self._text += text

    def border(self, trained: bool = False) -> None:
        """What follows, up to the next special token, was written later than what stands here; it may be
        trained.
        """
        self._cuts += (len(self._text),)
        self._trained = trained

    def fixed(self, fixed: FixedText, trained: bool = False) -> None:
        """Go on with a text of the template, its special tokens trained or not; whether the texts around
        them are, `border` says.
        """
        if fixed.lead:
            self._text += fixed.lead
        if fixed.ids:
            self._flush(fixed.strips_before)
            if self._owed is None:
                self._items.append(fixed.ids if trained else fixed.plain)
            else:
                self._items += [
                    fixed.ids[:1] if self._owed else fixed.plain[:1],
                    END,
                    fixed.ids[1:] if trained else fixed.plain[1:],
                ]
                self._owed = None
            self._text, self._strip = fixed.tail, fixed.strips_after

    def written(self, fixed: FixedText, trained: bool) -> None:
        """Go on with a text of the template that the assistant writes itself, inside its turn."""
        self.fixed(fixed, trained)
        if fixed.ids:
            self._cuts, self._trained = (0,), trained

    def owe(self, trained: bool) -> None:
        """The next special token ends an assistant's turn, and may be trained for it."""
        self._owed = trained

    def end_turn(self) -> None:
        """An assistant's turn ends here, behind a special token, and a document may."""
        self._items.append(END)

    def close(self) -> None:
        """End the document."""
        self._flush(False)
        start = self._bounds[-1]
        if self._first and len(self._items) > start:
            item = self._items[start]
            if isinstance(item, str):
                self._items[start] = TextRun(item, (), False, True)
            elif isinstance(item, TextRun):
                item.first = True
        self._bounds.append(len(self._items))
        self._strip, self._owed = False, None

    def drop(self) -> None:
        """Leave the document empty."""
        del self._items[self._bounds[-1] :]
        self._text, self._cuts, self._trained, self._strip, self._owed = "", (), False, False, None
        self._bounds.append(len(self._items))

    def _flush(self, strips: bool) -> None:
        text, cuts = self._text, self._cuts
        if self._strip or strips:
            text, cuts = self._stripped(text, cuts, strips)
        if not cuts:
            if text:
                self._items.append(text)
        elif text:
            self._items.append(TextRun(text, tuple([text[:cut] for cut in cuts]), self._trained))
        self._text, self._cuts = "", ()

    def _stripped(self, text: str, cuts: tuple[int, ...], strips: bool) -> tuple[str, tuple[int, ...]]:
        # as far as the template and the person wrote: what was written behind a border came later
        if self._strip:
            reach = cuts[0] if cuts else len(text)
            gone = reach - len(text[:reach].lstrip(WHITE))
            text, cuts = text[gone:], tuple(cut - gone for cut in cuts)
        if strips:
            text = text.rstrip(WHITE)
            cuts = tuple(min(cut, len(text)) for cut in cuts)
        return text, cuts

    def batch(self, problems: dict[int, str]) -> Encoded:
        """All documents, tokenised in one go by the tokenizer's threads."""
        later = self._settle()
        items = self._items
        chunks: list[Sequence[int]] = []
        at = 0  # tokens in them
        starts: list[int] = []  # of trained stretches
        stops: list[int] = []
        offsets, ends = [0], []
        for begin, end in pairwise(self._bounds):
            turns: list[int] = []
            for item in items[begin:end]:
                kind = type(item)
                if kind is str:
                    ids = later[item]
                elif kind is list:
                    ids = item
                elif kind is TextRun:
                    ids = item.ids
                    if item.trained:
                        starts.append(at + item.border)
                        stops.append(at + len(ids))
                elif kind is tuple:
                    ids = item
                    starts.append(at)
                    stops.append(at + len(ids))
                else:
                    turns.append(at - offsets[-1])
                    continue
                chunks.append(ids)
                at += len(ids)
            offsets.append(at)
            ends.append(tuple(turns))
        where = np.array(offsets, dtype=np.int64)
        trained = _mask(at, starts, stops)
        trained[where[:-1][np.diff(where) > 0]] = False
        flat = np.fromiter(chain.from_iterable(chunks), np.int32, at)
        return Encoded(ids=flat, trained=trained, offsets=where, ends=ends, problems=problems)

    def _settle(self) -> dict[str, list[int]]:
        """Tokenise all texts: each run gets its ids, and the ids of the plain ones are returned."""
        vocabulary, items = self._vocabulary, self._items
        runs = [item for item in items if type(item) is TextRun]
        texts = [item for item in items if type(item) is str]
        firsts: list[str] = []
        for run in runs:
            into = firsts if run.first else texts
            into.append(run.text)
            into += run.heads
        later, first = _tokens(vocabulary.later, texts), _tokens(vocabulary.tokenizer, firsts)
        straddled: list[TextRun] = []
        for run in runs:
            known = first if run.first else later
            longer = run.ids = known[run.text]
            for head in reversed(run.heads):
                ids = known[head]
                if longer[: len(ids)] != ids:
                    straddled.append(run)
                    break
                longer = ids
            if run.heads:
                run.border = len(known[run.heads[-1]])
        if straddled:
            inner = _tokens(vocabulary.inner, [side for run in straddled for side in run.sides()[1:]])
            for run in straddled:
                parts = [
                    (first if run.first else later)[run.heads[0]],
                    *(inner[side] for side in run.sides()[1:]),
                ]
                run.ids, run.border = [id_ for part in parts for id_ in part], sum(map(len, parts[:-1]))
        return later


def encode_conversations(
    vocabulary: Vocabulary,
    conversations: Sequence[Conversation],
    write: Callable[[Draft, Conversation], None],
) -> Encoded:
    """All conversations, each written into a draft by `write`; one for which it raises RowError is a
    problem, and its document empty.
    """
    draft, problems = Draft(vocabulary), {}
    for i, conversation in enumerate(conversations):
        try:
            write(draft, conversation)
            draft.close()
        except RowError as error:
            problems[i] = str(error)
            draft.drop()
    return draft.batch(problems)


def _mask(size: int, starts: Sequence[int], stops: Sequence[int]) -> NDArray[np.bool_]:
    """True from each start up to its stop.

    >>> _mask(6, [1, 4], [3, 5]).astype(int).tolist()
    [0, 1, 1, 0, 1, 0]
    """
    steps = np.zeros(size + 1, dtype=np.int8)
    np.add.at(steps, np.array(starts, dtype=np.int64), 1)
    np.add.at(steps, np.array(stops, dtype=np.int64), -1)
    mask: NDArray[np.bool_] = np.cumsum(steps[:-1], dtype=np.int8) > 0
    return mask


def encode_texts(texts: Sequence[str], vocabulary: Vocabulary, end_id: int) -> Encoded:
    """Documents of plain text: the tokens that begin a text, where the tokenizer has such, the text, and
    the token that ends it.
    """
    tokenizer = vocabulary.tokenizer
    eos = None if vocabulary.eos is None else tokenizer.token_to_id(vocabulary.eos)
    begin = list(vocabulary.begin)
    end = end_id if eos is None else eos
    known = _tokens(vocabulary.later if begin else tokenizer, texts)
    flat: list[int] = []
    offsets = [0]
    for text in texts:
        flat += begin
        flat += known[text]
        flat.append(end)
        offsets.append(len(flat))
    trained = np.ones(len(flat), dtype=np.bool_)
    for start in offsets[:-1]:
        trained[start : start + max(1, len(begin))] = False
    return Encoded(
        ids=np.array(flat, dtype=np.int32),
        trained=trained,
        offsets=np.array(offsets, dtype=np.int64),
        ends=[() for _ in texts],
        problems={},
    )


def _tokens(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, list[int]]:
    unique = list(dict.fromkeys(texts))
    return (
        dict(
            zip(
                unique,
                [row.ids for row in tokenizer.encode_batch_fast(unique, add_special_tokens=False)],
                strict=True,
            )
        )
        if unique
        else {}
    )
