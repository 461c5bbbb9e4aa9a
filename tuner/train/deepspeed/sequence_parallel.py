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
from transformers import AttentionInterface

from tuner.errors import ConfigError
from tuner.kernels.attention import IMPLEMENTATION, in_one_dtype, packed_attention
from tuner.kernels.packed_documents import Documents, announce_documents, document_borders, recall_documents


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
