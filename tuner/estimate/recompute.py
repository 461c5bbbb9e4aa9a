"""What the backward pass computes again instead of keeping it (machine.recompute), and which micro batch and
how much of that a run takes where both are `auto`: the fastest that fits. Standard library only.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Wish = int | Literal["auto", "none", "norms", "blocks"]
"""machine.recompute"""
Dial = float | Literal["auto", "fast", "small"]
"""machine.memory"""
ENOUGH = 1 << 14
"""tokens of a micro batch that keep a GPU busy: `auto` takes no more, which would only take memory"""
NORMS = 0.014
"""the share of a step's time that making norms and products again takes (1.8B, an H200)"""
FORWARD = 1 / 3
"""of a step's time: the forward pass of the layers, which recomputing all blocks takes once more"""
ROW = 750
"""tokens that could be trained in the time that a micro batch takes besides, for weights that are restored
and matmuls that fill the GPU less: rows of 4,096 tokens were 13 % slower than of 16,384 (1.8B, an H200)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recompute:
    """What is computed again."""

    norms: bool = False
    """of compiled layers: norms, rotary positions, products of the MLP"""
    blocks: int = 0
    """the number of layers, from the first, that keep only their input"""

    def said(self, layers: int) -> str | int:
        """As machine.recompute says it, of a model of so many layers.

        >>> Recompute(blocks=24).said(24), Recompute(norms=True, blocks=3).said(24), Recompute().said(24)
        ('blocks', 3, 'none')
        """
        if self.blocks:
            return "blocks" if self.blocks == layers else self.blocks
        return "norms" if self.norms else "none"

    @classmethod
    def read(cls, said: str | int, layers: int, *, compiled: bool) -> "Recompute":
        """What machine.recompute says. Layers that are not compiled know no `norms`, and those that keep more
        than their input make norms again where some don't.

        >>> Recompute.read(30, 24, compiled=True)
        Recompute(norms=True, blocks=24)
        """
        blocks = layers if said == "blocks" else min(said, layers) if isinstance(said, int) else 0
        return cls(norms=compiled and (said == "norms" or blocks > 0), blocks=blocks)


NOTHING = Recompute()


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What a run may choose, as the same is computed."""

    micro: int
    """packs in one forward pass"""
    recompute: Recompute
    cost: float
    """time of a step, 1 where a GPU is busy with nothing but the packs of a step"""

    def words(self, layers: int) -> str:
        """As a command line has it."""
        return f"machine.micro_batch={self.micro} machine.recompute={self.recompute.said(layers)}"


def settings(
    *,
    layers: int,
    packs: int,
    length: int,
    micro: int | Literal["auto"],
    recompute: Wish,
    memory: Dial,
    compiled: bool,
) -> list[Setting]:
    """All that the config leaves open, the fastest first, by the formula of `_cost`.

    packs   that a process takes in a step, at most
    length  tokens of a pack, at most
    """
    small, fast = memory == "small", memory == "fast"
    if micro != "auto":
        micros = [max(1, min(micro, packs))]
    elif small:
        micros = [1]
    else:
        most = max(1, min(packs, ENOUGH // length))
        micros = sorted({-(-packs // parts) for parts in range(1, packs + 1)} & {*range(1, most + 1)})
    if recompute != "auto":
        kinds = [Recompute.read(recompute, layers, compiled=compiled)]
    elif small:
        kinds = [Recompute.read("blocks", layers, compiled=compiled)]
    elif fast:
        kinds = [NOTHING]
    else:
        every = ["none", *(["norms"] if compiled else []), *range(1, layers + 1)]
        kinds = [Recompute.read(said, layers, compiled=compiled) for said in every]
    found = [
        Setting(
            micro=one,
            recompute=kind,
            cost=_cost(one, kind, layers=layers, packs=packs, length=length, filled=compiled),
        )
        for one in micros
        for kind in kinds
    ]
    return sorted(found, key=lambda setting: setting.cost)


def first_that_fits(
    found: Iterable[Setting], needed: Callable[[Setting], float], room: float
) -> Setting | None:
    """The first that needs at most `room` bytes."""
    return next((setting for setting in found if needed(setting) <= room), None)


def row_sizes(micro: int) -> Iterator[int]:
    """The numbers of packs that rows of compiled layers are filled to, where a micro batch has up to `micro`.

    >>> list(row_sizes(6))
    [1, 2, 4, 6]
    """
    yield from (1 << k for k in range((micro - 1).bit_length()))
    yield micro


def _cost(micro: int, recompute: Recompute, *, layers: int, packs: int, length: int, filled: bool) -> float:
    rows = -(-packs // micro)
    rest = packs - (rows - 1) * micro  # of the last row
    last = next(size for size in row_sizes(micro) if size >= rest) if filled else rest
    computed = ((rows - 1) * micro + last) / packs
    again = NORMS * recompute.norms + FORWARD * recompute.blocks / layers
    return computed * (1 + again) + rows * ROW / (packs * length)
