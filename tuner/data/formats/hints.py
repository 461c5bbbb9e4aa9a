"""What a person could say to have rows read, found by reading: each way is tried on rows of the source, and
only what works is proposed.

    a sample of rows → ways that their names suggest (tuner.data.formats.guesses) → read by each → the best
    one → words for the command line

A way works where it reads every row of the sample, something is trained, and no text is read twice. The best
one trains on the most rows and leaves the fewest texts unread; what it leaves is named with it.
"""

import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tuner.data.conversation import Conversation, LeftOut, Message, RowError, Sample, Text
from tuner.data.formats import column_names, rows
from tuner.data.formats.guesses import Guess, all_guesses
from tuner.data.formats.shape import RowShape

SAMPLE = 20
"""rows that a way is tried on"""
MOST = 400
"""ways that are tried"""
SAFE = re.compile(r"(?![~\s])[^\\'\"$,\x00-\x09\x0b-\x1f]+(?<!\s)")
"""what can be typed as the place of a column and arrives as it is"""
WORD = re.compile(r"(?![~\s])[^\\'\"$,\[\](){}\x00-\x1f]+(?<!\s)")
"""the same of a role"""
LINE, WRITTEN = "\n", "\\n"
"""a line break, and how it is typed"""
SHOWN = 4
OWN = (
    "in the YAML of that source (for a bare file: write DIR/data/NAME.yaml with source: path and path: FILE, "
    "and name NAME with -cd DIR)"
)
"""where it is said of a source of a mixture, of which the command line says nothing"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hint:
    """A way that works."""

    way: Guess
    """what is to be said"""
    unread: Mapping[str, int] = field(default_factory=dict)
    """what it does not read → in how many rows of the sample"""
    rows: int
    """in the sample"""

    @property
    def line(self) -> str:
        """Its words for the command line, quoted for a shell."""
        said = [f"data.format={self.way.format}"] if self.way.format else []
        said += [
            f"data.columns.{ours}={theirs.replace(LINE, WRITTEN)}"
            for ours, theirs in self.way.columns.items()
        ]
        said += [f"data.roles.{role}=[{','.join(words)}]" for role, words in self.way.roles.items()]
        return " ".join(map(shlex.quote, said))

    @property
    def yaml(self) -> str:
        """The same for the YAML of a source: each field is a line of it."""
        said: dict[str, Any] = {"format": self.way.format} if self.way.format else {}
        said |= {
            name: value
            for name, value in (("columns", dict(self.way.columns)), ("roles", dict(self.way.roles)))
            if value
        }
        return " and ".join(
            f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in said.items()
        )

    @property
    def left(self) -> str:
        """What it does not read, in words; empty where that is nothing."""
        found = sorted(self.unread.items(), key=lambda item: (-item[1], item[0]))
        others = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        return ", ".join(f"{name} in {count} of {self.rows} rows" for name, count in found[:SHOWN]) + others


def best_hint(sample: Sequence[Any], shape: RowShape) -> Hint | None:
    """The best way to read the sample, in addition to what `shape` says; None where it is read already, or
    no way works.
    """
    sample = [row for row in sample if isinstance(row, dict | list)][:SAMPLE]
    return None if not sample or _try(sample, shape, Guess()) else _best(sample, shape, None)


def better_hint(sample: Sequence[Any], shape: RowShape) -> Hint | None:
    """The best way to read more of the sample than `shape` reads of it, and nothing less; None where there
    is none.
    """
    sample = [row for row in sample if isinstance(row, dict | list)][:SAMPLE]
    now = _try(sample, shape, Guess()) if sample else None
    return _best(sample, shape, frozenset(now[1].unread)) if now else None


Score = tuple[int, int, int, int]
"""rows that train, texts unread, characters that train, words: the first and the third with a minus"""


def _best(sample: Sequence[Any], shape: RowShape, unread: frozenset[str] | None) -> Hint | None:
    best: tuple[Score, Hint] | None = None
    tried: list[Guess] = []
    for way in all_guesses(sample, shape) if sample else ():
        if way == Guess() or way in tried or not _is_plain(way):
            continue
        tried.append(way)
        found = _try(sample, shape, way)
        if (
            found
            and (unread is None or found[1].unread.keys() < unread)
            and (best is None or found[0] < best[0])
        ):
            best = found
        if len(tried) == MOST:
            break
    return best[1] if best else None


def _try(sample: Sequence[Any], shape: RowShape, way: Guess) -> tuple[Score, Hint] | None:
    """How good a way is, the lower the better; None where it doesn't work."""
    said = way.of(shape)
    trained, size, again, lost, unread = 0, 0, 0, 0, Counter[str]()
    try:
        read = rows.row_reader(said)
        for row in sample:
            samples = read(row)
            if not all(isinstance(one, Conversation | Text) for one in samples):
                return None
            long = sum(map(_trained, samples))
            trained, size, again = trained + bool(long), size + long, again + any(map(repeats, samples))
            left = rows.unread_values(row, said)
            unread.update(left.keys())
            lost += _drops(left, samples)
    except (RowError, LeftOut):
        return None
    if not trained or max(again, lost) > len(sample) // 2:
        return None
    return (-trained, sum(unread.values()), -size, len(way.columns)), Hint(
        way=way, unread=dict(unread), rows=len(sample)
    )


