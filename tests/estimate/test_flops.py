"""The counted operations against PyTorch's own counter on real models, forward and backward."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from tuner.config.schema import Algo
from tuner.estimate.flops import PEAKS, adapted_layers, attention_windows, costs, peak_flops, visible_pairs

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "pad_token_id": None,
}
LLAMA = SIZES | {"model_type": "llama", "intermediate_size": 160, "num_key_value_heads": 2}
GEOMETRIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "tied": LLAMA | {"tie_word_embeddings": True},
    "qwen3": SIZES
    | {"model_type": "qwen3", "intermediate_size": 96, "num_key_value_heads": 1, "head_dim": 32},
    "moe": SIZES
    | {
        "model_type": "qwen2_moe",
        "intermediate_size": 96,
        "num_key_value_heads": 2,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    }
    | {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 48, "norm_topk_prob": True},
    "latent": SIZES
    | {
        "model_type": "minicpm3",
        "intermediate_size": 96,
        "num_key_value_heads": 4,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
    }
    | {"qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12, "head_dim": 8},
}
LENGTH, TARGETS = 40, 11


def counted(
    geometry: dict[str, Any], lora: LoraConfig | None, frozen: tuple[str, ...] = ()
) -> dict[str, int]:
    """What PyTorch counts in a forward and a backward pass over one document, by kind of product."""
    torch.manual_seed(0)
    settings = {key: value for key, value in geometry.items() if key != "model_type"}
    config = AutoConfig.for_model(geometry["model_type"], **settings)
    config._experts_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    if lora:
        model = get_peft_model(model, lora)
    with FlopCounterMode(display=False) as counter:
        logits = model(
            input_ids=torch.arange(LENGTH)[None], use_cache=False, logits_to_keep=torch.arange(TARGETS)
        ).logits
        logits.float().sum().backward()
    return {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("kind", GEOMETRIES)
@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_products_are_those_that_pytorch_counts(kind: str, adapter: str) -> None:
    geometry = GEOMETRIES[kind]
    algo = Algo(adapter=adapter, r=4)  # type: ignore[arg-type]
    lora = (
        LoraConfig(
            r=4,
            target_modules=[name.removeprefix("model.") for name in adapted_layers(geometry, "all-linear")],
        )
        if adapter == "lora"
        else None
    )
    found = counted(geometry, lora)
    expected = costs(geometry, algo)
    products = sum(count for name, count in found.items() if "bmm" not in name)
    assert expected.token * LENGTH + expected.target * TARGETS == pytest.approx(products, rel=0.03)
    # Eager attention computes all pairs, those that are masked too.
    assert sum(expected.pairs.values()) * LENGTH**2 == pytest.approx(found["aten.bmm"], rel=0.03)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(
    "targets", [("q_proj", "down_proj"), r".*\.mlp\.(up|gate)_proj", ("o_proj", "lm_head")]
)
def test_adapters_on_some_layers(targets: str | tuple[str, ...]) -> None:
    found = counted(
        LLAMA, LoraConfig(r=8, target_modules=targets if isinstance(targets, str) else list(targets))
    )
    expected = costs(LLAMA, Algo(r=8, targets=targets))
    assert expected.token * LENGTH + expected.target * TARGETS == pytest.approx(found["aten.mm"], rel=0.04)


def test_frozen_layers_take_no_backward_pass() -> None:
    found = counted(LLAMA, None, frozen=("model.embed_tokens", "model.layers.0.", "model.layers.1."))
    expected = costs(LLAMA, Algo(adapter="none", last_layers=1))
    assert expected.token * LENGTH + expected.target * TARGETS == pytest.approx(found["aten.mm"], rel=0.01)


def test_documents_attend_within_themselves() -> None:
    found = costs(LLAMA, Algo())
    apart, together = found.model([8] * 5, TARGETS), found.model([40], TARGETS)
    pairs = 5 * 36, 820  # n (n + 1) / 2
    assert together - apart == pytest.approx(found.pairs[None] * (pairs[1] - pairs[0]))
    assert found.model([40], TARGETS) - found.model([40], 0) == 2 * 2 * 320 * 64 * TARGETS


@pytest.mark.parametrize("window", [1, 3, 7, 9, None])
def test_seen_pairs_are_those_of_the_mask(window: int | None) -> None:
    far = torch.arange(9)[:, None] - torch.arange(9)[None, :]
    assert visible_pairs(9, window) == int(((far >= 0) & (far < (window or 9))).sum())


def test_windows_by_layer() -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert attention_windows(LLAMA | {"sliding_window": 16, "layer_types": kinds}) == [16, None, 16]
    assert attention_windows(LLAMA | {"sliding_window": 16, "use_sliding_window": False}) == [None] * 3
    assert attention_windows(LLAMA | {"sliding_window": None}) == [None] * 3


def test_recomputation_is_one_more_forward_pass_through_the_layers() -> None:
    found = costs(LLAMA | {"tie_word_embeddings": True}, Algo(adapter="none"))
    once, twice = (found.hardware([40, 7], 5, recompute=flag) for flag in (False, True))
    assert once == found.model([40, 7], 5)
    assert twice - once == pytest.approx((found.model([40, 7], 0)) / 3)


def test_peaks_by_name() -> None:
    assert peak_flops("NVIDIA H100 PCIe") == 756.5e12
    assert peak_flops("NVIDIA H200") == PEAKS["H200"]
    assert peak_flops("NVIDIA GH200 480GB") == PEAKS["GH200"]
    assert peak_flops("NVIDIA L4") == 121e12
    assert peak_flops("NVIDIA L40S") == 362e12
    assert peak_flops("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None
    assert peak_flops("Tesla V100-SXM2-16GB") is None  # it has no bf16
