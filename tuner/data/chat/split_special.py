"""The special tokens of a template, and its texts cut at them."""

import re
from dataclasses import dataclass, field

from tuner.data.tokenizer.load import Vocabulary

WHITE = (
    "\t\n\v\f\r "
    "\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
"""white space as a tokenizer understands it, which strips it where a special token says so"""


@dataclass(frozen=True, slots=True)
class FixedIds:
    """Tokens that a template writes, all of them trained or none."""

    ids: tuple[int, ...]
    trained: bool
    border: int = 0
    """of `ids`, how many stand before what is trained"""


@dataclass(frozen=True, slots=True)
class FixedText:
    """A text of the template, cut at its special tokens."""

    lead: str
    """before the first of them; all of the text where there is none"""
    ids: tuple[int, ...] = ()
    """from the first to the last, the texts between them tokenised"""
    tail: str = ""
    """behind the last"""
    strips_before: bool = False
    """whether the first takes the white space before it along, as a tokenizer may tell its special tokens
    to
    """
    strips_after: bool = False
    """the same of the last and the space behind it"""
    trained: FixedIds = field(init=False, repr=False, compare=False)
    """`ids` as the assistant writes them, with the loss on them"""
    untrained: FixedIds = field(init=False, repr=False, compare=False)
    """`ids` without the loss"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "trained", FixedIds(self.ids, True))
        object.__setattr__(self, "untrained", FixedIds(self.ids, False))


class SpecialTokens:
    """The special tokens of a template, and texts cut at them."""

    def __init__(self, vocabulary: Vocabulary, ids: dict[str, int]) -> None:
        self.ids = ids
        self.pattern = re.compile(
            "|".join(map(re.escape, sorted(ids, key=len, reverse=True))) if ids else r"(?!)"
        )
        """finds them in a text; of two that begin at one place, the longer one"""
        self._later = vocabulary.later
        added = vocabulary.tokenizer.get_added_tokens_decoder()
        self._lstrip = frozenset(id_ for id_ in ids.values() if id_ in added and added[id_].lstrip)
        self._rstrip = frozenset(id_ for id_ in ids.values() if id_ in added and added[id_].rstrip)

    def atoms(self, text: str) -> list[int | str]:
        r"""Special tokens and texts in turn: "<|im_start|>user\n" gives an id, then "user\n"."""
        found: list[int | str] = []
        start = 0
        for token in self.pattern.finditer(text):
            if token.start() > start:
                found.append(text[start : token.start()])
            found.append(self.ids[token[0]])
            start = token.end()
        return [*found, text[start:]] if start < len(text) else found

    def fixed(self, text: str) -> FixedText:
        """Raises nothing: a text without special tokens is all lead."""
        atoms = self.atoms(text)
        places = [i for i, atom in enumerate(atoms) if isinstance(atom, int)]
        if not places:
            return FixedText(text)
        first, last = places[0], places[-1]
        ids: list[int] = []
        for i, atom in enumerate(atoms[first : last + 1], start=first):
            if isinstance(atom, int):
                ids.append(atom)
            else:
                ids += self._later.encode(
                    self._stripped(atom, atoms[i - 1], atoms[i + 1]), add_special_tokens=False
                ).ids
        before, after = ids[0] in self._lstrip, ids[-1] in self._rstrip
        lead = "".join(atom for atom in atoms[:first] if isinstance(atom, str))
        tail = "".join(atom for atom in atoms[last + 1 :] if isinstance(atom, str))
        return FixedText(lead, tuple(ids), tail, before, after)

    def token(self, id_: int) -> FixedText:
        return FixedText("", (id_,), "", id_ in self._lstrip, id_ in self._rstrip)

    def _stripped(self, text: str, before: int | str, after: int | str) -> str:
        text = text.lstrip(WHITE) if before in self._rstrip else text
        return text.rstrip(WHITE) if after in self._lstrip else text
