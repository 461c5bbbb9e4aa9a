"""A training run as a cell of a notebook shows it: a bar, the last step, the curves of the loss."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tuner.report import chart

MOST_POINTS = 200
"""of a curve; more steps are drawn as means"""
FEW = 20
"""points up to which a line shows each"""
COLOURS = {"loss": "#0a6ebd", "held_out": "#c2410c"}
NAMES = {"loss": "loss", "held_out": "held-out loss"}


def live_text(rows: Sequence[Mapping[str, Any]], end: int) -> str:
    """For a notebook without HTML.

    >>> live_text([{"step": 3, "loss": 1.25, "lr": 2e-4}], 6)
    'train 3/6  loss 1.2500  lr 2.00e-04'
    """
    last = rows[-1]
    held = next((f"  held-out loss {row['held_out']:.4f}" for row in reversed(rows) if "held_out" in row), "")
    return f"train {last['step']}/{end}  loss {last['loss']:.4f}{held}  lr {last['lr']:.2e}"


def live_html(rows: Sequence[Mapping[str, Any]], end: int) -> str:
    """The bar, the numbers of the last step, and the curves."""
    last = rows[-1]["step"]
    bar = f'<progress value="{last}" max="{end}" style="width:20em"></progress>'
    return f"<div>{bar} <code>{escape(live_text(rows, end))}</code></div>{_drawing(rows)}"


def _drawing(rows: Sequence[Mapping[str, Any]]) -> str:
    width = -(-rows[-1]["step"] // MOST_POINTS)
    curves = {
        name: [(row["step"], row[name]) for row in rows if row.get(name) is not None] for name in COLOURS
    }
    drawn = chart.draw([chart.means(curves["loss"], width), curves["held_out"]])
    if drawn is None:
        return ""
    low, left = chart.HEIGHT - chart.BOTTOM, chart.LEFT
    parts = [
        f'<text x="{tick.at}" y="{low + 18}" text-anchor="middle">{tick.label}</text>' for tick in drawn.x
    ]
    for tick in drawn.y:
        parts.append(
            f'<line x1="{left}" x2="{chart.WIDTH - chart.RIGHT}" y1="{tick.at}" y2="{tick.at}" '
            f'stroke="currentColor" stroke-opacity="0.15"/>'
            f'<text x="{left - 8}" y="{tick.at + 4}" text-anchor="end">{tick.label}</text>'
        )
    for number, (name, line) in enumerate(zip(COLOURS, drawn.lines, strict=True)):
        colour, at = COLOURS[name], left + 12 + 90 * number
        if line:
            points = " ".join(f"{x},{y}" for x, y in line)
            parts += [
                f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>',
                *(
                    f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>'
                    for x, y in (line if len(line) <= FEW else ())
                ),
                f'<text x="{at}" y="{chart.HEIGHT - 6}" fill="{colour}">{NAMES[name]}</text>',
            ]
    return (
        f'<svg viewBox="0 0 {chart.WIDTH} {chart.HEIGHT}" style="max-width:{chart.WIDTH}px;width:100%" '
        f'font-size="12" fill="currentColor">{"".join(parts)}</svg>'
    )
