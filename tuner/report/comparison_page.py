"""A comparison as one HTML file: no script, nothing from the network, no places; what people and models
wrote is escaped.
"""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import PurePath
from typing import Any

from tuner.report import chart
from tuner.report.comparison import CURVES, MISSING, answer_rows, field_text, score_rows

COLOURS = 7
"""that the page has; more runs have the same ones with other dashes"""
DOTTED = 20
"""points up to which a line shows each"""


def to_html(comparison: Mapping[str, Any]) -> str:
    """The page. The same comparison gives the same bytes."""
    from jinja2 import Environment, StrictUndefined

    template = files("tuner.report").joinpath("comparison.html.j2").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    width = comparison["steps_a_point"]
    captions = {
        "loss": f"Each point is the mean over {width} steps." if width > 1 else "",
        "held_out": "Measured on up to 64 packs of the held-out tokens.",
    }
    charts = [
        (title, captions[name], chart.draw(comparison["curves"][name])) for name, title in CURVES.items()
    ]
    return environment.from_string(template).render(
        runs=comparison["runs"],
        fields=[(row["field"], _values(row)) for row in comparison["differing"]],
        scores=score_rows(comparison),
        notes=comparison["notes"],
        charts=[found for found in charts if found[-1]],
        answers=answer_rows(comparison),
        box=chart,
        styles=[f"c{i % COLOURS} d{i // COLOURS % 3}" for i in range(len(comparison["runs"]))],
        dotted=DOTTED,
        missing=MISSING,
    )


def _values(row: Mapping[str, Any]) -> list[str]:
    """A field's values as the page shows them: of a place the last component, and whether that alone is
    equal.

    >>> _values({"kind": "place", "values": ["/home/me/a.jsonl", "b/a.jsonl"]})
    ['a.jsonl', 'a.jsonl, elsewhere']
    """
    if row["kind"] != "place":
        return [field_text(value) for value in row["values"]]
    shown = [field_text(_last(value)) for value in row["values"]]
    alike = [shown.index(text) for text in shown]
    return [
        text if row["values"][i] == row["values"][first] else f"{text}, elsewhere"
        for i, (text, first) in enumerate(zip(shown, alike, strict=True))
    ]


def _last(value: Any) -> Any:
    if isinstance(value, list):
        return [_last(item) for item in value]
    return PurePath(value).name if isinstance(value, str) else value
