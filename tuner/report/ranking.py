"""The ranking of a sweep's jobs, as a plain dict; its text, its page and its CSV are made from that alone."""

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuner.report.comparison import SCORES, ComparedRun, Score, compare_runs, points_of
from tuner.report.page import LITTLE, tokens_measured

WHILE_TRAINING = Score(
    label="held-out loss while training",
    value=lambda side: next((value for _, value in reversed(points_of(side.rows, "held_out"))), None),
    shown="{:.4f}".format,
    best=min,
    held_out=True,
)
"""what a sweep that ends before `evaluate` is ranked by"""
EVALUATED = "held_out_loss"
COLUMNS = {
    name: SCORES[name]
    for name in ("held_out_loss", "held_out_loss_base", "perplexity", "loss", "step", "tokens", "seconds")
} | {"held_out_while_training": WHILE_TRAINING}
"""what is told of each job, by its name in JSON and CSV"""
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[^\W\d_a-z]|[`'\"(])")
_PLACE = re.compile(r"(?<![\w.~/])~?/(?:[^\s/'\"`:,;()]+/)+")


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedJob:
    """A job of a sweep, as far as it is."""

    number: int
    """in the order of the line"""
    fields: Mapping[str, str]
    """the values of what differs"""
    run: ComparedRun | None
    """None where it has no run"""
    code: int | None
    """its exit code; None where it has not ended"""
    message: str
    """what went wrong"""
    stopped: bool = False
    """whether somebody has stopped it"""
    pruned: bool = False
    """whether a search has stopped it before its end; it is not ranked"""


def rank_jobs(
    name: str,
    jobs: Sequence[RankedJob],
    places: Sequence[str] = (),
    *,
    objective: str = EVALUATED,
    maximize: bool = False,
    trials: int | None = None,
) -> dict[str, Any]:
    """The jobs of the sweep `name`, best first, as JSON can hold it. Jobs that can't be ranked have no rank
    and follow in the order of the line. `places` are the fields that say where something lies, `trials` the
    number of jobs that a search is to have.

    What ranks is the `objective`: the held-out loss of the evaluation or, where no job was evaluated, the
    last one while training. Losses over different held-out tokens rank nothing.
    """
    by = objective
    if by == EVALUATED and not any(_value(job, by) is not None for job in jobs):
        by = "held_out_while_training"
    measured = [job for job in jobs if _value(job, by) is not None and not job.pruned]
    comparable = not COLUMNS[by].held_out or len({job.run.held_out for job in measured if job.run}) < 2
    ordered = (
        sorted(measured, key=lambda job: _value(job, by), reverse=maximize)  # type: ignore[arg-type, return-value]
        if comparable
        else []
    )
    ordered += [job for job in jobs if job not in ordered]
    ranks = [i + 1 if comparable and job in measured else None for i, job in enumerate(ordered)]
    sides = [
        (job.run, str(rank or f"({job.number})")) for job, rank in zip(ordered, ranks, strict=True) if job.run
    ]
    compared = compare_runs([side for side, _ in sides], (), [label for _, label in sides])
    rows = [_row(job, rank) for job, rank in zip(ordered, ranks, strict=True)]
    # what a search has tried twice is one run
    shown = list({row["run"]: COLUMNS[by].shown(row[by]) for row in rows if row["rank"]}.values())
    first = rows[0] if shown and (len(shown) == 1 or shown[0] != shown[1]) else None
    fields = list(dict.fromkeys(field for job in jobs for field in job.fields))
    return {
        "sweep": name,
        "by": by,
        "trials": trials or len(jobs),
        "fields": fields,
        "places": [field for field in fields if field in places],
        "jobs": rows,
        "best": first["run"] if first else None,
        "notes": list(_notes(measured, comparable=comparable, equal=bool(shown) and first is None)),
        "curves": compared["curves"],
        "curve_labels": [label for _, label in sides],
        "steps_a_point": compared["steps_a_point"],
    }


