"""Documents as a chat template writes them: texts and special tokens in their order, and which of them are
trained. That decides the loss mask; tuner.data.chat.encode turns it into ids.

A border in a text is where somebody else goes on writing: a prompt was tokenised up to there before the rest
existed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tuner.data.chat.split_special import WHITE, FixedIds, FixedText
from tuner.data.tokenizer.load import Vocabulary


@dataclass(slots=True, eq=False)
class TextRun:
    """A text between two special tokens. It is tokenised when all texts of a batch are known."""

    text: str
    heads: tuple[str, ...] = ()
    """its beginnings up to each border"""
    trained: bool = False
    """whether what follows the last border is trained"""
    first: bool = False
    """whether no token stands before it"""
    ids: Sequence[int] = ()
    """its tokens, once they are known"""
    border: int = 0
    """of `ids`, how many stand before the last border"""

    def sides(self) -> list[str]:
        """The texts between the borders."""
        return [self.text[len(a) : len(b)] for a, b in pairwise(("", *self.heads, self.text))]


Item = FixedIds | TextRun


class Draft:
    """Documents as they are written, a batch of them: for each, what it is put together of, and which of that
    is trained. The state between two calls is a text that no special token has ended yet.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.items: list[Item] = []
        """of all documents, one after the other"""
        self.bounds = [0]
        """where among the items each document begins, and where the last one ends"""
        self.turn_ends: list[tuple[int, ...]] = []
        """of each document, behind how many items an assistant's turn ends"""
        self._turn_ends: tuple[int, ...] = ()
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
                self.items.append(fixed.trained if trained else fixed.untrained)
            else:
                self.items.append(FixedIds(fixed.ids[:1], self._owed))
                self.end_turn()
                self.items.append(FixedIds(fixed.ids[1:], trained))
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
        self._turn_ends += (len(self.items),)

    def close(self) -> None:
        """End the document."""
        self._flush(False)
        start = self.bounds[-1]
        if self._first and len(self.items) > start and isinstance(item := self.items[start], TextRun):
            item.first = True
        self._end_document()
        self._strip, self._owed = False, None

    def drop(self) -> None:
        """Leave the document empty."""
        del self.items[self.bounds[-1] :]
        self._text, self._cuts, self._trained, self._strip, self._owed = "", (), False, False, None
        self._turn_ends = ()
        self._end_document()

    def _end_document(self) -> None:
        self.bounds.append(len(self.items))
        self.turn_ends.append(self._turn_ends)
        self._turn_ends = ()

    def _flush(self, strips: bool) -> None:
        text, cuts = self._text, self._cuts
        if self._strip or strips:
            text, cuts = self._stripped(text, cuts, strips)
        if text and cuts:
            self.items.append(TextRun(text, tuple([text[:cut] for cut in cuts]), self._trained))
        elif text:
            self.items.append(TextRun(text))
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
