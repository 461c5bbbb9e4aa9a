"""The ledger: what became of every row, by source and line, and what the packs hold."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tuner.data.formats.nulls import Nulls
from tuner.data.tokenize.job import EXAMPLES, NOT_DRAWN, OUT_OF_REACH, TOO_LONG, Unread

FIRST = 10
"""lines that are named for each reason"""


@dataclass(kw_only=True, slots=True)
class FileCounts:
    """The counts of one file. `rows` is what was read, and the sum of `kept` and of what was dropped."""

    source: str
    """of a mixture: its name there"""
    file: str
    """the file's name as a person knows it, without its place; of a hub's, its path in the repository"""
    rows: int = 0
    kept: int = 0
    truncated: int = 0
    """of the kept: the end was left out"""
    split: int = 0
    """of the kept: became several documents"""
    held_out: int = 0
    """of the documents: not trained on"""
    duplicates: int = 0
    """of the documents: the same tokens as one before"""
    documents: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    dropped: dict[str, dict[str, Any]] = field(default_factory=dict)
    """by reason: how many rows, and the first lines"""
    unread: dict[str, Unread] = field(default_factory=dict)
    """by name, what no format reads: columns, and keys of turns; most of them texts first"""

    nulls: Nulls = field(default_factory=Nulls)
    """of calls and tools, by key: those that a columnar schema filled in, and doubtful ones, which are
    kept
    """

    def drop(self, reason: str, lines: Sequence[int], why: Sequence[str] = ()) -> None:
        """Count rows that are left out; `why` says more of each."""
        if not lines:
            return
        entry = self.dropped.setdefault(reason, {"rows": 0, "first": []})
        room = FIRST - len(entry["first"])
        entry["rows"] += len(lines)
        entry["first"] += lines[:room]
        if why and room:
            entry.setdefault("why", []).extend(why[:room])

    def not_read(self, found: Mapping[str, Unread]) -> None:
        """Count what no format reads."""
        for name, more in found.items():
            entry = self.unread.setdefault(name, Unread(left=more.left))
            entry.add(more.rows, more.texts)
            entry.examples += more.examples[: EXAMPLES - len(entry.examples)]

    @property
    def usable(self) -> int:
        """Rows that are kept, or would be if data.length were larger."""
        return self.kept + sum(
            int(self.dropped[reason]["rows"]) for reason in (TOO_LONG, OUT_OF_REACH) if reason in self.dropped
        )

    @property
    def drawn(self) -> int:
        """Rows that were wanted."""
        return self.rows - int(self.dropped.get(NOT_DRAWN, {"rows": 0})["rows"])

    @property
    def lost(self) -> int:
        """Rows that are left out."""
        return sum(entry["rows"] for entry in self.dropped.values())


def summary(packs: int, lengths: int, documents: int, trained: int, capacity: int) -> dict[str, Any]:
    """What a file of packs holds. `efficiency` is the share of the packs' places that hold a token; null
    where there is no pack.
    """
    return {
        "packs": packs,
        "documents": documents,
        "tokens": lengths,
        "trained_tokens": trained,
        "efficiency": round(lengths / (packs * capacity), 4) if packs else None,
    }


def write_ledger(
    path: Path,
    sources: Iterable[FileCounts],
    *,
    length: int,
    train: dict[str, Any],
    held_out: dict[str, Any],
    cut: dict[str, int],
) -> None:
    """Write ledger.json. Every row must be accounted for: a row that is neither kept nor dropped is a bug
    of ours.
    """
    entries = []
    for source in sources:
        assert source.rows == source.kept + source.lost, (
            f"{source.file}: {source.rows} rows, {source.kept} kept, {source.lost} dropped"
        )
        entries.append(
            _counts(source)
            | {
                "unread": {name: _plain(entry) for name, entry in most_texts_first(source.unread)},
                "nulls": _sorted(source.nulls),
            }
        )
    ledger = {"length": length, "cut": cut, "sources": entries, "train": train, "held_out": held_out}
    path.write_text(json.dumps(ledger, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def most_texts_first(unread: Mapping[str, Unread]) -> list[tuple[str, Unread]]:
    """What is not read, most of it texts first."""
    return sorted(unread.items(), key=lambda item: (-item[1].texts, -item[1].rows, item[0]))


def _plain(entry: Unread) -> dict[str, Any]:
    return {"rows": entry.rows, "texts": entry.texts} | ({"left": True} if entry.left else {})


FindHint = Callable[[str, Mapping[str, Unread]], str | None]


def _counts(source: FileCounts) -> dict[str, Any]:
    return {entry.name: getattr(source, entry.name) for entry in fields(source)}


def _sorted(nulls: Nulls) -> dict[str, dict[str, int]]:
    found = {"arguments": nulls.arguments, "tools": nulls.tools, "doubtful": nulls.doubtful}
    return {name: dict(sorted(counts.items())) for name, counts in found.items() if counts}


NAMED = 4
"""things not read that a line names"""


def unread_lines(sources: Iterable[FileCounts], use: FindHint | None = None) -> list[str]:
    """A line for each source, or file, of which something is not read that is not known to be left.

    use   gives, for the label of a source and what is not read of it, the words that were found to read it
    """
    groups: dict[str, list[FileCounts]] = {}
    for source in sources:
        groups.setdefault(source.source, []).append(source)
    lines = []
    for label, group in groups.items():
        merged = FileCounts(source=label, file="")
        for source in group:
            merged.not_read({name: entry for name, entry in source.unread.items() if not entry.left})
        if merged.unread:
            lines.append(
                (f"{label}: " if label else "")
                + unread_line(
                    merged.unread,
                    sum(source.drawn for source in group),
                    use(label, merged.unread) if use else None,
                )
            )
    return lines


def null_lines(sources: Iterable[FileCounts]) -> list[str]:
    """A line for each source in whose calls and tools there are nulls that were filled in, or may have
    been.
    """
    groups: dict[str, Nulls] = {}
    for source in sources:
        groups.setdefault(source.source, Nulls()).add(source.nulls)
    lines = []
    for label, nulls in groups.items():
        gone = [
            f"{counts.total():,} {what}"
            for what, counts in (("arguments of calls", nulls.arguments), ("entries of tools", nulls.tools))
            if counts
        ]
        said = (
            [
                f"left out as filled in by a table: null in {' and '.join(gone)} "
                f"({_few([*nulls.arguments, *nulls.tools])})"
            ]
            if gone
            else []
        )
        said += (
            [
                f"kept, as it may be meant: null in {nulls.doubtful.total():,} places "
                f"({_few([*nulls.doubtful])})"
            ]
            if nulls.doubtful
            else []
        )
        lines += [f"{label}: {'; '.join(said)}" if label else "; ".join(said)] if said else []
    return lines


def _few(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:NAMED]) + (" …" if len(names) > NAMED else "")


def unread_line(found: Mapping[str, Unread], rows: int, use: str | None = None) -> str:
    """What is not read of so many rows, in a line; `use` says what would read it."""
    kinds: dict[str, list[str]] = {}
    first = most_texts_first(found)[:NAMED]
    for name, entry in first:
        kinds.setdefault(f"{'text ' if entry.texts else ''}in {entry.rows:,} of {rows:,} rows", []).append(
            name
        )
    said = "; ".join(
        f"{', '.join(names)}, {where}" if where.startswith("text") else f"{', '.join(names)} {where}"
        for where, names in kinds.items()
    )
    more = f"; and {len(found) - len(first)} more (in ledger.json)" if len(found) > len(first) else ""
    return f"not read: {said}{more}" + (f"; to use it: {use}" if use else "")


SHOWN = 12
"""lines of the table; what is more is summed up"""


def ledger_table(sources: Sequence[FileCounts], use: FindHint | None = None) -> list[str]:
    """The counts as lines of a table: a source of a mixture, or else a file, to a line; then why rows were
    left out, and what is not read of them.
    """
    groups: dict[str, list[FileCounts]] = {}
    for source in sources:
        groups.setdefault(source.source or source.file, []).append(source)
    names = tuple("rows kept truncated split lost held_out documents tokens trained_tokens".split())
    counts = [
        (name, [sum(getattr(source, column) for source in group) for column in names])
        for name, group in groups.items()
    ]
    if len(counts) > SHOWN:
        rest = counts[SHOWN - 1 :]
        counts[SHOWN - 1 :] = [
            (f"{len(rest)} more", [sum(column) for column in zip(*(row for _, row in rest), strict=True)])
        ]
    if len(counts) > 1:
        counts.append(("in all", [sum(column) for column in zip(*(row for _, row in counts), strict=True)]))
    heads = [name.replace("_", " ").replace("lost", "dropped") for name in names]
    wide = max(len(name) for name, _ in counts)
    widths = [max(len(head), *(len(f"{row[i]:,}") for _, row in counts)) for i, head in enumerate(heads)]
    lines = [
        f"{'':{wide}}  " + "  ".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True))
    ]
    lines += [
        f"{name:{wide}}  " + "  ".join(f"{n:>{width},}" for n, width in zip(row, widths, strict=True))
        for name, row in counts
    ]
    return lines + drop_reasons(sources) + unread_lines(sources, use) + null_lines(sources)


def drop_reasons(sources: Iterable[FileCounts]) -> list[str]:
    """Why rows were left out, with their lines."""
    lines = []
    for source in sources:
        for reason, entry in source.dropped.items():
            first = ", ".join(map(str, entry["first"]))
            where = (
                f" ({source.file}:{first}{' …' if entry['rows'] > len(entry['first']) else ''})"
                if first
                else ""
            )
            lines.append(f"dropped {entry['rows']:,}: {reason}{where}")
    return lines
