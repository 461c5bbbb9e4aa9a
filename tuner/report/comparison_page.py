"""A comparison as one HTML file, without places."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from tuner.report.comparison import MISSING, answer_rows, field_text, score_rows
from tuner.report.html import drawn_curves, line_styles, render


def to_html(comparison: Mapping[str, Any]) -> str:
    """The page. The same comparison gives the same bytes."""
    runs = comparison["runs"]
    return render(
        "comparison.html.j2",
        style=f"html {{ --runs: {len(runs)}; }}\n",
        runs=runs,
        labels=[run["label"] for run in runs],
        fields=[(row["field"], shown_values(row["kind"], row["values"])) for row in comparison["differing"]],
        scores=score_rows(comparison),
        notes=comparison["notes"],
        charts=drawn_curves(comparison),
        answers=answer_rows(comparison),
        styles=line_styles(len(runs)),
        missing=MISSING,
    )


def shown_values(kind: str, values: Sequence[Any]) -> list[str]:
    """A field's values as the page shows them: of a place the last component, and whether that alone is
    equal.

    >>> shown_values("place", ["/home/me/a.jsonl", "b/a.jsonl"])
    ['a.jsonl', 'a.jsonl, elsewhere']
    """
    if kind != "place":
        return [field_text(value) for value in values]
    shown = [field_text(_last(value)) for value in values]
    alike = [shown.index(text) for text in shown]
    return [
        text if values[i] == values[first] else f"{text}, elsewhere"
        for i, (text, first) in enumerate(zip(shown, alike, strict=True))
    ]


def _last(value: Any) -> Any:
    if isinstance(value, list):
        return [_last(item) for item in value]
    return PurePath(value).name if isinstance(value, str) else value
