"""Runs side by side: what differs, scores, curves and answers, as a plain dict; its text and its page are
made from that alone.
"""

import json
import math
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tuner.report import chart
from tuner.report.byte_size import readable_bytes
from tuner.report.page import LITTLE

T = TypeVar("T")

POINTS = 60
"""of a training curve, at most: each is the mean over as many steps as that takes"""
MISSING = "-"


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedRun:
    """One of the runs, as far as it is."""

    run: str
    """its directory's name"""
    state: str
    note: str | None
    tags: tuple[str, ...]
    train: Mapping[str, Any]
    """facts of the training run; of an unfinished one those that its last row tells"""
    convert: Mapping[str, Any]
    """facts of what was handed on; empty while there is nothing"""
    rows: Sequence[Mapping[str, Any]]
    """of metrics.jsonl"""
    report: Mapping[str, Any] | None
    """of tuner.report.page; None for a run that was not evaluated"""
    held_out: str | None
    """a digest of the held-out tokens: only losses over the same ones are compared"""


@dataclass(frozen=True, kw_only=True, slots=True)
class DifferingField:
    """A config field in which the runs differ."""

    field: str
    kind: str
    """identity or place; of a place the page shows the last component only"""
    values: Sequence[Any]
    """one for each run"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A row of numbers."""

    label: str
    value: Callable[[ComparedRun], float | None]
    shown: Callable[[float], str]
    best: Callable[[Iterable[float]], float] | None = None
    """min or max; None where no value is better than another"""
    held_out: bool = False
    """over held-out tokens: runs with others can't win or lose"""


def perplexity(value: float) -> str:
    """With as many decimals as a loss has, and short where it is huge.

    >>> perplexity(3.222), perplexity(1.0142e304)
    ('3.2220', '1.014e+304')
    """
    return f"{value:,.4f}" if value < 1e6 else f"{value:.4g}"


def _held_out(name: str, when: str) -> Callable[[ComparedRun], float | None]:
    return lambda side: side.report["held_out"][name][when] if side.report else None


def _trained(name: str) -> Callable[[ComparedRun], float | None]:
    return lambda side: side.train.get(name)


SCORES = {
    "held_out_loss_base": Score(
        label="held-out loss, base", value=_held_out("loss", "before"), shown="{:.4f}".format, held_out=True
    ),
    "held_out_loss": Score(
        label="held-out loss",
        value=_held_out("loss", "after"),
        shown="{:.4f}".format,
        best=min,
        held_out=True,
    ),
    "perplexity_base": Score(
        label="perplexity, base", value=_held_out("perplexity", "before"), shown=perplexity, held_out=True
    ),
    "perplexity": Score(
        label="perplexity", value=_held_out("perplexity", "after"), shown=perplexity, best=min, held_out=True
    ),
    "held_out_tokens": Score(
        label="held-out tokens",
        value=lambda side: side.report["held_out"]["tokens"] if side.report else None,
        shown="{:,}".format,
    ),
    # Nothing to win below: a last step's loss is over whatever packs it had, and a run that saw less took
    # less time.
    "loss": Score(label="training loss", value=_trained("loss"), shown="{:.4f}".format),
    "step": Score(label="step converted", value=lambda side: side.convert.get("step"), shown="{:,}".format),
    "steps": Score(label="steps trained", value=_trained("step"), shown="{:,}".format),
    "tokens": Score(label="tokens seen", value=_trained("tokens"), shown="{:,}".format),
    "tokens_per_second": Score(
        label="tokens/s", value=_trained("tokens_per_second"), shown="{:,.0f}".format, best=max
    ),
    "seconds": Score(label="training seconds", value=_trained("seconds"), shown="{:,.1f}".format),
    "trainable": Score(label="trainable parameters", value=_trained("trainable"), shown="{:,}".format),
    "bytes": Score(
        label="adapter or model", value=lambda side: side.convert.get("bytes"), shown=readable_bytes
    ),
}
CURVES = {"loss": "training loss", "held_out": "held-out loss while training"}


