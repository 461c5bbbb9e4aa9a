r"""Tokens as text for a person: whole characters, special tokens by their names, and nothing that a terminal
would obey or hide.

    ids → pieces (whole characters) → painted: in colours, or ⟦between marks⟧ what is trained

A sign that can't be seen or that moves the cursor is written as Python would: \x1b, \u202e. A text that
spells a special token without being one gets a backslash: <\|im_end|>.
"""

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from typing import Literal

BROKEN = "\ufffd"
AHEAD = 3
"""more tokens than these no character needs: it has at most four bytes"""
OPEN, CLOSE = "⟦", "⟧"
UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0" + OPEN + CLOSE)
"""signs without ink that are no space, and the marks of what is trained"""

Kind = Literal[
    "plain",
    "special",
    "trained",
    "trained special",
    "hidden",
    "trained hidden",
    "left",
    "note",
    "head",
    "ids",
]
Paint = Callable[[str, Kind], str]
STYLES: dict[Kind, str] = {
    "plain": "",
    "special": "dim",
    "trained": "green",
    "trained special": "bold green",
    "hidden": "reverse",
    "trained hidden": "green reverse",
    "left": "dim",
    "note": "yellow",
    "head": "bold",
    "ids": "cyan",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoder:
    """What ids mean."""

    decode: Callable[[Sequence[int]], str]
    special: Mapping[int, str]
    """the special tokens by their names"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Tokens that are text only together; mostly one."""

    text: str
    ids: tuple[int, ...]
    trained: bool
    special: bool


def split_spans(
    ids: Sequence[int], trained: Sequence[bool], words: Decoder, before: Sequence[int] = ()
) -> list[Span]:
    """Tokens in groups of whole characters; none goes over a border between trained and untrained, or over a
    special token.

    `before` are the ids in front of these: some tokenizers write the first word of a text without its space.
    """
    special = words.special
    found: list[Span] = []
    context, at = list(before), 0
    while at < len(ids):
        if ids[at] in special:
            end, text = at + 1, special[ids[at]]
        else:
            limit = at + 1
            while limit < len(ids) and trained[limit] == trained[at] and ids[limit] not in special:
                limit += 1
                if limit - at > 16:
                    break
            end, text = _whole(ids, at, limit, words.decode, context)
        found.append(
            Span(text=text, ids=tuple(ids[at:end]), trained=bool(trained[at]), special=ids[at] in special)
        )
        context, at = list(ids[at:end]), end
    return _told_apart(found, special.values())


def _whole(
    ids: Sequence[int], at: int, limit: int, decode: Callable[[Sequence[int]], str], context: list[int]
) -> tuple[int, str]:
    """The end of the shortest group of whole characters that begins at `at`, and its text."""
    head = decode(context)

    def text_to(end: int) -> str:
        text = decode([*context, *ids[at:end]])
        # Two broken ends of characters may be one sign together.
        return text[len(head) :] if text.startswith(head) and text != head else decode(ids[at:end])

    end, text = at + 1, text_to(at + 1)
    while text.endswith(BROKEN):
        # What is whole stays as it is when more follows, and so does the sign U+FFFD of the data itself.
        further = ((more, text_to(more)) for more in range(end + 1, min(end + AHEAD, limit) + 1))
        if (found := next((f for f in further if f[1] == text or not f[1].startswith(text)), None)) is None:
            break
        end, text = found
    return end, text


def next_boundary(ids: Sequence[int], at: int, decode: Callable[[Sequence[int]], str]) -> int:
    """The first place from `at` on where no character is cut in two."""
    for place in range(at, min(at + AHEAD, len(ids)) + 1):
        if not decode(ids[place : place + AHEAD + 1]).startswith(BROKEN):
            return place
    return at


def _told_apart(found: list[Span], names: Collection[str]) -> list[Span]:
    """With a backslash where a text, of one piece or of several, spells a special token."""
    spelled = re.compile(
        "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True) if len(name) > 1) or r"(?!)"
    )
    result: list[Span] = []
    for special, group in groupby(found, key=lambda piece: piece.special):
        members = list(group)
        if special:
            result += members
            continue
        places = [match.start() + 1 for match in spelled.finditer("".join(piece.text for piece in members))]
        at = 0
        for piece in members:
            text, end = piece.text, at + len(piece.text)
            for place in [place for place in reversed(places) if at <= place < end]:
                text = f"{text[: place - at]}\\{text[place - at :]}"
            result.append(replace(piece, text=text))
            at = end
    return result


def render_spans(found: Iterable[Span], paint: Paint, *, marks: bool, ids: bool) -> str:
    """The pieces as one text. `marks` puts what is trained between ⟦ and ⟧, `ids` writes behind each piece
    its tokens: Hello‹9906›↵‹198›.
    """
    parts: list[str] = []
    for trained, group in groupby(found, key=lambda piece: piece.trained):
        parts.append(OPEN if trained and marks else "")
        for piece in group:
            text = piece.text.rstrip("\n") if ids else piece.text
            breaks = len(piece.text) - len(text)
            parts += [
                paint(part, _kind(piece, hidden)) for part, hidden in visible_parts(text + "↵" * breaks)
            ]
            parts += [paint(f"‹{','.join(map(str, piece.ids))}›", "ids"), "\n" * breaks] if ids else []
        parts.append(CLOSE if trained and marks else "")
    return "".join(parts)


def _kind(piece: Span, hidden: bool) -> Kind:
    if hidden:
        return "trained hidden" if piece.trained else "hidden"
    if piece.special:
        return "trained special" if piece.trained else "special"
    return "trained" if piece.trained else "plain"


def visible_parts(text: str) -> Iterator[tuple[str, bool]]:
    """The text in parts: what can be shown, and what can't, already written so that it can."""
    for hidden, signs in groupby(text, key=is_hidden):
        part = "".join(signs)
        yield part.encode("unicode_escape").decode("ascii") if hidden else part, hidden


def escape_hidden(text: str) -> str:
    r"""The text with all that a terminal would obey or hide written out.

    >>> escape_hidden("a\x1b[2J\r\n\u202eb\u200b你好🙂")
    'a\\x1b[2J\\r\n\\u202eb\\u200b你好🙂'
    """
    return "".join(part for part, _ in visible_parts(text))


@lru_cache(maxsize=4096)
def is_hidden(sign: str) -> bool:
    """Whether a sign can't be seen, or does something: controls but for line breaks and tabs, direction
    marks, joiners, fillers, surrogates.
    """
    if sign in "\n\t":
        return False
    if sign in UNSEEN or 0xE0000 <= ord(sign) <= 0xE0FFF:
        return True
    if 0xFE00 <= ord(sign) <= 0xFE0D:  # the two behind them only choose how an emoji looks
        return True
    return unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def painter(coloured: bool) -> Paint:
    """What writes a text in the colours of its kind; as it is where there are to be none."""
    if not coloured:
        return lambda text, _kind: text
    from rich.color import ColorSystem
    from rich.style import Style

    styles = {kind: Style.parse(style) for kind, style in STYLES.items()}
    return lambda text, kind: styles[kind].render(text, color_system=ColorSystem.STANDARD)


def is_coloured() -> bool:
    """Whether standard output is a terminal with colours, and the person wants them (NO_COLOR,
    FORCE_COLOR, TERM).
    """
    from rich.console import Console

    console = Console()
    return console.is_terminal and console.color_system is not None and not console.no_color
