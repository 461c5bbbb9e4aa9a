"""Several processes share each row (Ulysses, arXiv:2309.14509), for rows that one GPU can't hold.

Each of S processes has a slice of N/S tokens through all layers. In attention they trade: each gives away all
but its part of the heads, and gets the other slices of those; so it attends over the whole row with H/S
heads, and then all trade back. DeepSpeed's own layer does the trading.

    process   before         in attention      after
    0         tokens 0..3    tokens 0..7       tokens 0..3
              heads a b c d  heads a b         heads a b c d
    1         tokens 4..7    tokens 0..7       tokens 4..7
              heads a b c d  heads c d         heads a b c d

The losses of the slices add up to the loss of the row, and their gradients to its gradient, as those of
different rows do. So an engine treats the processes as if each had rows of its own.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad
from transformers import AttentionInterface

from tuner.errors import ConfigError
from tuner.kernels.attention import IMPLEMENTATION, in_one_dtype, packed_attention
from tuner.kernels.packed_documents import Documents, announce_documents, document_borders, recall_documents
from tuner.train.batch import Batch


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
    tokens = batch.ids_1N.shape[1]
    extra = -tokens % size
    each = (tokens + extra) // size
    begin, end = rank * each, (rank + 1) * each
    positions_1N = torch.cat(
        [batch.positions_1N, torch.arange(extra, device=batch.positions_1N.device)[None]], dim=1
    )
    known = batch.borders or tuple(document_borders(batch.positions_1N))
    mine_M = (batch.keep_M >= begin) & (batch.keep_M < end)
    packs, at = [], 0
    for index, count in [*batch.packs, (-1, extra)] if batch.packs else []:
        if (inside := min(end, at + count) - max(begin, at)) > 0:
            packs.append((index * size + rank, inside))
        at += count
    return Batch(
        ids_1N=pad(batch.ids_1N, (0, extra))[:, begin:end].contiguous(),
        positions_1N=positions_1N[:, begin:end].contiguous(),
        keep_M=batch.keep_M[mine_M] - begin,
        targets_M=batch.targets_M[mine_M],
        borders=(*known, tokens + extra) if extra else known,
        packs=tuple(packs),
        step=batch.step,
    )


def heads_mismatch(heads: int, kv_heads: int, size: int) -> str | None:
    """Why heads can't be split over `size` processes, if so, and the largest number below that they can.

    >>> heads_mismatch(32, 8, 4), heads_mismatch(32, 2, 8), heads_mismatch(9, 3, 3)
    (None, None, None)
    >>> heads_mismatch(14, 2, 4)
    'its 14 attention heads, with 2 for keys and values, can be split over 2 processes, and not over 4'
    """
    if _fits(heads, kv_heads, size):
        return None
    best = max(n for n in range(1, size) if _fits(heads, kv_heads, n))
    return (
        f"its {heads} attention heads, with {kv_heads} for keys and values, can be split over {best} "
        f"process{'' if best == 1 else 'es'}, and not over {size}"
    )


def _fits(heads: int, kv_heads: int, size: int) -> bool:
    return heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0)


def refuse_model(config: Any, size: int, state: str | None = None) -> None:
    """Raise ConfigError for a model whose rows can't be shared: heads that can't be split, or layers that
    mix tokens in other ways.

    config   transformers' own of the model
    state    what goes from token to token by other means than attention, see tuner.models.stateful_layers
    """
    text = config.get_text_config()
    if state is not None:
        raise ConfigError(
            f"machine.sequence_parallel={size} shares the tokens of a row between processes, which trade "
            f"them in attention only, and this model has layers of another kind ({state}). Leave "
            "machine.sequence_parallel=1."
        )
    heads = text.num_attention_heads
    if why := heads_mismatch(heads, getattr(text, "num_key_value_heads", None) or heads, size):
        raise ConfigError(
            f"machine.sequence_parallel={size} splits the attention heads over the processes that share a "
            f"row, and of this model, {why}."
        )


def group_of(rank: int, world: int, size: int) -> Any:
    """The processes that share rows with process `rank` of `world`: `size` neighbours. Called in all
    processes; torch.distributed has been started.
    """
    groups = [dist.new_group(list(range(first, first + size))) for first in range(0, world, size)]
    return groups[rank // size]


def install(group: Any) -> None:
    """From now on, models loaded with attention "tuner" attend together with the other processes of `group`.

    The ZeRO engine has been built: it starts DeepSpeed's communication.
    """
    AttentionInterface.register(IMPLEMENTATION, SharedAttention(group))


def remove() -> None:
    """From now on, each process attends for itself again."""
    AttentionInterface.register(IMPLEMENTATION, packed_attention)


class SharedAttention:
    """The attention function for a slice of a row."""

    def __init__(self, group: Any) -> None:
        from deepspeed.sequence.layer import DistributedAttention

        self.group, self.rank, self.size = group, dist.get_rank(group), dist.get_world_size(group)
        self.traded = DistributedAttention(self.whole, group, scatter_idx=2, gather_idx=1)

    def __call__(
        self,
        module: torch.nn.Module,
        q_1HnD: Tensor,
        k_1KnD: Tensor,
        v_1KnD: Tensor,
        _mask: Tensor | None,
        *,
        position_ids: Tensor | None = None,
        s_aux: Tensor | None = None,
        **more: Any,
    ) -> tuple[Tensor, None]:
        """As `packed_attention`, with its keywords, on the n tokens of this process, all heads; returns
        ([1, n, H, D], None).
        """
        if (
            position_ids is None
            or position_ids.ndim != 2
            or q_1HnD.shape[0] != 1
            or q_1HnD.shape[2] != k_1KnD.shape[2]
        ):
            raise NotImplementedError(
                "attention of several processes takes a slice of one row with position_ids [1, n] and no "
                "cache"
            )
        q_1HnD, k_1KnD, v_1KnD = in_one_dtype(q_1HnD, k_1KnD, v_1KnD)
        # fewer key heads than processes: several get the same one
        if (copies := self.size // k_1KnD.shape[1]) > 1:
            k_1KnD, v_1KnD = (x.repeat_interleave(copies, dim=1) for x in (k_1KnD, v_1KnD))
        own = q_1HnD.shape[1] // self.size
        out_1nHD = self.traded(
            *(x.transpose(1, 2).contiguous() for x in (q_1HnD, k_1KnD, v_1KnD)),
            0,  # the dimension of rows
            module=module,
            documents=self.documents(position_ids),
            s_aux=None if s_aux is None else s_aux[self.rank * own : (self.rank + 1) * own],
            **more,
        )
        return out_1nHD, None

    def whole(
        self, q_1NhD: Tensor, k_1NkD: Tensor, v_1NkD: Tensor, *, module: torch.nn.Module, **more: Any
    ) -> Tensor:
        """The whole row through this process's heads; returns [1, N, h, D]."""
        q_1hND, k_1kND, v_1kND = (x.transpose(1, 2) for x in (q_1NhD, k_1NkD, v_1NkD))
        return packed_attention(module, q_1hND, k_1kND, v_1kND, None, **more)[0]

    def documents(self, positions_1n: Tensor) -> Documents:
        """Where the documents of the whole row are: what was announced for these positions, or what all
        slices of positions say.
        """
        if (found := recall_documents(positions_1n)) is None:
            slices = [torch.empty_like(positions_1n) for _ in range(self.size)]
            dist.all_gather(slices, positions_1n.contiguous(), group=self.group)
            announce_documents(positions_1n, document_borders(torch.cat(slices, dim=1)))
            found = recall_documents(positions_1n)
            assert found is not None
        return found
