"""What a family's attention asks of a kernel, read off its config and its parameters."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma2Config,
    GptOssConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from tuner.kernels import alibi
from tuner.kernels.backend import AttentionNeeds
from tuner.models.attention_needs import attention_needs, generation_attention

SMALL = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    alibi.register_alibi()
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


FAMILIES = [
    (LlamaConfig(**SMALL), {"head_dim": 16}),
    (LlamaConfig(**SMALL, attention_dropout=0.1), {"head_dim": 16, "dropout": True}),
    (Qwen3Config(**SMALL, head_dim=128), {"head_dim": 128}),
    (Gemma2Config(**SMALL, head_dim=24), {"head_dim": 24, "softcap": True}),
    (
        GptOssConfig(**SMALL, head_dim=24, num_local_experts=2, num_experts_per_tok=1),
        {"head_dim": 24, "sinks": True},
    ),
    (
        DeepseekV3Config(
            **SMALL,
            qk_nope_head_dim=24,
            qk_rope_head_dim=8,
            v_head_dim=24,
            n_routed_experts=4,
            n_group=1,
            topk_group=1,
            num_experts_per_tok=1,
        ),
        {"head_dim": 32},
    ),
    (alibi.AlibiConfig(**SMALL), {"head_dim": 24}),
]


@pytest.mark.parametrize(
    ("config", "expected"), FAMILIES, ids=lambda x: x.model_type if isinstance(x, PreTrainedConfig) else ""
)
def test_needs(config: PreTrainedConfig, expected: dict[str, object]) -> None:
    model, cpu = skeleton(config), torch.device("cpu")
    assert attention_needs(model, dtype=torch.bfloat16, device=cpu) == AttentionNeeds(
        device=cpu, dtype=torch.bfloat16, **expected
    )  # type: ignore[arg-type]
    assert generation_attention(model) == ("eager" if expected.keys() & {"softcap", "sinks"} else "sdpa")
