"""From packs to the tensors of one forward pass."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import overload

import numpy as np
import torch
from torch.nn.functional import pad

from tuner.data.packs import Pack, Packs
from tuner.data.sampler import micro_batches_of_rank
from tuner.kernels.packed_documents import document_borders, to_device
from tuner.train.distributed import World


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Packs laid end to end in one row of N tokens, of which M are targets."""

    ids_1N: torch.Tensor
    """int64 [1, N]: the tokens"""
    positions_1N: torch.Tensor
    """int64 [1, N]: restarting at 0 with every document"""
    keep_M: torch.Tensor
    """int64 [M]: the positions that predict a trained token"""
    targets_M: torch.Tensor
    """int64 [M]: the tokens they predict"""
    borders: tuple[int, ...] = ()
    """where documents begin, and where the last one ends; () where only the positions say it"""
    packs: tuple[tuple[int, int], ...] = ()
    """(index, tokens) of each pack of the row: what noise is keyed by"""
    roles: tuple[int, ...] = ()
    """of each document, tuner.data.conversation.DocumentRole; () where the packs have none"""
    step: int = 0
    """the step it belongs to, 0 for the first"""
    offsets_D: torch.Tensor | None = None
    """int32 [D]: the borders, filled up to one of few lengths, where the row has one of few shapes"""
    longest: int = 0
    """tokens of the longest document that there may be, beside them"""

    def to(self, device: torch.device | str) -> "Batch":
        """The same on another device. The host does not wait for a GPU."""
        place = torch.device(device)
        ids_1N, positions_1N, keep_M, targets_M = (
            to_device(x, place) for x in (self.ids_1N, self.positions_1N, self.keep_M, self.targets_M)
        )
        offsets_D = None if self.offsets_D is None else to_device(self.offsets_D, place)
        return replace(
            self,
            ids_1N=ids_1N,
            positions_1N=positions_1N,
            keep_M=keep_M,
            targets_M=targets_M,
            offsets_D=offsets_D,
        )


def collate(
    packs: Sequence[Pack],
    device: torch.device | str = "cpu",
    *,
    indices: Sequence[int] | None = None,
    step: int = 0,
) -> Batch:
    """The packs as one Batch on `device`; `indices` are their numbers, 0, 1, 2 … when None.

    A token is predicted from the position before it, so a document's first token is no target. Two documents,
    `a b C` and `d E` with the capitals trained:

        ids        a b C d E
        positions  0 1 2 0 1
        borders    0     3   5
        keep         1   3        (b predicts C, d predicts E)
        targets      C   E
    """
    ids_N = np.concatenate([pack.ids for pack in packs]).astype(np.int64)
    trained_N = np.concatenate([pack.trained for pack in packs])
    lengths_D = np.concatenate([pack.lengths for pack in packs])
    positions_N = np.concatenate([np.arange(length, dtype=np.int64) for length in lengths_D])
    if len(positions_N) != len(ids_N):
        raise ValueError(
            f"the documents of the packs have {len(positions_N)} tokens together, the packs {len(ids_N)}"
        )
    targets = np.flatnonzero(trained_N & (positions_N > 0))
    numbers = range(len(packs)) if indices is None else indices
    return Batch(
        ids_1N=torch.from_numpy(ids_N)[None],
        positions_1N=torch.from_numpy(positions_N)[None],
        keep_M=torch.from_numpy(targets - 1),
        targets_M=torch.from_numpy(ids_N[targets]),
        borders=(0, *np.cumsum(lengths_D).tolist()),
        packs=tuple((number, len(pack.ids)) for number, pack in zip(numbers, packs, strict=True)),
        roles=tuple(role for pack in packs if pack.roles is not None for role in pack.roles.tolist()),
        step=step,
    ).to(device)


def split_documents(pack: Pack) -> Iterator[Pack]:
    """Each document of a pack as a pack of its own."""
    ends = np.cumsum(pack.lengths)
    for number, (end, length) in enumerate(zip(ends.tolist(), pack.lengths.tolist(), strict=True)):
        one, part = slice(end - length, end), slice(number, number + 1)
        yield replace(
            pack,
            ids=pack.ids[one],
            trained=pack.trained[one],
            lengths=pack.lengths[part],
            files=pack.files[part],
            lines=pack.lines[part],
            roles=None if pack.roles is None else pack.roles[part],
        )


