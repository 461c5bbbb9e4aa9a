"""The micro batches of a step, and which process computes which."""

from collections.abc import Callable, Sequence
from functools import partial

from tuner.data.packs import Pack
from tuner.data.sampler import micro_batches_of_rank
from tuner.train.batch import Batch, collate, empty_batch
from tuner.train.deepspeed.sequence_parallel import shard_batch
from tuner.train.distributed import World
from tuner.train.monitor.anomalies import MicroBatchOrigin


def micro_batches(
    chosen: Sequence[Pack], micro: int, world: World, step: int, shared: int = 1
) -> list[Batch]:
    """What this process computes of a step's packs; an empty batch where the others still have one.
    `shared` neighbours have slices of the same rows.
    """
    parts = micro_batches_of_rank(range(len(chosen)), micro, world.rank // shared, world.size // shared)
    rows = [
        collate([chosen[i] for i in part], indices=part, step=step) if part else empty_batch(step)
        for part in parts
    ]
    return [shard_batch(row, world.rank % shared, shared) for row in rows]


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