def _notes(measured: Sequence[RankedJob], *, comparable: bool, equal: bool) -> Iterator[str]:
    if not comparable:
        yield "The jobs held out different tokens. Losses over different held-out sets cannot be compared."
    if equal:
        yield "The best held-out losses are equal as far as they are shown."
    counts = {job.run.report["held_out"]["tokens"] for job in measured if job.run and job.run.report}
    if counts and min(counts) < LITTLE:
        yield f"A loss stands on {tokens_measured(min(counts))}."


def _value(job: RankedJob, name: str) -> float | None:
    """A number of a job; what is not finite ranks nothing and is left out."""
    value = COLUMNS[name].value(job.run) if job.run else None
    return value if value is not None and math.isfinite(value) else None


def score(run: ComparedRun, objective: str) -> float | None:
    """What a finished run counts by, as in its sweep's ranking; None where it was not measured."""
    while_training = objective == EVALUATED and run.report is None
    return COLUMNS["held_out_while_training" if while_training else objective].value(run)


def _row(job: RankedJob, rank: int | None) -> dict[str, Any]:
    return {
        "rank": rank,
        "job": job.number,
        "fields": dict(job.fields),
        **{name: _value(job, name) for name in COLUMNS},
        "run": job.run.run if job.run else None,
        "state": _state(job),
        "code": job.code,
        "error": first_sentence(job.message),
    }


def _state(job: RankedJob) -> str:
    if job.message:
        return "stopped" if job.stopped else "failed"
    if job.pruned:
        return "pruned"
    return job.run.state if job.run else "not started"


def first_sentence(text: str) -> str:
    """The first sentence of an error, on one line.

    >>> first_sentence("data.length is 2.5, but\\nmust be whole (e.g. 64). Write 64.")
    'data.length is 2.5, but must be whole (e.g. 64).'
    """
    return _SENTENCE.split(" ".join(text.split()), maxsplit=1)[0]


def without_places(text: str) -> str:
    """A text with the last parts alone of absolute paths, as something that is shown around has them.

    >>> without_places("/home/me/rows.jsonl is empty; see https://a.b/c/d")
    '…/rows.jsonl is empty; see https://a.b/c/d'
    """
    return _PLACE.sub("…/", text)


def is_done(row: Mapping[str, Any]) -> bool:
    """Whether a job has ended well, or has all that it is to make though nobody saw it end."""
    ended = row["code"] == 0 or (row["code"] is None and row["state"] == "evaluated")
    return ended and row["state"] != "pruned"


def outcome(ranking: Mapping[str, Any]) -> str:
    """How many jobs are done, and what became of the others.

    >>> outcome({"trials": 2, "jobs": [{"code": 0, "state": "evaluated"}, {"code": 2, "state": "failed"}]})
    '1 of 2 jobs done, 1 failed'
    """
    rows = ranking["jobs"]
    told = f"{sum(map(is_done, rows))} of {max(ranking['trials'], len(rows))} jobs done"
    for state in ("pruned", "failed", "stopped"):
        if count := sum(row["state"] == state for row in rows):
            told += f", {count} {state}"
    return told


def ranking_csv(ranking: Mapping[str, Any]) -> str:
    """A line for each job, with the numbers in full; fields as they were typed."""
    out = io.StringIO()
    numbers = [name for name in COLUMNS if any(row[name] is not None for row in ranking["jobs"])]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["rank", "job", *ranking["fields"], *numbers, "run", "state", "error"])
    for row in ranking["jobs"]:
        fields = [row["fields"].get(field, "") for field in ranking["fields"]]
        writer.writerow(
            [
                "" if cell is None else cell
                for cell in (
                    row["rank"],
                    row["job"],
                    *fields,
                    *(row[name] for name in numbers),
                    row["run"],
                    row["state"],
                    row["error"],
                )
            ]
        )
    return out.getvalue()
