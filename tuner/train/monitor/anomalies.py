"""What a person should be told of a run while it trains: losses that are not finite, spikes, steps that
train nothing, a learning rate that is dead.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from statistics import median
from typing import Any

from tuner.data.packs import Pack
from tuner.data.sampler import micro_batches_of_rank
from tuner.errors import DataError, StageError

RECENT = 64
"""steps whose values say what is usual"""
ENOUGH = 16
"""of them, before anything is called unusual"""
FAR = 6.0
"""standard deviations above the median, as the median absolute deviation estimates them"""
NORMAL = 1.4826
"""a normal distribution's standard deviation, in median absolute deviations"""
LEAST = {"loss": 1.2, "grad_norm": 3.0}
"""how many times the median a spike has at least: curves that hardly move have hardly any deviation"""
WORDS = {"loss": "loss", "grad_norm": "gradient norm"}
SMALLEST = 1e-9
"""the learning rate below which a step of Adam's, which moves a weight by about that, is lost in the
rounding of an fp32 weight of 0.02 (2^-24 of it)
"""
DEAD = 5
"""steps with so small a rate before it is said"""
NAMED = 4
"""rows that a sentence names"""


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatchOrigin:
    """Where a value comes from: a micro batch."""

    rank: int
    rows: Callable[[], list[str]]
    """the `file:line` of its documents"""


def refuse_not_finite(
    what: str,
    values: Sequence[float],
    step: int,
    places: Sequence[MicroBatchOrigin],
    why: Callable[[], str] = lambda: "",
) -> None:
    """Raise StageError where one of the values of `step` (1 for the first), one for each place, is not a
    number; it names ranks and rows.

    what   the "loss" of micro batches, or the "gradient", whose norm is that of all places together
    why    looks for what it comes from; all processes ask together
    """
    broken = [(value, place) for value, place in zip(values, places, strict=True) if not math.isfinite(value)]
    if not broken:
        return
    ranks = sorted({place.rank for _, place in broken})
    several = len({place.rank for place in places}) > 1 and what == "loss"
    by = f" on rank {', '.join(map(str, ranks))}" if several else ""
    rows = name_rows(chain.from_iterable(place.rows() for _, place in broken))
    if found := why():
        raise StageError(
            f"The {what} of step {step}{by} is {broken[0][0]} on the rows {rows}. {found} The steps saved "
            "before are kept."
        )
    raise StageError(
        f"The {what} of step {step}{by} is {broken[0][0]}. It comes from the rows {rows}. "
        "Look at them; or lower algo.optim.lr, or set algo.precision=fp32. The steps saved before are kept."
    )


def refuse_nothing_trained(packs: Iterable[Pack]) -> None:
    """Raise DataError where no token of all packs is trained. Reads up to the first that is."""
    if not any(pack.trained.any() for pack in packs):
        raise DataError(
            "There is nothing to train on: no token of the training set is trained, so the loss would be 0 "
            "at every step. `preview` shows the rows as the model gets them. Check that they have answers "
            "of the assistant, and data.loss, data.roles and data.columns."
        )


def name_rows(rows: Iterable[str]) -> str:
    """The first few of some rows, in words.

    >>> name_rows(["a:1", "a:2", "a:2", "a:3", "a:4", "a:5"])
    'a:1, a:2, a:3, a:4 and 1 more'
    """
    unique = list(dict.fromkeys(rows))
    more = f" and {len(unique) - NAMED} more" if len(unique) > NAMED else ""
    return ", ".join(unique[:NAMED]) + more


def spike_limit(values: Sequence[float], name: str) -> float:
    """The value from which on one is far above these: their median + FAR standard deviations, and so many
    times the median at least as LEAST says.

    The deviation is estimated from the median absolute deviation, which spikes among the values hardly move.
    Norms of gradients have a long tail above their median, so theirs are compared by their logarithms.

    >>> spike_limit([1.0, 2.0, 3.0, 2.0, 100.0], "loss")
    10.8956
    """
    if name == "grad_norm":
        logs = [math.log(max(value, 1e-30)) for value in values]
        return math.exp(max(_far(logs), median(logs) + math.log(LEAST[name])))
    return max(_far(values), LEAST[name] * median(values))


