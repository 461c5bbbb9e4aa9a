"""A comparison as text for a terminal of any width. More runs than fit beside each other follow in further
blocks.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tuner.report import chart
from tuner.report.comparison import CURVES, MISSING, answer_rows, field_text, group_equal, score_rows
from tuner.report.printable import printable

LONGEST = 240
"""characters of a config value; the page has all of it"""
BARS = 40
"""of a curve, at most"""


def to_text(comparison: Mapping[str, Any], width: int, *, colour: bool) -> str:
    """The comparison in lines of at most `width` columns; `colour` adds a terminal's codes for bold and
    green.
    """
    out = io.StringIO()
    console = Console(
        file=out,
        width=max(width, 20),
        force_terminal=colour,
        color_system="standard" if colour else None,
        highlight=False,
    )
    for part in _parts(comparison, max(width, 20)):
        console.print(part)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def printable_lines(text: str) -> str:
    """`printable`, with the line breaks kept."""
    return "\n".join(printable(line) for line in text.splitlines())


def _parts(comparison: Mapping[str, Any], width: int) -> Iterator[RenderableType]:
    labels = [run["label"] for run in comparison["runs"]]
    legend = _table()
    for run in comparison["runs"]:
        about = "  ".join(
            part for part in (run["state"], *(f"#{tag}" for tag in run["tags"]), run["note"]) if part
        )
        legend.add_row(_text(run["label"], "bold"), _text(printable(run["run"])), _text(printable(about)))
    yield legend

    yield from _differing(comparison["differing"], labels, width)
    rows = score_rows(comparison)
    scores = [
        (label, [_text(f"*{text}" if best else text, "bold green" if best else "") for text, best in cells])
        for label, cells in rows
    ]
    yield from _blocks("scores", labels, scores, width)
    if any(best for _, cells in rows for _, best in cells):
        yield _text("* the best of its row")
    for note in comparison["notes"]:
        yield _text(f"\n{note}")
    for name, title in CURVES.items():
        yield from _curve(title, labels, comparison["curves"][name], width)
    for question, answers in answer_rows(comparison):
        yield _text(f"\n{printable_lines(question)}", "bold")
        yield _list(
            [
                (who, MISSING if text is None else printable_lines(text) or "(nothing)")
                for who, text in answers
            ]
        )


def _table(title: str = "", labels: Sequence[str] = (), justify: Literal["left", "right"] = "left") -> Table:
    """Columns with spaces between them; heads where there is a title."""
    table = Table(box=None, show_header=bool(title), pad_edge=False, padding=(0, 2, 0, 0))
    if title:
        table.add_column(_text(title, "bold"))
    for label in labels:
        table.add_column(_text(label, "bold"), justify=justify)
    return table


def _differing(
    rows: Sequence[Mapping[str, Any]], labels: Sequence[str], width: int
) -> Iterator[RenderableType]:
    """A row a field and a column a run; where that is too wide, each field's values below each other,
    equal ones once.
    """
    if not rows:
        yield _text("\nno field of the configs differs")
        return
    fields = [(row["field"], [printable(field_text(value)) for value in row["values"]]) for row in rows]
    title = "what differs"
    columns = [
        max(cell_len(text) for text in column)
        for column in zip(labels, *(values for _, values in fields), strict=True)
    ]
    if (
        max(cell_len(name) for name in (title, *(name for name, _ in fields)))
        + sum(2 + column for column in columns)
        <= width
    ):
        table = _table(title, labels, "left")
        for name, values in fields:
            table.add_row(_text(name), *map(_text, values))
        yield Text()
        yield table
        return
    yield _text(f"\n{title}", "bold")
    for name, values in fields:
        yield _text(name)
        yield _list([(who, _short(value)) for who, value in group_equal(labels, values)])


def _list(rows: Sequence[tuple[str, str]]) -> RenderableType:
    table = _table()
    table.add_column(max_width=16)
    table.add_column()
    for who, text in rows:
        table.add_row(_text(who), _text(text))
    return Padding(table, (0, 0, 0, 2))


def _text(text: str, style: str = "") -> Text:
    """Folded where it is too long, wherever that is: Chinese has no spaces."""
    return Text(text, style, overflow="fold")


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _blocks(
    title: str, labels: Sequence[str], rows: Sequence[tuple[str, Sequence[Text]]], width: int
) -> Iterator[RenderableType]:
    """Tables of numbers, each with as many runs as fit beside each other."""
    if not rows:
        return
    head = max(cell_len(name) for name in (title, *(name for name, _ in rows)))
    widest = max(cell_len(cell.plain) for _, cells in rows for cell in cells)
    beside = max(1, (width - head) // (widest + 2))
    for start in range(0, len(labels), beside):
        part = slice(start, start + beside)
        table = _table(title, labels[part], "right")
        for name, cells in rows:
            table.add_row(_text(name), *cells[part])
        yield Text()
        yield table


def _curve(
    title: str, labels: Sequence[str], curves: Sequence[chart.Points], width: int
) -> Iterator[RenderableType]:
    """A line of bars for each run on one scale of steps and values."""
    box = chart.span(curves)
    if box is None:
        return
    _, last, low, high = box
    columns = max(1, min(BARS, width - 30, round(last)))
    yield _text(
        f"\n{title}, {low:.4f} {chart.BARS[0]} to {high:.4f} {chart.BARS[-1]}, over {last:,.0f} steps", "bold"
    )
    for label, points in zip(labels, curves, strict=True):
        bars = chart.sparkline(points, columns, last=last, low=low, high=high)
        ends = f"{points[0][1]:.4f} → {points[-1][1]:.4f}" if points else MISSING
        yield _text(f"{label:<3}{bars:<{columns}}  {ends}")
