"""The shapes that a config's keys give, against the models that transformers builds from them on the meta
device.
"""

import subprocess
import sys
import time
from collections.abc import Mapping
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.conftest import environment
from tuner.errors import DataError
from tuner.models.architectures import ARCHITECTURES
from tuner.models.geometry import active_parameter_count, linear_shapes, parameter_count, tensor_shapes

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "pad_token_id": None,
    "max_position_embeddings": 64,
}
LATENT = {
    "q_lora_rank": 20,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}
LATER = {
    "moe_intermediate_size": 28,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
}
QWEN = {"moe_intermediate_size": 28, "num_experts": 6, "num_experts_per_tok": 2}
MIXTRAL = {"num_local_experts": 6, "num_experts_per_tok": 2}

ALL: list[dict[str, Any]] = [
    *(
        {"model_type": kind}
        for kind, built in ARCHITECTURES.items()
        if built.attention != "latent" and not built.experts
    ),
    {
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 20,
        "tie_word_embeddings": True,
    },
    {"model_type": "llama", "num_key_value_heads": None},
    {"model_type": "internlm3", "qkv_bias": True, "bias": True, "head_dim": 20},
    {"model_type": "internlm3", "attention_bias": True, "mlp_bias": True},
    {"model_type": "mistral", "head_dim": 20},
    {"model_type": "mistral", "head_dim": None},
    {"model_type": "qwen2", "tie_word_embeddings": True},
    {"model_type": "qwen3", "head_dim": 20, "attention_bias": True},
    {"model_type": "glm", "head_dim": 20, "attention_bias": False},
    {"model_type": "gemma2", "head_dim": 20, "tie_word_embeddings": False},
    {"model_type": "gemma3_text", "head_dim": 20, "attention_bias": True},
    {"model_type": "granite", "attention_bias": True, "mlp_bias": True, "head_dim": 20},
    {"model_type": "olmo2", "attention_bias": True},
    {"model_type": "seed_oss", "attention_bias": False, "attention_out_bias": True, "mlp_bias": True},
    {"model_type": "smollm3", "mlp_bias": True, "tie_word_embeddings": False},
    {"model_type": "starcoder2", "use_bias": False},
    {"model_type": "minicpm3", **LATENT},
    {"model_type": "minicpm3", **LATENT, "attention_bias": True, "mlp_bias": True},
    {"model_type": "mixtral", **MIXTRAL},
    {"model_type": "mixtral", **MIXTRAL, "head_dim": 20},
    {"model_type": "olmoe", **QWEN},
    {"model_type": "qwen2_moe", **QWEN, "shared_expert_intermediate_size": 36},
    {
        "model_type": "qwen2_moe",
        **QWEN,
        "shared_expert_intermediate_size": 36,
        "decoder_sparse_step": 2,
        "qkv_bias": False,
    },
    {"model_type": "qwen3_moe", **QWEN, "head_dim": 20},
    {"model_type": "qwen3_moe", **QWEN, "mlp_only_layers": [1]},
    {"model_type": "glm4_moe", **LATER, "use_qk_norm": True, "attention_bias": True},
    {"model_type": "glm4_moe", **LATER, "head_dim": 20, "first_k_dense_replace": 0},
    {"model_type": "deepseek_v2", **LATENT, **LATER},
    {
        "model_type": "deepseek_v2",
        **LATENT,
        **LATER,
        "q_lora_rank": None,
        "first_k_dense_replace": 2,
        "attention_bias": True,
        "mlp_bias": True,
    },
    {"model_type": "deepseek_v3", **LATENT, **LATER, "n_group": 1, "topk_group": 1},
    {"model_type": "deepseek_v3", **LATENT, **LATER, "n_group": 1, "topk_group": 1, "attention_bias": True},
    {"model_type": "gpt_oss", **MIXTRAL},
    {"model_type": "gpt_oss", **MIXTRAL, "head_dim": 20, "attention_bias": False},
]
CASES = [case for case in ALL if case["model_type"] in CONFIG_MAPPING]
"""of the families that the installed transformers has: InternLM3 came after 5.17"""


def name_of(case: Mapping[str, Any]) -> str:
    return "-".join(
        [
            case["model_type"],
            *(
                f"{key}={value}"
                for key, value in case.items()
                if key not in {"model_type", *SIZES, *LATENT, *LATER, *QWEN}
            ),
        ]
    )


def on_meta(geometry: Mapping[str, Any]) -> PreTrainedModel:
    """The model that transformers builds from the keys, without memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**geometry))


def held(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Name → shape of all that a file of it holds: a tensor that another one is tied to is there once."""
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return {
        name: tuple(value.shape)
        for name, value in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }


