"""What a family's attention asks for: of the kernel that computes it, what it generates with, and
positions on several axes.
"""

from typing import Any

import torch
from transformers import PreTrainedModel

from tuner.kernels.alibi import COLUMNS, AlibiConfig
from tuner.kernels.attention import IMPLEMENTATION
from tuner.kernels.backend import AttentionNeeds


def attention_needs(model: PreTrainedModel, *, dtype: torch.dtype, device: torch.device) -> AttentionNeeds:
    """What a kernel must do to compute this model's attention in `dtype`, for
    tuner.kernels.attention.choose_backend.
    """
    config = model.config.get_text_config()
    return AttentionNeeds(
        device=device,
        dtype=dtype,
        head_dim=head_width(config),
        softcap=has_softcap(model),
        sinks=has_sinks(model),
        dropout=bool(getattr(config, "attention_dropout", 0.0)),
    )


def head_width(config: Any) -> int:
    """The widest query of any layer: compressed attention (DeepSeek, arXiv:2405.04434) has a part with
    positions and one without, and some families have wider heads in layers that see everything."""
    parts = (getattr(config, "qk_nope_head_dim", None) or 0) + (
        getattr(config, "qk_rope_head_dim", None) or 0
    )
    common = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return max(parts or common, getattr(config, "global_head_dim", None) or 0) + (
        COLUMNS if isinstance(config, AlibiConfig) else 0
    )


def generation_attention(model: PreTrainedModel) -> str:
    """What a model attends with when it generates: "sdpa", or "eager" where its family has no SDPA or SDPA
    would leave something out.
    """
    return (
        "sdpa"
        if getattr(model, "_supports_sdpa", True) and not (has_softcap(model) or has_sinks(model))
        else "eager"
    )


def has_softcap(model: PreTrainedModel) -> bool:
    """Whether a family's attention caps its scores."""
    return bool(getattr(model.config.get_text_config(), "attn_logit_softcapping", None))


def has_sinks(model: PreTrainedModel) -> bool:
    """Whether a family's attention has sinks."""
    return any(name.endswith(".sinks") for name, _ in model.named_parameters())


def unfold_positions(model: PreTrainedModel) -> None:
    """Let a language model whose positions have three axes (time, height, width) take the positions of text,
    which are the same on all three.

    Its own code would unfold them too, but then tell its attention nothing of where documents begin.
    """
    text = model.config.get_text_config()
    if not (getattr(text, "rope_parameters", None) or {}).get("mrope_section"):
        return

    def unfold(
        _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        positions_1N = kwargs.get("position_ids")
        if (
            model.config._attn_implementation == IMPLEMENTATION
            and positions_1N is not None
            and positions_1N.ndim == 2
        ):
            # the first is for attention, the others are the axes
            kwargs = kwargs | {"position_ids": positions_1N[None].expand(4, -1, -1)}
        return args, kwargs

    model.get_decoder().register_forward_pre_hook(unfold, with_kwargs=True)
