"""What became of a row, for a person and for a machine."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tuner.report.token_text import Decoder, Paint, escape_hidden, next_boundary, render_spans, split_spans

HEAD, TAIL = 300, 150
"""tokens of a long document that are shown from either end"""
AFTER = 60
"""tokens that are shown of what is left out"""
PARTS = 4
"""documents of one row that are shown"""
RAW = 300
"""characters of a row that has no document"""
NAMED = 10
"""lines that are named of several"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewedDocument:
    """A document, or what there is instead of one."""

    source: str
    """of a mixture: its name there"""
    file: str
    lines: tuple[int, ...] = ()
    """of the rows that it is about; of a document the first row alone, as in the packs"""
    rows: int = 1
    """how many there are together: 1 but for a tree of messages"""
    apart: bool = False
    """whether it is of a file that is held out"""
    times: int = 1
    """how often it is drawn"""
    sample: int = 1
    samples: int = 1
    """of the row: a conversation may be several, as with data.reasoning=every_turn"""
    part: int = 1
    parts: int = 1
    """of the sample, where it was split; parts in which nothing is trained are not there"""
    ids: Sequence[int] = ()
    trained: Sequence[bool] = ()
    whole: Sequence[int] = ()
    """the sample's ids, as if there was no data.length"""
    truncated: bool = False
    left_out: str | None = None
    """why; then `ids` are what it would be"""
    fails: bool = False
    """whether that fails the run"""
    row: Any = None
    unread: Sequence[str] = ()
    """what no format reads of the row, and isn't known to be left"""


def as_json(looks: Iterable[PreviewedDocument], words: Decoder) -> Iterator[dict[str, Any]]:
    """An object for each document, and for each row or sample that is left out; that has no ids."""
    for look in looks:
        ids = [] if look.left_out else look.ids
        trained = [] if look.left_out else look.trained
        value = {
            "source": look.source,
            "file": look.file,
            "line": 0,
            "sample": look.sample,
            "samples": look.samples,
            "part": look.part,
            "parts": look.parts,
            "times": look.times,
            "ids": ids,
            "labels": [i if is_trained else -100 for i, is_trained in zip(ids, trained, strict=True)],
            "text": words.decode(ids),
            "truncated": look.truncated,
            "left_out": look.left_out,
            "unread": list(look.unread),
        }
        yield from (value | {"line": line} for line in look.lines)


def as_text(
    looks: Sequence[PreviewedDocument], words: Decoder, paint: Paint, *, marks: bool, ids: bool, whole: bool
) -> str:
    """The documents of a row, each under a line that says what it is.

    marks  what is trained stands between ⟦ and ⟧
    ids    behind each piece of text
    whole  leave nothing out of a long document, or of many
    """

    def shown(tokens: Sequence[int], trained: Sequence[bool], before: Sequence[int] = ()) -> str:
        return render_spans(split_spans(tokens, trained, words, before), paint, marks=marks, ids=ids)

    def body(look: PreviewedDocument) -> str:
        tokens, trained, size = look.ids, look.trained, len(look.ids)
        if look.left_out:
            beginning, rest = _cut(tokens, AFTER, words) if not whole else (tokens, ())
            return faint(beginning) + (
                _note(paint, f"{len(rest):,} more tokens; --all shows them") if rest else ""
            )
        if whole or size <= HEAD + 2 * TAIL:
            return shown(tokens, trained)
        first, last = (
            next_boundary(tokens, HEAD, words.decode),
            next_boundary(tokens, size - TAIL, words.decode),
        )
        between = _note(
            paint,
            f"{last - first:,} tokens between, {sum(trained[first:last]):,} of them trained; --all shows "
            "them",
        )
        return (
            shown(tokens[:first], trained[:first])
            + between
            + shown(tokens[last:], trained[last:], tokens[max(0, last - 4) : last])
        )

    def faint(tokens: Sequence[int], before: Sequence[int] = ()) -> str:
        found = split_spans(tokens, [False] * len(tokens), words, before)
        return render_spans(
            found,
            lambda text, kind: paint(text, kind if kind in ("hidden", "ids") else "left"),
            marks=marks,
            ids=ids,
        )

    def one(look: PreviewedDocument) -> str:
        lines = [paint(_heading(look), "head")]
        if len(look.ids):
            lines.append(body(look))
        elif look.row is not None:
            lines.append(paint(_raw(look.row), "left"))
        if look.truncated:
            lines[-1] += _note(paint, f"cut here at {len(look.ids):,} of {len(look.whole):,} tokens")
            after = look.whole[len(look.ids) :]
            beginning, rest = _cut(after, AFTER, words) if not whole else (after, ())
            lines[-1] += faint(beginning, look.ids[-4:]) + (paint(" …", "note") if len(rest) else "")
        return "\n".join(lines).rstrip("\n") + "\n"

    blocks = [one(look) for look in (looks if whole or len(looks) <= PARTS + 1 else looks[:PARTS])]
    if len(blocks) < len(looks):
        blocks.append(
            paint(f"— {len(looks) - len(blocks):,} more of this row; --all shows them —", "note") + "\n"
        )
    return "\n".join(blocks)


def _cut(ids: Sequence[int], at: int, words: Decoder) -> tuple[Sequence[int], Sequence[int]]:
    at = next_boundary(ids, at, words.decode) if len(ids) > at else len(ids)
    return ids[:at], ids[at:]


def _note(paint: Paint, text: str) -> str:
    return "\n" + paint(f"— {text} —", "note") + "\n"


def _raw(row: Any) -> str:
    text = json.dumps(row, ensure_ascii=False)
    return escape_hidden(text if len(text) <= RAW else f"{text[:RAW]} …")


def _heading(look: PreviewedDocument) -> str:
    """Where it is from, and what it is."""
    lines = ", ".join(map(str, look.lines[:NAMED])) + (" …" if len(look.lines) > NAMED else "")
    said = [
        look.source,
        f"{look.file}:{lines}"
        + (f" ({len(look.lines):,} of {look.rows:,} rows)" if look.rows > 1 and look.left_out else ""),
    ]
    if look.rows > 1 and not look.left_out:
        said.append(f"of {look.rows:,} rows")
    if look.apart:
        said.append("held out")
    if look.times > 1:
        said.append(f"drawn {look.times:,} times")
    if look.samples > 1:
        said.append(f"sample {look.sample:,} of {look.samples:,}")
    if look.parts > 1 or (len(look.ids) < len(look.whole) and not look.truncated):
        said.append(f"part {look.part:,} of {look.parts:,}")
    if len(look.ids):
        said.append(
            f"{len(look.ids):,} tokens" + ("" if look.left_out else f", {sum(look.trained):,} trained")
        )
    if look.left_out:
        said.append(f"{'fails the run' if look.fails else 'left out'}: {look.left_out}")
    return "── " + escape_hidden(" · ".join(filter(None, said)).replace("\n", " "))
