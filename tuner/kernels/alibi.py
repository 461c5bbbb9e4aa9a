"""Llama with ALiBi in place of rope (arXiv:2108.12409): what Baichuan-13B is, for which transformers has no
class.

    score of query i and key j = q_i · k_j · scaling + slope_h · (j - i)

The second term is a dot product too, of columns appended to queries and keys: so every attention of
transformers computes it, with its own masks and caches and without a matrix of distances, and so does tuner's
for packed rows, whose positions restart. It has no trainable parameters.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoConfig, AutoModelForCausalLM, Cache, LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention, eager_attention_forward

MODEL_TYPE = "alibi_llama"
"""plain transformers does not know it, and refuses the checkpoint rather than compute it with rope"""
COLUMNS = 8
"""appended to queries and keys: six, and two of zeros, as fast kernels want multiples of eight"""
DIGIT = 128
"""positions are a · 128 + b: whole numbers up to 256 are exact in bf16, so positions are up to 32,896"""


def slopes(heads: int) -> list[float]:
    """The slope of each head: s, s², …, sⁿ with s = 2 ** (-8 / n) for n a power of two.

    Otherwise those of the next lower power of two m, and then every second one of 2m's, as many as are
    missing.

    >>> slopes(2), slopes(3)
    ([0.0625, 0.00390625], [0.0625, 0.00390625, 0.25])
    """
    whole = 1 << (heads.bit_length() - 1)
    powers = [2 ** (-8 * (i + 1) / whole) for i in range(whole)]
    return powers if whole == heads else powers + slopes(2 * whole)[0::2][: heads - whole]


def distance_columns(
    positions_BN: Tensor, heads: int, scaling: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The columns appended to queries [B, H, N, 8] and keys [B, 1, N, 8]: their dot product times `scaling`
    is slope · (key position - query position).

    A slope is the sum of two numbers of `dtype`, and a position of two digits: in bf16 the slope is off by 2
    ** -17 of itself, and the distance exact. The query's own part is the same for all keys, so its rounding
    changes nothing; it keeps scores of near keys small, where they are precise.
    """
    slope_H = torch.tensor(slopes(heads), dtype=torch.float64, device=positions_BN.device) / scaling
    high_H = slope_H.to(dtype)
    low_H = (slope_H - high_H).to(dtype)
    own_BHN = -(high_H.double() + low_H.double())[:, None] * positions_BN[:, None, :]
    near_BHN = own_BHN.to(dtype)
    rest_BHN = (own_BHN - near_BHN).to(dtype)
    by_head_H4 = torch.stack([DIGIT * high_H, DIGIT * low_H, high_H, low_H], dim=-1)
    by_head_BHN4 = by_head_H4[None, :, None].expand(*own_BHN.shape, 4)
    q_BHN8 = pad(
        torch.cat([by_head_BHN4, near_BHN[..., None], rest_BHN[..., None]], dim=-1), (0, COLUMNS - 6)
    )
    a_BN, b_BN, one_BN = positions_BN // DIGIT, positions_BN % DIGIT, torch.ones_like(positions_BN)
    k_BN6 = torch.stack([a_BN, a_BN, b_BN, b_BN, one_BN, one_BN], dim=-1).to(dtype)
    return q_BHN8, pad(k_BN6, (0, COLUMNS - 6))[:, None]


class AlibiConfig(LlamaConfig):  # type: ignore[misc]
    """Llama's, whose rope_parameters are not used."""

    model_type = MODEL_TYPE


class AlibiAttention(LlamaAttention):  # type: ignore[misc]
    """Llama's, with columns for distance in place of the rotation."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: object = None,  # noqa: ARG002
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        *,
        position_ids: Tensor,
        **flags: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As Llama's: ([B, N, C], weights or None). The signature is transformers' own; the rotation's
        angles are not used.
        """
        split = (*hidden_states.shape[:-1], -1, self.head_dim)
        q_BHND, k_BHND, v_BHND = (
            proj(hidden_states).view(split).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q_BHN8, k_B1N8 = distance_columns(position_ids, q_BHND.shape[1], self.scaling, q_BHND.dtype)
        q_BHNE = torch.cat([q_BHND, q_BHN8.expand(*q_BHND.shape[:3], COLUMNS)], dim=-1)
        k_BHNE = torch.cat([k_BHND, k_B1N8.expand(*k_BHND.shape[:3], COLUMNS)], dim=-1)
        if past_key_values is not None:
            k_BHNE, v_BHND = past_key_values.update(k_BHNE, v_BHND, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.attention_dropout if self.training else 0.0
        v_BHNE = pad(v_BHND, (0, COLUMNS))  # fast kernels want values as wide as keys
        out_BNHE, weights = attend(
            self,
            q_BHNE,
            k_BHNE,
            v_BHNE,
            attention_mask,
            dropout=dropout,
            scaling=self.scaling,
            position_ids=position_ids,
            **flags,
        )
        return self.o_proj(out_BNHE[..., : self.head_dim].flatten(2)), weights


class AlibiLlamaForCausalLM(LlamaForCausalLM):  # type: ignore[misc]
    """Llama's, with that attention in every layer."""

    config_class = AlibiConfig

    def __init__(self, config: AlibiConfig) -> None:
        super().__init__(config)
        for number, layer in enumerate(self.model.layers):
            layer.self_attn = AlibiAttention(config, number)
        self.post_init()


def register_alibi() -> None:
    """Make the class known to transformers' Auto classes. Calling it twice changes nothing."""
    AutoConfig.register(MODEL_TYPE, AlibiConfig, exist_ok=True)
    AutoModelForCausalLM.register(AlibiConfig, AlibiLlamaForCausalLM, exist_ok=True)