def _far(values: Sequence[float]) -> float:
    middle = median(values)
    return middle + FAR * NORMAL * median([abs(value - middle) for value in values])


class AnomalyWatch:
    """Sees the row of every step, and says what is unusual, once for each event."""

    def __init__(self, *, horizon: int, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        """
        horizon  the steps over which the learning rate runs its course
        rows     the last ones of the run that is gone on from, so that what is usual is known
        """
        self.horizon = horizon
        self._recent = {
            name: deque([row[name] for row in rows if name in row], maxlen=RECENT) for name in WORDS
        }
        self._going: set[str] = set()  # events that were said and go on
        self._small = 0
        self._trained = bool(rows)

    def observe(self, row: Mapping[str, Any], rows: Callable[[], list[str]]) -> list[str]:
        """Sentences about the step of `row`; most steps have none. `rows` names the step's documents."""
        said = []
        if self._begins("masked", row["targets"] == 0):
            said.append(
                f"step {row['step']} trains nothing: none of its tokens is a target ({name_rows(rows())})"
            )
        self._trained |= row["targets"] > 0
        if row["targets"]:  # a loss of nothing says nothing of what is usual
            for name, words in WORDS.items():
                recent = self._recent[name]
                usual = median(recent) if len(recent) >= ENOUGH else math.inf
                if self._begins(name, len(recent) >= ENOUGH and row[name] > spike_limit(recent, name)):
                    said.append(
                        f"step {row['step']}: the {words} is {row[name]:.4g}, and the median of the "
                        f"{len(recent)} steps before is {usual:.4g}; its rows: {name_rows(rows())}"
                    )
                recent.append(row[name])
        return said + self._dead(row["step"], row["lr"])

    def close(self) -> None:
        """The run has ended. Raises StageError where none of its steps had a target."""
        if not self._trained:
            raise StageError(
                "Nothing was trained: no step had a token that is a target, so the weights are what they "
                "were. `preview` shows the mask."
            )

    def _begins(self, event: str, now: bool) -> bool:
        """Whether an event is there that was not there at the step before."""
        begins = now and event not in self._going
        (self._going.add if now else self._going.discard)(event)
        return begins

    def _dead(self, step: int, lr: float) -> list[str]:
        # The last tenth of a schedule may fall as low as it likes.
        self._small = self._small + 1 if lr < SMALLEST and step <= 0.9 * self.horizon else 0
        if self._begins("no rate", lr == 0 and step < self.horizon):
            return [
                f"the learning rate is 0 at step {step} of {self.horizon}: nothing is learned. See "
                "algo.optim.lr, algo.schedule and algo.warmup"
            ]
        if self._begins("small rate", self._small >= DEAD and lr > 0):
            return [
                f"the learning rate is {lr:.3g} at step {step} of {self.horizon}, too small to change most "
                "weights, which are rounded to fp32. Raise algo.optim.lr"
            ]
        return []


def micro_batch_origins(
    chosen: Sequence[Pack], micro: int, size: int, where: Callable[[Pack], list[str]], shared: int = 1
) -> list[MicroBatchOrigin]:
    """For each micro batch of all processes, in the order in which their losses are gathered, whose it is
    and which rows are in it.
    """

    def rows(part: Sequence[int]) -> list[str]:
        return [row for i in part for row in where(chosen[i])]

    parts = [
        (rank, part)
        for rank in range(size)
        for part in micro_batches_of_rank(range(len(chosen)), micro, rank // shared, size // shared)
    ]
    return [MicroBatchOrigin(rank=rank, rows=partial(rows, part)) for rank, part in parts]


def rows_of(origins: Sequence[MicroBatchOrigin]) -> list[str]:
    """The `file:line` of all documents of some micro batches."""
    return [row for origin in origins for row in origin.rows()]