def _drops(left: Mapping[str, Any], samples: Sequence[Sample]) -> bool:
    """Whether what is left unread is a question, or much of a row that is read as a document."""
    texts = {name: value for name, value in left.items() if isinstance(value, str)}
    document = sum(len(sample.text) for sample in samples if isinstance(sample, Text))
    return not column_names.PAIR[0].isdisjoint(texts) or (0 < document < 4 * sum(map(len, texts.values())))


def _trained(sample: Sample) -> int:
    """Characters that are trained."""
    if isinstance(sample, Text):
        return len(sample.text)
    messages = sample.messages if isinstance(sample, Conversation) else ()
    return sum(len(message.content) + len(message.calls) for message in messages if message.trains)


def repeats(sample: Sample) -> bool:
    """Whether a turn begins with what the one before it says, or the first question comes again: a text
    that is read twice.
    """
    messages: Sequence[Message] = sample.messages if isinstance(sample, Conversation) else ()
    asked = [message.content for message in messages if message.role == "user" and message.content.strip()]
    pairs = pairwise(messages)
    return asked[:1] == asked[1:2] != [] or any(
        before.content.strip() and after.content.startswith(before.content) for before, after in pairs
    )


def _is_plain(way: Guess) -> bool:
    """Whether all its words arrive as they are typed."""
    return all(SAFE.fullmatch(theirs) for theirs in way.columns.values()) and all(
        WORD.fullmatch(word) for words in way.roles.values() for word in words
    )


def how_to_read(sample: Sequence[Any], shape: RowShape, *, mixed: bool = False) -> str | None:
    """A sentence with the words that have such rows read; None where none were found. `mixed`: they are of
    a source of a mixture.
    """
    found = best_hint(sample, shape)
    if found is None:
        return None
    said = f"To read them, {OWN}: {found.yaml}" if mixed else f"To read them: {found.line}"
    return said + (f" (which does not read {found.left})" if found.left else "")


def how_to_train(sample: Sequence[Any], shape: RowShape, *, mixed: bool = False) -> str | None:
    """A sentence with the words that train on the better answers of rows that compare some; None where
    those that compare can't be read.
    """
    compared = [row for row in sample if rows.compares_answers(row, shape) and _reads(row, shape)]
    found = _try(compared, shape, Guess(format="chosen")) if compared else None
    if found is None:
        return None
    return (
        "To train on the better answers "
        f"alone{f', {OWN}: {found[1].yaml}' if mixed else f': {found[1].line}'}"
    )


def _reads(row: Any, shape: RowShape) -> bool:
    try:
        rows.read_row(row, shape)
    except (RowError, LeftOut):
        return False
    return True


def how_to_read_more(sample: Sequence[Any], shape: RowShape, *, mixed: bool = False) -> str | None:
    """The words that read more of such rows; None where none were found."""
    found = better_hint(sample, shape)
    return None if found is None else f"{found.yaml}, {OWN}" if mixed else found.line
