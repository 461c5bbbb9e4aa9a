"""Rows of text with their columns under each other."""

from collections.abc import Collection, Sequence

from rich.cells import cell_len


def columns(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """A line for each row, where a Chinese character takes two places; columns in `right` end under each
    other.

    >>> columns([["a", "loss"], ["客服", "1.5"]], {1})
    ['a     loss', '客服   1.5']
    """
    widths = [max(cell_len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        padded = [(" " * (widths[i] - cell_len(text)), text, i in right) for i, text in enumerate(row)]
        lines.append("  ".join(f"{gap}{text}" if end else f"{text}{gap}" for gap, text, end in padded))
    return [line.rstrip() for line in lines]
