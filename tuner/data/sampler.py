"""How many packs a step takes, how many steps there are, and which packs a step sees: pure arithmetic, the
same on any machine.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from tuner.data.shares import ceil_of

AUTO_STEPS = 100
AUTO_TOKENS = 32_768


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """The sequence of packs over all epochs, cut into steps."""

    packs: int
    """in the training set"""
    seed: int
    """of the order within each epoch"""
    per_step: int
    """packs that an optimizer step sees, over all devices"""
    steps: int
    """optimizer steps"""
    end: int
    """where the sequence ends; the last step may hold fewer packs"""

    def at(self, step: int) -> list[int]:
        """The packs of `step` (0 for the first): places step * per_step up to the next step's in the sequence
        of all epochs.

        Each epoch is its own permutation, drawn from seed and epoch alone. With 3 packs and 2 a step, over 2
        epochs:

            sequence   2 0 1 | 1 2 0
            steps      2 0   1 1   2 0
        """
        places = range(step * self.per_step, min((step + 1) * self.per_step, self.end))
        return [
            permutation(self.packs, self.seed, place // self.packs)[place % self.packs] for place in places
        ]

    def until(self, step: int | None) -> "Order":
        """The same sequence, left after `step`: a run that stops later sees the same and then more."""
        return self if step is None else replace(self, steps=step, end=min(self.end, step * self.per_step))


def micro_batches_of_rank(places: Sequence[int], micro: int, rank: int, size: int) -> list[list[int]]:
    """The micro batches, of up to `micro` packs, that process `rank` of `size` takes of a step's packs: as
    many in each process, so that they keep pace.

    Where packs are fewer than places, the last micro batches of some processes are empty.

    >>> [micro_batches_of_rank(range(5), 2, rank, 2) for rank in (0, 1)]
    [[[0, 2], [4]], [[1, 3], []]]
    """
    own = list(places[rank::size])
    most = -(-len(places) // size)
    return [own[i : i + micro] for i in range(0, most, micro)]


@lru_cache(maxsize=2)
def permutation(packs: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The order of one epoch."""
    draw = random.Random(f"{seed}/{epoch}")
    keys = [draw.random() for _ in range(packs)]
    return tuple(sorted(range(packs), key=keys.__getitem__))


def plan_order(
    packs: int,
    length: int,
    *,
    seed: int,
    epochs: float,
    steps: int | None,
    batch_tokens: int | Literal["auto"],
) -> Order:
    """The order for `packs` packs of up to `length` tokens; `steps` wins over `epochs`. A part of a pack
    counts as a whole one.

    A step takes whole packs. `auto` takes as many as leave 100 steps over the epochs, at least one and at
    most 32,768 tokens; a number of tokens is rounded down to packs, at least one.

    >>> plan_order(240, 512, seed=0, epochs=3, steps=None, batch_tokens="auto")
    Order(packs=240, seed=0, per_step=7, steps=103, end=720)
    """
    passes = ceil_of(packs, epochs)
    wanted = (
        min(passes // AUTO_STEPS, AUTO_TOKENS // length) if batch_tokens == "auto" else batch_tokens // length
    )
    per_step = max(1, wanted)
    if steps is None:
        return Order(packs=packs, seed=seed, per_step=per_step, steps=-(-passes // per_step), end=passes)
    return Order(packs=packs, seed=seed, per_step=per_step, steps=steps, end=steps * per_step)