def adapted(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Name → shape of the linear layers but the head, what chooses experts or weighs them, and those whose
    names PEFT takes for others'.
    """
    layers = {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not model.get_output_embeddings()
        and not name.endswith(("gate", "router"))
    }
    config = LoraConfig(target_modules=list(layers))
    convert_peft_config_for_transformers(config, model=model, conversions=None)
    return {name: shape for name, shape in layers.items() if name in config.target_modules}


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_names_and_shapes_are_those_of_the_model_that_transformers_builds(case: dict[str, Any]) -> None:
    geometry = SIZES | case
    model = on_meta(geometry)
    assert tensor_shapes(geometry) == held(model)
    assert parameter_count(geometry) == sum(map(prod, held(model).values()))
    assert linear_shapes(geometry) == adapted(model)


def test_every_family_is_tried() -> None:
    assert {case["model_type"] for case in ALL} == set(ARCHITECTURES)


@pytest.mark.parametrize("case", [case for case in CASES if "num_experts_per_tok" in case], ids=name_of)
def test_a_token_uses_its_experts_and_all_that_is_no_expert(case: dict[str, Any]) -> None:
    geometry = SIZES | case
    total, one = 0, 0
    for name, parameter in [*(model := on_meta(geometry)).named_parameters(), *model.named_buffers()]:
        if name in held(model):
            total += parameter.numel()
            one += parameter[:2].numel() if ".experts." in name else parameter.numel()
    assert (parameter_count(geometry), active_parameter_count(geometry)) == (total, one)
    assert (
        active_parameter_count({**geometry, "num_experts_per_tok": 6})
        == active_parameter_count({**geometry, "num_experts_per_tok": 9})
        == total
    )


def test_without_experts_all_parameters_are_active() -> None:
    geometry = SIZES | {"model_type": "qwen3"}
    assert active_parameter_count(geometry) == parameter_count(geometry)


@settings(derandomize=True, max_examples=25, deadline=None)
@given(st.data())
def test_any_sizes_give_the_shapes_of_the_model(data: st.DataObject) -> None:
    case = data.draw(st.sampled_from(CASES))
    groups, of_a_group, width = (data.draw(st.integers(1, 3)) for _ in range(3))
    heads = groups * of_a_group
    geometry = (
        SIZES
        | case
        | {
            "num_attention_heads": heads,
            "num_key_value_heads": groups,
            "hidden_size": 8 * heads * width,
            "vocab_size": data.draw(st.integers(150, 200)),
            "intermediate_size": data.draw(st.integers(1, 50)),
            "num_hidden_layers": data.draw(st.integers(1, 5)),
        }
    )
    assert tensor_shapes(geometry) == held(on_meta(geometry))


def test_what_is_not_there_is_filled_in_only_where_the_class_does_the_same() -> None:
    """A number of key/value heads that is a family's own default belongs to one of its models: it has to
    be given.
    """
    without = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
    for kind, built in ARCHITECTURES.items():
        if built.attention == "latent" or built.experts:
            continue
        if built.grouped:
            with pytest.raises(
                DataError,
                match=(
                    rf"model\.geometry has no num_key_value_heads, where model_type {kind} needs a number"
                    r" from 1"
                ),
            ):
                tensor_shapes(without | {"model_type": kind})
        else:
            assert tensor_shapes(without | {"model_type": kind}) == held(
                on_meta(without | {"model_type": kind})
            )


@pytest.mark.parametrize(
    "key", ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]
)
@pytest.mark.parametrize("value", [0, -4, 2.5, "64", True, None, 1 << 40, []])
def test_a_size_that_is_none_is_refused(key: str, value: Any) -> None:
    with pytest.raises(DataError, match=rf"model\.geometry says {key}=.*a number from 1 to"):
        tensor_shapes(SIZES | {"model_type": "llama", key: value})


def test_a_latent_query_rank_is_not_guessed() -> None:
    with pytest.raises(DataError, match=r"no q_lora_rank: .* or null"):
        tensor_shapes(
            {
                key: value
                for key, value in (SIZES | {"model_type": "minicpm3"} | LATENT).items()
                if key != "q_lora_rank"
            }
        )


@pytest.mark.parametrize("kind", ["lama", None, 7, ["llama"]])
def test_an_unknown_family_is_refused(kind: Any) -> None:
    with pytest.raises(DataError, match=r"whose layers are not known here.*Without model\.geometry"):
        parameter_count(SIZES | {"model_type": kind})


def test_the_largest_model_takes_milliseconds() -> None:
    large = (
        SIZES
        | LATENT
        | LATER
        | {
            "model_type": "deepseek_v3",
            "num_hidden_layers": 61,
            "n_routed_experts": 256,
            "moe_intermediate_size": 2048,
        }
    )
    began = time.monotonic()
    assert parameter_count(large) > len(linear_shapes(large)) > 0
    assert time.monotonic() - began < 0.1


def test_shapes_need_the_standard_library_only() -> None:
    code = (
        "import sys, tuner.models.geometry; print(sorted({'torch', 'transformers', 'numpy', 'tokenizers', "
        "'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
