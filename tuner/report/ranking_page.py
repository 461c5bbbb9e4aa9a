"""A sweep's ranking as one HTML file: a table that can be sorted, and the curves of all jobs over each other.
It holds no places.
"""

import shlex
from collections.abc import Mapping
from typing import Any

from tuner.report.comparison import MISSING
from tuner.report.comparison_page import shown_values
from tuner.report.html import drawn_curves, line_styles, render
from tuner.report.ranking import outcome, without_places
from tuner.report.ranking_text import SHOWN, job_title, number_text, short_names, shown_numbers


def to_html(ranking: Mapping[str, Any]) -> str:
    """The page. The same ranking gives the same bytes."""
    jobs, fields, numbers = ranking["jobs"], ranking["fields"], shown_numbers(ranking)
    shown = {
        field: shown_values(
            "place" if field in ranking["places"] else "", [row["fields"].get(field) for row in jobs]
        )
        for field in fields
    }
    names = dict(zip(fields, short_names(fields), strict=True))
    titles = [
        job_title({names[field]: shown[field][i] for field in fields if field in row["fields"]})
        for i, row in enumerate(jobs)
    ]
    styles = line_styles(len(ranking["curve_labels"]))
    left = iter(styles)
    rows = [
        {
            "rank": row["rank"] or MISSING,
            "best": row["rank"] == 1 and ranking["best"] is not None,
            "style": next(left) if row["run"] else None,
            "cells": [
                *(_cell(shown[field][i] if field in row["fields"] else None) for field in fields),
                *(_cell(row[name], number_text(name, row[name]), "number") for name in numbers),
                _cell(row["run"], row["run"], "run"),
                _cell(row["state"]),
            ],
        }
        for i, row in enumerate(jobs)
    ]
    use, needs_root = _without_root(ranking["use"] or "")
    with_run = [title for title, row in zip(titles, jobs, strict=True) if row["run"]]
    return render(
        "ranking.html.j2",
        script="ranking.js",
        sweep=ranking["sweep"],
        outcome=outcome(ranking),
        notes=ranking["notes"],
        best=ranking["best"],
        use=use,
        needs_root=needs_root,
        heads=["rank", *names.values(), *(SHOWN[name] for name in numbers), "run", "state"],
        numbers=[SHOWN[name] for name in numbers],
        rows=rows,
        failed=[
            (title, row["state"], without_places(row["error"]))
            for title, row in zip(titles, jobs, strict=True)
            if row["error"]
        ],
        charts=drawn_curves(ranking),
        labels=[f"{label}  {title}" for label, title in zip(ranking["curve_labels"], with_run, strict=True)],
        styles=styles,
    )


def _cell(value: Any, text: str | None = None, kind: str = "") -> dict[str, Any]:
    """A cell: what it is sorted by, None for what is missing, and what it shows."""
    return {"value": value, "text": MISSING if value is None else text or value, "class": kind}


def _without_root(line: str) -> tuple[str, bool]:
    """A command without the place of its root, and whether it needs one."""
    words = shlex.split(line)
    kept = [word for word in words if not word.startswith("root=")]
    return shlex.join(kept), len(kept) < len(words)
