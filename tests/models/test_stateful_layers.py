"""Which models carry something from token to token outside of attention, and what of them gets no adapter."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    Llama4TextConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen3MoeConfig,
)
from transformers.configuration_utils import ALLOWED_ATTN_LAYER_TYPES

from tests.models.hybrids import CONFIGS, hybrid
from tests.models.tiny import SIZES
from tuner.errors import ConfigError
from tuner.models.lora.add import add_lora
from tuner.models.stateful_layers import STATELESS, carried_state, linears_read_by_mixers
from tuner.models.targets import linear_layers

CARRYING = {
    "conv",
    "hybrid",
    "hybrid_sliding",
    "linear_attention",
    "minimax_m3_sparse",
    "compressed_sparse_attention",
    "heavily_compressed_attention",
    "deepseek_sparse_attention",
    "qwen_sparse_attention",
}
"""kinds of layers that were looked at and see more than one document of a row: states, windows of a
convolution, blocks that are cut across the row
"""


def built(config: PretrainedConfig) -> torch.nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_hybrid_is_known(kind: str) -> None:
    assert carried_state(built(hybrid(kind)))


def test_a_model_of_attention_alone_carries_nothing() -> None:
    small = SIZES | {"num_hidden_layers": 4}
    for config in (
        LlamaConfig(**small),
        Gemma2Config(**small, head_dim=8),
        Gemma3TextConfig(**small, head_dim=8),
        GptOssConfig(**small, num_local_experts=2),
        Qwen3MoeConfig(**small, moe_intermediate_size=16, num_experts=2),
        Llama4TextConfig(**small, num_local_experts=2, intermediate_size_mlp=16),
    ):
        assert carried_state(built(config)) is None, config.model_type


def test_every_kind_of_layer_that_transformers_knows_was_looked_at() -> None:
    assert set(ALLOWED_ATTN_LAYER_TYPES) <= STATELESS | CARRYING
    assert not STATELESS & CARRYING


def test_a_kind_that_nobody_knows_counts_as_one_with_a_state() -> None:
    model = built(hybrid("lfm2"))
    model.config.layer_types = ["full_attention", "something_new"]
    assert carried_state(model) == "something_new layers"
    model.config.layer_types = ["full_attention", "full_attention"]
    assert carried_state(model) == "convolutions along the tokens"  # the layers themselves tell


def test_what_a_mixer_reads_by_itself_gets_no_adapter_and_no_4_bits() -> None:
    mamba, other = built(hybrid("jamba")), built(hybrid("qwen3_next"))
    assert {name.rpartition(".")[2] for name in linears_read_by_mixers(mamba)} == {
        "x_proj",
        "dt_proj",
        "out_proj",
    }
    assert not {"x_proj", "dt_proj", "out_proj"} & {name.rpartition(".")[2] for name in linear_layers(mamba)}
    assert "in_proj" in {name.rpartition(".")[2] for name in linear_layers(mamba)}
    assert linears_read_by_mixers(other) == frozenset()
    assert "out_proj" in {name.rpartition(".")[2] for name in linear_layers(other)}
    with pytest.raises(
        ConfigError,
        match=(
            r"algo\.targets names model\.layers\.0\.mamba\.out_proj, whose weight a mixer of Mamba's reads"
            r" by itself"
        ),
    ):
        add_lora(mamba, r=2, alpha=4, dropout=0.0, targets=("q_proj", "out_proj"), seed=0)  # type: ignore[arg-type]