class SingleDocuments(Sequence[Pack]):
    """Packs as the documents in them, each a pack of its own: the rows of a model that carries a state
    from token to token.
    """

    def __init__(self, packs: Sequence[Pack] | Packs) -> None:
        self._packs = packs
        self._ends = np.cumsum([len(pack.lengths) for pack in packs])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __iter__(self) -> Iterator[Pack]:
        for pack in self._packs:
            yield from split_documents(pack)

    @overload
    def __getitem__(self, place: int) -> Pack: ...
    @overload
    def __getitem__(self, place: slice) -> list[Pack]: ...
    def __getitem__(self, place: int | slice) -> Pack | list[Pack]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        number = int(np.searchsorted(self._ends, place, side="right"))
        if not 0 <= place < len(self):
            raise IndexError(place)
        documents = list(split_documents(self._packs[number]))
        return documents[place - int(self._ends[number])]  # counted from the end of the pack


def empty_batch(step: int = 0) -> Batch:
    """One document of two tokens, neither a target: for a process that has no packs where others have
    some, and must keep pace with them.
    """
    none = torch.zeros(0, dtype=torch.int64)
    return Batch(
        ids_1N=torch.zeros(1, 2, dtype=torch.int64),
        positions_1N=torch.tensor([[0, 1]]),
        keep_M=none,
        targets_M=none,
        borders=(0, 2),
        packs=((-1, 2),),
        step=step,
    )


def count_targets(packs: Sequence[Pack]) -> int:
    """How many tokens of the packs are trained: what the summed loss of a step is divided by."""
    return sum(int(pack.trained.sum()) for pack in packs)


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


def append_documents(batch: Batch, lengths: Sequence[int]) -> Batch:
    """The row filled up by documents of their own, of so many tokens each, which nobody trains and no other
    document attends to.
    """
    ids_1N, positions_1N = batch.ids_1N, batch.positions_1N
    filling = [torch.arange(length, device=positions_1N.device) for length in lengths]
    known = batch.borders or tuple(document_borders(positions_1N))
    return replace(
        batch,
        ids_1N=pad(ids_1N, (0, sum(lengths))),
        positions_1N=torch.cat([positions_1N[0], *filling])[None],
        borders=(*known[:-1], *accumulate(lengths, initial=known[-1])),
    )


def shard_batch(batch: Batch, rank: int, size: int) -> Batch:
    """What process `rank` of `size` has of a row: tokens, positions, and the targets that are predicted from
    its tokens.

    The row is filled up to a multiple of `size` with a document of its own that nobody trains. `borders` stay
    those of the whole row, and noise is keyed by pack and process. Slices of `a b C` and `d E` with the
    capitals trained, for two processes:

        ids        a b C | d E .
        positions  0 1 2 | 0 1 0
        keep         1   | 0          (b predicts C, d predicts E)
        borders    0 3 5 6 on both
    """
    if size == 1:
        return batch
    extra = -batch.ids_1N.shape[1] % size
    batch = append_documents(batch, [extra] if extra else [])
    each = batch.ids_1N.shape[1] // size
    begin, end = rank * each, (rank + 1) * each
    mine_M = (batch.keep_M >= begin) & (batch.keep_M < end)
    packs, at = [], 0
    for index, count in [*batch.packs, (-1, extra)] if batch.packs else []:
        if (inside := min(end, at + count) - max(begin, at)) > 0:
            packs.append((index * size + rank, inside))
        at += count
    return Batch(
        ids_1N=batch.ids_1N[:, begin:end].contiguous(),
        positions_1N=batch.positions_1N[:, begin:end].contiguous(),
        keep_M=batch.keep_M[mine_M] - begin,
        targets_M=batch.targets_M[mine_M],
        borders=batch.borders,
        packs=tuple(packs),
        step=batch.step,
    )
