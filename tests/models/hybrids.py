"""Tiny models with a recurrent state or a convolution in their layers, as transformers computes them
without kernels of their own.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    BambaConfig,
    FalconH1Config,
    GraniteMoeHybridConfig,
    JambaConfig,
    Lfm2Config,
    MiniMaxConfig,
    NemotronHConfig,
    PretrainedConfig,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
    Zamba2Config,
)

COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "max_position_embeddings": 256,
}
MAMBA2: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}

CONFIGS: dict[str, Callable[..., PretrainedConfig]] = {
    "qwen3_next": lambda **more: Qwen3NextConfig(
        **COMMON
        | {
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_value_heads": 2,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "head_dim": 8,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        }
        | more
    ),
    "lfm2": lambda **more: Lfm2Config(
        **COMMON
        | {
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "layer_types": ["conv", "full_attention"],
            "block_auto_adjust_ff_dim": False,
        }
        | more
    ),
    "falcon_h1": lambda **more: FalconH1Config(
        **COMMON | MAMBA2 | {"mamba_d_ssm": 64, "intermediate_size": 48, "num_hidden_layers": 2} | more
    ),
    "bamba": lambda **more: BambaConfig(
        **COMMON
        | MAMBA2
        | {"intermediate_size": 48, "num_hidden_layers": 2, "attn_layer_indices": [1]}
        | more
    ),
    "granitemoehybrid": lambda **more: GraniteMoeHybridConfig(
        **COMMON
        | MAMBA2
        | {
            "intermediate_size": 48,
            "shared_intermediate_size": 48,
            "num_local_experts": 0,
            "num_hidden_layers": 2,
            "layer_types": ["mamba", "attention"],
        }
        | more
    ),
    "jamba": lambda **more: JambaConfig(
        **COMMON
        | {
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 2,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        }
        | more
    ),
    "zamba2": lambda **more: Zamba2Config(
        **COMMON
        | {
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "layers_block_type": ["mamba", "hybrid", "mamba"],
            "mamba_d_state": 8,
            "n_mamba_heads": 4,
            "mamba_ngroups": 1,
            "num_mem_blocks": 1,
            "chunk_size": 8,
            "adapter_rank": 4,
            "use_mem_rope": True,
        }
        | more
    ),
    "recurrent_gemma": lambda **more: RecurrentGemmaConfig(
        **COMMON
        | {
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "lru_width": 32,
            "attention_window_size": 32,
            "head_dim": 8,
        }
        | more
    ),
    "nemotron_h": lambda **more: NemotronHConfig(
        **COMMON
        | {
            "intermediate_size": 48,
            "layers_block_type": ["mamba", "attention", "mlp"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 8,
            "head_dim": 8,
        }
        | more
    ),
    "minimax": lambda **more: MiniMaxConfig(
        **COMMON
        | {
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "layer_types": ["linear_attention", "full_attention"],
            "block_size": 8,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "head_dim": 8,
        }
        | more
    ),
}
"""by model_type"""


def hybrid(kind: str, **more: Any) -> PretrainedConfig:
    torch.manual_seed(0)
    return CONFIGS[kind](**more)