def compare_runs(
    sides: Sequence[ComparedRun], differing: Sequence[DifferingField], labels: Sequence[str] = ()
) -> dict[str, Any]:
    """All that is compared, as JSON can hold it. Lists of values have one for each run, null where a run has
    none. The runs are called by `labels`, or else A, B, C.

    `scores.*.best` are indices of runs; `curves.*` are points [step, value], of the training loss means over
    `steps_a_point` steps.
    """
    labels = labels or [
        string.ascii_uppercase[i % 26] + (str(i // 26) if i >= 26 else "") for i in range(len(sides))
    ]
    measured = [(label, side.held_out) for label, side in zip(labels, sides, strict=True) if _measured(side)]
    sets = group_equal(*zip(*measured, strict=True)) if measured else []
    scores: dict[str, Any] = {}
    for name, score in SCORES.items():
        values = [score.value(side) for side in sides]
        scores[name] = {
            "values": values,
            "best": [] if score.held_out and len(sets) > 1 else _best(values, score),
        }
    width = math.ceil(max((row["step"] for side in sides for row in side.rows), default=1) / POINTS)
    curves = {name: [points_of(side.rows, name) for side in sides] for name in CURVES}
    curves["loss"] = [chart.means(points, width) for points in curves["loss"]]
    asked = [{row["prompt"]: row for row in side.report["answers"]} if side.report else {} for side in sides]
    questions = list(dict.fromkeys(question for rows in asked for question in rows))
    notes = []
    if len(sets) > 1:
        groups = " | ".join(group for group, _ in sets)
        notes.append(
            f"The runs held out different tokens ({groups}). Losses over different held-out sets cannot be "
            "compared, so none is marked as best."
        )
    if few := [i for i, count in enumerate(scores["held_out_tokens"]["values"]) if count and count < LITTLE]:
        counts = " | ".join(f"{labels[i]} {scores['held_out_tokens']['values'][i]:,}" for i in few)
        notes.append(
            f"Few tokens were held out ({counts}): under {LITTLE:,} a small difference between losses may be "
            "chance."
        )
    if any(
        question not in rows
        for rows, side in zip(asked, sides, strict=True)
        if side.report
        for question in questions
    ):
        notes.append(f"The runs were asked different questions; {MISSING} stands where a run was not asked.")
    return {
        "runs": [
            {"label": label, "run": side.run, "state": side.state, "note": side.note, "tags": list(side.tags)}
            for label, side in zip(labels, sides, strict=True)
        ],
        "differing": [
            {
                "field": d.field,
                "kind": d.kind,
                "values": [list(v) if isinstance(v, tuple) else v for v in d.values],
            }
            for d in differing
        ],
        "scores": scores,
        "curves": {
            name: [[list(point) for point in points] for points in found] for name, found in curves.items()
        },
        "steps_a_point": width,
        "answers": [
            {"question": question}
            | {when: [rows.get(question, {}).get(when) for rows in asked] for when in ("before", "after")}
            for question in questions
        ],
        "notes": notes,
    }


def _measured(side: ComparedRun) -> bool:
    """Whether any loss on held-out tokens is there."""
    return SCORES["held_out_loss"].value(side) is not None or bool(points_of(side.rows, "held_out"))


def points_of(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """A column of metrics.jsonl as (step, value), where there is a number."""
    found = [(row["step"], row.get(name)) for row in rows]
    return [(step, value) for step, value in found if isinstance(value, int | float) and math.isfinite(value)]


def _best(values: Sequence[float | None], score: Score) -> list[int]:
    """The runs whose value is the best, as far as it is shown; none when all that have one show the same."""
    there = [value for value in values if value is not None]
    if score.best is None or len({score.shown(value) for value in there}) < 2:
        return []
    best = score.shown(score.best(there))
    return [i for i, value in enumerate(values) if value is not None and score.shown(value) == best]


def field_text(value: Any) -> str:
    r"""A config value on one line; quoted where spaces or line breaks would be lost.

    >>> [field_text(value) for value in (None, 1e-05, "a b", "{text}\n", ["x"])]
    ['null', '1e-05', 'a b', '"{text}\\n"', '["x"]']
    """
    plain = isinstance(value, str) and value.isprintable() and value.strip() == value != ""
    return value if plain else json.dumps(value, ensure_ascii=False)


def score_rows(comparison: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, bool]]]]:
    """The scores that any run has: (label, a (text, whether it is the best) for each run)."""
    rows = [
        (SCORES[name], row)
        for name, row in comparison["scores"].items()
        if any(value is not None for value in row["values"])
    ]
    return [
        (
            score.label,
            [
                (MISSING if value is None else score.shown(value), i in row["best"])
                for i, value in enumerate(row["values"])
            ],
        )
        for score, row in rows
    ]


def answer_rows(comparison: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str | None]]]]:
    """The answers: (question, (who, text) for the bases and then for the runs); None for runs that were
    not asked.
    """
    labels = [run["label"] for run in comparison["runs"]]
    told = []
    for row in comparison["answers"]:
        bases = [(who, text) for who, text in group_equal(labels, row["before"]) if text is not None]
        before = [("base" if len(bases) == 1 else f"base of {who}", text) for who, text in bases]
        told.append((row["question"], [*before, *group_equal(labels, row["after"])]))
    return told


def group_equal(labels: Sequence[str], values: Sequence[T]) -> list[tuple[str, T]]:
    """Equal values once, with the labels of all that have them.

    >>> group_equal(["A", "B", "C"], ["yes", "no", "yes"])
    [('A, C', 'yes'), ('B', 'no')]
    """
    groups: dict[T, list[str]] = {}
    for label, value in zip(labels, values, strict=True):
        groups.setdefault(value, []).append(label)
    return [(", ".join(group), value) for value, group in groups.items()]
