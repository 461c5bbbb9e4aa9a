"""The one function by which every model attends: causal, within documents only.

transformers calls the function registered here instead of its own attention, and passes it the `position_ids`
that restart at every document of a pack. The document borders come from there, so neither a cache nor a mask
of ones can let documents attend to each other. Where a family passes no positions on, a row that was
announced as one document is one. What computes it is one of several backends, each in a file of its own;
`choose_backend` says which is best here, `use_backend` takes it.

Not covered: generation with a cache, and batches of several rows; both are refused with a reason.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tuner.errors import ConfigError, StageError
from tuner.kernels import flash, flash4, flex, sdpa, varlen
from tuner.kernels.backend import HALF, AttentionNeeds, Scoring
from tuner.kernels.packed_documents import Documents, Offsets, documents_of, single_document

IMPLEMENTATION = "tuner"
BACKENDS = {
    backend.name: backend
    for backend in (flash4.BACKEND, flash.BACKEND, varlen.BACKEND, flex.BACKEND, sdpa.BACKEND)
}
"""by their words for machine.attention, the fastest first"""

_used = sdpa.BACKEND


def choose_backend(wish: str, needs: AttentionNeeds) -> tuple[str, str]:
    """The backend for machine.attention=`wish`, and why it is that one: on a GPU with what keeps from faster
    ones.

    `auto` takes the fastest that can do what is needed. In fp32 that is SDPA, but for capped scores and
    sinks, for which it writes all scores out. Raises ConfigError where a wish can't be met.
    """
    troubles = {name: backend.trouble(needs) for name, backend in BACKENDS.items()}
    order = [*BACKENDS] if needs.dtype in HALF or needs.softcap or needs.sinks else ["sdpa", *BACKENDS]
    best = next(name for name in order if troubles[name] is None)
    if wish == "auto":
        faster = order[: order.index(best)] if needs.device.type == "cuda" else []
        passed = [f"{name}: {troubles[name]}" for name in faster]
        return best, "; ".join([BACKENDS[best].words, *passed])
    if reason := troubles[wish]:
        raise ConfigError(
            f"machine.attention={wish} ({BACKENDS[wish].words}) can't be used here: {reason}. "
            f"Leave machine.attention=auto, which takes {best} here ({BACKENDS[best].words})."
        )
    return wish, BACKENDS[wish].words


def choose_for_compiled(wish: str, needs: AttentionNeeds) -> tuple[str | None, str]:
    """The fastest backend that a compiler can look through, for machine.attention=`wish`, or None and why
    there is none.
    """
    why = f"machine.attention={wish}"
    for name, backend in BACKENDS.items():
        if backend.compiles and wish in ("auto", name):
            if (trouble := backend.trouble(needs)) is None:
                return name, backend.words
            why = f"{name}: {trouble}"
    return None, why


def use_backend(name: str) -> None:
    """Attend with this backend from now on, in this process. Before the first call it is "sdpa", which
    runs everywhere.
    """
    global _used
    if name not in BACKENDS:
        raise ValueError(f"{name!r} is none of {', '.join(BACKENDS)}")
    _used = BACKENDS[name]


@contextmanager
def using_backend(name: str) -> Iterator[None]:
    """The same for a while."""
    before = _used.name
    use_backend(name)
    try:
        yield
    finally:
        use_backend(before)


def register_attention() -> None:
    """Register it with transformers as `attn_implementation="tuner"`. What is registered under that name
    already stays.

    No mask function is registered beside it, so transformers builds no mask for it.
    """
    if IMPLEMENTATION not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(IMPLEMENTATION, packed_attention)


def packed_attention(
    module: torch.nn.Module,
    q_1HND: Tensor,
    k_1KND: Tensor,
    v_1KND: Tensor,
    _mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_ids: Tensor | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    documents: Documents | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """softmax(q k' * scaling) v for each document alone; returns ([1, N, H, D], None).

    H query heads share K key heads (H is a multiple of K). Scores may have a soft cap (Gemma 2) or sinks
    (gpt-oss: `s_aux` [H]). `documents` is where they lie, where that is not what `position_ids` say; compiled
    layers are told by `cu_seq_lens_q` and `max_length_q`, for which the host is not asked. The signature is
    transformers' own otherwise; its further keywords are flags of other implementations.
    """
    scaling = q_1HND.shape[-1] ** -0.5 if scaling is None else scaling
    if cu_seq_lens_q is not None and max_length_q is not None and _used.compiles:
        offsets, scoring = (
            Offsets(cu_seq_lens_q, max_length_q),
            Scoring(scaling=scaling, window=sliding_window),
        )
        return _used.attend(*in_one_dtype(q_1HND, k_1KND, v_1KND), offsets, scoring), None
    if documents is None and position_ids is None and q_1HND.shape[0] == 1:
        documents = single_document(q_1HND.shape[2])
    if documents is None and position_ids is None and q_1HND.shape[0] == 1:
        raise StageError(
            f"This model's own code ({type(module).__name__}) does not tell its attention where the "
            "documents of a packed row begin, so that they would see each other: models of its family can't "
            "be trained here. `list model` shows some that can, and any model of their families can too."
        )
    told = documents is not None or (position_ids is not None and position_ids.ndim == 2)
    if not told or q_1HND.shape[0] != 1 or q_1HND.shape[2] != k_1KND.shape[2]:
        raise NotImplementedError(
            "packed attention takes one row with position_ids [1, N] and no cache; load the model with "
            "attention='sdpa' to generate"
        )
    if documents is None:
        assert position_ids is not None
        documents = documents_of(position_ids)
    if documents.tokens != q_1HND.shape[2]:
        raise ValueError(f"the documents have {documents.tokens} tokens together, the row {q_1HND.shape[2]}")
    scoring = Scoring(
        scaling=scaling, window=sliding_window or None, softcap=softcap, sinks=s_aux, dropout=dropout
    )
    return _used.attend(*in_one_dtype(q_1HND, k_1KND, v_1KND), documents, scoring), None


def matmul_dtype(x: Tensor) -> torch.dtype:
    """That of autocast where it is on, else that of the tensor."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def in_one_dtype(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All three in one dtype: that of autocast where it is on, which does not cast the inputs of custom
    kernels; else that of the values.

    Rotary positions and norms in fp32 make queries and keys fp32 where values are not.
    """
    dtype = matmul_dtype(v)
    return q.to(dtype), k.to(dtype), v.to(dtype)
