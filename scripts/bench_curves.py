"""The figure of scripts/bench train --plot: a row a comparison, a panel an algo. The same numbers give the
same bytes.
"""

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

TUNER, FIRST, OTHERS = "#c03028", "#6fa8dc", "#bbbbbb"


def draw(found: Sequence[dict[str, Any]]) -> str:
    """An SVG of what bench_train.py found. The plain seed that saw tuner's batches is a broad line, on
    which tuner's lies; the marks are held-out losses at the end.
    """
    settings = {
        "svg.hashsalt": "tuner",
        "svg.fonttype": "none",
        "font.size": 8,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "axes.linewidth": 0.6,
        "path.simplify": True,
    }
    wide = max(len(one["algos"]) for one in found)
    with mpl.rc_context(settings):
        figure = Figure(figsize=(2.6 * wide + 0.6, 2.1 * len(found) + 0.5), layout="constrained")
        panels = figure.subplots(len(found), wide, squeeze=False)
        for row, one in zip(panels, found, strict=True):
            for panel, algo in zip(row, one["algos"], strict=False):
                curves(panel, one["algos"][algo])
                panel.set_title(f"{one['about']['name']}, {algo}", fontsize=8)
            for panel in row[len(one["algos"]) :]:
                panel.set_axis_off()
            row[0].set_ylabel("loss")
        for panel in panels[-1]:
            panel.set_xlabel("step")
        figure.legend(
            *panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
        )
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    short = re.sub(r"(\d\.\d\d)\d+", r"\1", out.getvalue())  # a hundredth of a point is enough
    return re.sub(r"\s*\n\s*", "\n", short)


def curves(panel: Any, one: dict[str, Any]) -> None:
    """A panel: the training loss of every side, and behind the last step the held-out losses."""
    looks = {
        "0": ("transformers + PEFT, same batches", {"color": FIRST, "linewidth": 3.0}),
        "1": ("other seeds", {"color": OTHERS, "linewidth": 0.8}),
        "2": (None, {"color": OTHERS, "linewidth": 0.8}),
        "tuner": ("tuner", {"color": TUNER, "linewidth": 0.9}),
    }
    for order, side in enumerate(side for side in ("1", "2", "0", "tuner") if side in one):
        label, look = looks[side]
        steps = range(1, len(one[side]["loss"]) + 1)
        panel.plot(steps, one[side]["loss"], label=label, zorder=2 + order, **look)
        mark = {"marker": "x", "markersize": 6} if side == "tuner" else {"marker": "o", "markersize": 4}
        label = "held out, at the end" if side == "1" else None
        panel.plot(
            [len(steps) * 1.06],
            [one[side]["held_out"]],
            color=look["color"],
            linestyle="none",
            zorder=2 + order,
            label=label,
            **mark,
        )
    panel.grid(color="#e6e6e6", linewidth=0.5)
    panel.spines[["top", "right"]].set_visible(False)
