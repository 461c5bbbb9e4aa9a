"""A sweep's ranking as text for a terminal of any width."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len

from tuner.report.columns import columns
from tuner.report.comparison import MISSING, field_text
from tuner.report.printable import printable
from tuner.report.ranking import COLUMNS, is_done, outcome
from tuner.report.span import readable_seconds

SHOWN = {
    "held_out_loss": "held-out loss",
    "held_out_while_training": "held-out loss while training",
    "perplexity": "perplexity",
    "loss": "training loss",
    "seconds": "time",
}
"""numbers that have a column, where any job has them, and what stands above it"""
RANKING = ("held_out_loss", "held_out_while_training", "loss")
"""of which a ranking is by one"""
LONGEST = 32
"""columns of a field's value; the page and the CSV have all of it"""


def short_names(fields: Sequence[str]) -> list[str]:
    """The shortest ends of the fields' paths that still tell them apart.

    >>> short_names(["algo.optim.lr", "seed", "data.seed", "algo.r"])
    ['lr', 'seed', 'data.seed', 'r']
    """
    names = []
    for field in fields:
        parts = field.split(".")
        ends = [".".join(parts[i:]) for i in reversed(range(len(parts)))]
        others = [other for other in fields if other != field]
        names.append(
            next((end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others)), field)
        )
    return names


def to_text(ranking: Mapping[str, Any], width: int) -> str:
    """The ranking; where a row is wider than `width` columns, its run stands below it."""
    jobs, fields = ranking["jobs"], ranking["fields"]
    numbers = shown_numbers(ranking)
    header = ["", *short_names(fields), *(SHOWN[name] for name in numbers)]
    rows = [
        [
            str(row["rank"] or MISSING),
            *(value_text(row["fields"].get(field)) for field in fields),
            *(number_text(name, row[name]) for name in numbers),
        ]
        for row in jobs
    ]
    runs = [_run(row) for row in jobs]
    right = {0, *range(len(header) - len(numbers), len(header))}
    lines = columns([[*header, "run"], *([*row, run] for row, run in zip(rows, runs, strict=True))], right)
    if max(map(cell_len, lines)) > width:
        head, *above = columns([header, *rows], right)
        lines = [head, *(line for row, run in zip(above, runs, strict=True) for line in (row, f"   {run}"))]
    failed = [row for row in jobs if row["error"]]
    lines += [f"{row['state']}: {job_title(row['fields'])}: {printable(row['error'])}" for row in failed]
    return "\n".join([f"sweep {ranking['sweep']}: {outcome(ranking)}", *lines, *ranking["notes"]])


def shown_numbers(ranking: Mapping[str, Any]) -> list[str]:
    """The numbers that have a column: what ranks, and what else any job has."""
    return [
        name
        for name in SHOWN
        if any(row[name] is not None for row in ranking["jobs"])
        and (name not in RANKING or name == ranking["by"])
    ]


def job_title(fields: Mapping[str, str]) -> str:
    """What differs in a job, in words."""
    return " ".join(f"{field}={value_text(value)}" for field, value in fields.items()) or "the only job"


def number_text(name: str, value: float | None) -> str:
    """One of the numbers in a cell."""
    if value is None:
        return MISSING
    return readable_seconds(value) if name == "seconds" else COLUMNS[name].shown(value)


def _run(row: Mapping[str, Any]) -> str:
    """A job's run, and how far it is where it has not ended well."""
    state = "" if is_done(row) else f"({row['state']})"
    return "  ".join(text for text in (row["run"], state) if text)


def value_text(value: str | None) -> str:
    """A field's value in a cell."""
    text = MISSING if value is None else printable(field_text(value))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
