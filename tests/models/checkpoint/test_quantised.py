"""What tells that a checkpoint is quantised already, and which model is named instead."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub.server import Hub
from tuner.errors import ConfigError
from tuner.hub import http, lockfile
from tuner.models import fetch
from tuner.models.checkpoint import quantised, unquantised
from tuner.models.checkpoint.files import INDEX

GROUP = {
    "targets": ["Linear"],
    "weights": {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False},
}
COMPRESSED: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"group_0": GROUP},
}
FOUR = {
    "group_0": {
        "targets": ["Linear"],
        "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True},
    }
}


def of_weights(**more: Any) -> dict[str, Any]:
    return COMPRESSED | {"config_groups": {"group_0": GROUP | {"weights": GROUP["weights"] | more}}}  # type: ignore[operator]


@pytest.mark.parametrize(
    ("said", "method", "words"),
    [
        ({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}, "fp8", "FP8"),
        ({"quant_method": "fp8", "weight_block_size": None, "activation_scheme": "static"}, "fp8", "FP8"),
        (
            {"quant_method": "FP8", "activation_scheme": "dynamic", "ignored_layers": ["lm_head"]},
            "fp8",
            "FP8",
        ),
        ({"quant_method": "mxfp8"}, "fp8", "FP8"),
        (
            {"quant_method": "fp8", "expert_dtype": "fp4"},
            "fp8 with experts in FP4",
            "fp8 with experts in FP4",
        ),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, "mxfp4", "MXFP4"),
        (COMPRESSED, "fp8", "FP8"),
        (COMPRESSED | {"format": "naive-quantized"}, "fp8", "FP8"),
        (of_weights(strategy="channel"), "fp8", "FP8"),
        (of_weights(strategy="block", block_structure=[128, 128]), "fp8", "FP8"),
        (of_weights(symmetric=False), "compressed-tensors", "compressed-tensors, float-quantized"),
        (of_weights(num_bits=4), "compressed-tensors", "compressed-tensors, float-quantized"),
        (
            COMPRESSED | {"sparsity_config": {"format": "sparse-24-bitmask"}},
            "compressed-tensors",
            "compressed-tensors, float-quantized",
        ),
        (
            COMPRESSED | {"format": "pack-quantized", "config_groups": FOUR},
            "compressed-tensors",
            "compressed-tensors, pack-quantized",
        ),
        (
            COMPRESSED | {"format": "nvfp4-pack-quantized"},
            "compressed-tensors",
            "compressed-tensors, nvfp4-pack-quantized",
        ),
        (
            {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
            "awq",
            "AWQ, 4 bits",
        ),
        ({"quant_method": "awq", "w_bit": 4}, "awq", "AWQ, 4 bits"),
        ({"quant_method": "gptq", "bits": 8, "desc_act": False}, "gptq", "GPTQ, 8 bits"),
        (
            {
                "quant_method": "bitsandbytes",
                "load_in_4bit": True,
                "_load_in_4bit": True,
                "bnb_4bit_quant_type": "nf4",
            },
            "bitsandbytes",
            "bitsandbytes, 4 bits",
        ),
        ({"load_in_8bit": True}, "bitsandbytes", "bitsandbytes, 8 bits"),
        ({"quant_method": "hqq", "quant_config": {}}, "hqq", "HQQ"),
        ({"quant_method": "torchao", "quant_type": {"default": {}}}, "torchao", "torchao"),
        ({"quant_method": "quanto", "weights": "int8"}, "quanto", "Quanto"),
        ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, "fbgemm_fp8", "FBGEMM FP8"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "modelopt", "NVIDIA ModelOpt"),
        ({"quant_method": "quark"}, "quark", "quark"),
        ({"group_size": 64, "bits": 4, "mode": "affine"}, "mlx", "MLX, 4 bits"),
        ({"bits": 4, "group_size": 128}, "unknown", "by a method that it does not name, 4 bits"),
    ],
)
def test_what_config_json_says(said: dict[str, Any], method: str, words: str) -> None:
    found = quantised.by_config({"model_type": "llama", "quantization_config": said})
    assert found is not None
    assert (found.method, found.words, found.undone) == (method, words, method in ("fp8", "mxfp4"))
    inside = quantised.by_config({"model_type": "qwen3_vl", "text_config": {"quantization_config": said}})
    assert inside == found


def test_other_keys_that_say_it() -> None:
    assert quantised.by_config({"quantization": {"group_size": 64, "bits": 4}}).words == "MLX, 4 bits"  # type: ignore[union-attr]
    assert quantised.by_config({"compression_config": COMPRESSED}).method == "fp8"  # type: ignore[union-attr]
    assert quantised.by_config({"model_type": "chatglm", "quantization_bit": 4}).words == "4 bits"  # type: ignore[union-attr]
    for silent in (
        {},
        {"quantization_config": None},
        {"quantization_config": {}},
        {"quantization_bit": 0},
        {"quantization_config": "fp8"},
    ):
        assert quantised.by_config({"model_type": "llama", **silent}) is None


@pytest.mark.parametrize(
    ("types", "words"),
    [
        (
            {
                "a.q_proj.weight": "U8",
                "a.q_proj.weight.absmax": "U8",
                "a.q_proj.weight.quant_state.bitsandbytes__nf4": "U8",
            },
            "bitsandbytes",
        ),
        ({"a.q_proj.weight": "I8", "a.q_proj.SCB": "F32", "a.q_proj.weight_format": "U8"}, "bitsandbytes"),
        ({"a.q_proj.qweight": "I32", "a.q_proj.qzeros": "I32", "a.q_proj.scales": "F16"}, "AWQ"),
        (
            {
                "a.q_proj.qweight": "I32",
                "a.q_proj.qzeros": "I32",
                "a.q_proj.scales": "F16",
                "a.q_proj.g_idx": "I32",
            },
            "GPTQ",
        ),
        (
            {
                "a.q_proj.weight_packed": "I32",
                "a.q_proj.weight_scale": "BF16",
                "a.q_proj.weight_shape": "I64",
            },
            "compressed-tensors",
        ),
        (
            {"a.q_proj.weight": "U8", "a.q_proj.weight_scale": "F8_E4M3", "a.q_proj.weight_scale_2": "F32"},
            "NVIDIA ModelOpt",
        ),
        ({"a.q_proj.W_q": "U8", "a.q_proj.zero": "F16"}, "HQQ"),
        ({"a.q_proj.codes": "I8", "a.q_proj.codebooks": "F16"}, "AQLM"),
        ({"a.q_proj.weight._data": "I8", "a.q_proj.weight._scale": "F16"}, "Quanto"),
        ({"a.q_proj.weight": "F8_E4M3", "a.q_proj.weight_scale_inv": "F32"}, "FP8"),
        ({"a.q_proj.weight": "F8_E4M3", "a.q_proj.weight_scale": "F32"}, "FP8"),
        ({"a.experts.down_proj_blocks": "U8", "a.experts.down_proj_scales": "U8"}, "MXFP4"),
        ({"a.q_proj.weight": "I8", "a.q_proj.weight_scale": "BF16"}, "integer weights"),
        (
            {"a.q_proj.weight": "U32", "a.q_proj.scales": "BF16", "a.q_proj.biases": "BF16"},
            "integer weights",
        ),
    ],
)
def test_tensors_that_betray_it(types: dict[str, str], words: str) -> None:
    found = quantised.by_types({"model.norm.weight": "BF16", **types})
    assert found is not None
    assert found.words == words


def test_plain_checkpoints_are_plain() -> None:
    plain = {
        "model.embed_tokens.weight": "BF16",
        "model.layers.0.self_attn.q_proj.weight": "BF16",
        "model.layers.0.mlp.router.scale": "BF16",
        "model.embeddings.position_ids": "I64",
        "h.0.attn.bias": "U8",
        "h.0.attn.masked_bias": "F32",
        "model.layers.0.mlp.experts.gate_up_proj": "F32",
        "model.layers.0.input_scale": "BF16",
        "logit_scale": "F32",
        "layers.0.attn_blocks": "BF16",
    }
    assert quantised.by_types(plain) is None


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", "unsloth/Llama-3.2-1B-Instruct"),
        ("unsloth/Qwen3-4B-unsloth-bnb-4bit", "unsloth/Qwen3-4B"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen-7B-Chat-Int4", "Qwen/Qwen-7B-Chat"),
        ("TheBloke/Mistral-7B-Instruct-v0.2-AWQ", "TheBloke/Mistral-7B-Instruct-v0.2"),
        ("casperhansen/llama-3-8b-instruct-awq", "casperhansen/llama-3-8b-instruct"),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16", "RedHatAI/Meta-Llama-3.1-8B-Instruct"),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8-dynamic", "RedHatAI/Meta-Llama-3.1-8B-Instruct"),
        ("nvidia/Qwen3-8B-NVFP4", "nvidia/Qwen3-8B"),
        ("mlx-community/Qwen3-4B-4bit", "mlx-community/Qwen3-4B"),
        ("org/Model_GPTQ_4bit", "org/Model"),
        ("org/Model-MXFP4", "org/Model"),
    ],
)
def test_names(name: str, plain: str) -> None:
    assert unquantised.by_name(name) is not None
    assert unquantised.plain_name(name) == plain


@pytest.mark.parametrize(
    "name",
    [
        "Qwen/Qwen3-0.6B",
        "openai/gpt-oss-20b",
        "org/Print8",
        "org/AWQ",
        "google/gemma-3-1b-it-qat-int4-unquantized",
        "org/x-8b",
        "a-4b",
    ],
)
def test_names_that_say_nothing(name: str) -> None:
    assert unquantised.by_name(name) is None
    assert unquantised.plain_name(name) == name


def refused(config: dict[str, Any], card: str | None, name: str | None) -> str:
    found = quantised.by_config({"quantization_config": {"quant_method": "awq", "bits": 4}})
    assert found is not None
    said = str(unquantised.refusal(found, "it", name=name, config=config, card=card))
    assert "\n" not in said
    return said


def test_the_unquantised_model_is_the_cards_or_the_configs_or_a_guess() -> None:
    card = (
        "---\nlicense: mit\nbase_model:\n- Qwen/Qwen2.5-7B-Instruct\nbase_model_relation: quantized\n---\n# "
        "A model\n"
    )
    other = {"_name_or_path": "org/Other"}
    assert "Qwen/Qwen2.5-7B-Instruct (as its card says)" in refused(other, card, "x/Y-AWQ")
    assert refused(other, card, "x/Y-AWQ").endswith(
        "model=hub model.repo=Qwen/Qwen2.5-7B-Instruct algo=qlora"
    )
    assert "org/Other (as config.json says)" in refused(other, "# no YAML", "x/Y-AWQ")
    assert "x/Y (a guess from its name)" in refused({"_name_or_path": "/home/me/model"}, None, "x/Y-AWQ")
    assert "x/Y (a guess from its name)" in refused({}, "---\nbase_model: [\n---\n", "x/Y-AWQ")
    assert "model.repo=ORG/Y algo=qlora" in refused({}, None, "Y-AWQ")  # of a directory
    assert "model.repo=ORG/NAME algo=qlora" in refused({}, None, "mine")
    assert "model.repo=meta/X algo=qlora" in refused({}, "---\nbase_model: meta/X-bnb-4bit\n---\n", "mine")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            server.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nonexistent/token")
        monkeypatch.setattr(http, "PAUSES", (0.01, 0.01, 0.01, 0.01))
        yield server


def look_up(tmp_path: Path, repo: str, source: str = "hub") -> lockfile.Pin | None:
    name = lockfile.entry_name("model", source, repo, None)
    fetch.lock_model(source, repo, None, lock=tmp_path / "tuner.lock", name=name, layout="auto", say=print)
    return lockfile.find_pin(tmp_path / "tuner.lock", name)


def repository(said: Any, **more: Any) -> dict[str, bytes]:
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "vocab_size": 400,
    }
    files = {
        "config.json": json.dumps(config | ({"quantization_config": said} if said else {})),
        "tokenizer.json": "{}",
        "model.safetensors": "x" * 5000,
    }
    return {name: content.encode() for name, content in (files | more).items()}


@pytest.mark.parametrize("source", ["hub", "modelscope"])
def test_a_hub_is_asked_before_anything_is_downloaded(hub: Hub, tmp_path: Path, source: str) -> None:
    hub.add(
        "org/model-awq",
        repository({"quant_method": "awq", "bits": 4}, **{"README.md": "---\nbase_model: org/model\n---\n"}),
        kind="models",
    )
    more = " model.source=modelscope" if source == "modelscope" else ""
    with pytest.raises(
        ConfigError,
        match=rf"org/model-awq is quantised already: AWQ, 4 bits, .*model\.repo=org/model{more} algo=qlora$",
    ):
        look_up(tmp_path, "org/model-awq", source)
    assert not (tmp_path / "tuner.lock").exists()
    assert hub.sent["model.safetensors"] == 0


def test_a_hubs_index_and_its_other_files_tell_where_config_json_is_silent(hub: Hub, tmp_path: Path) -> None:
    shards = {"weight_map": {"a.q_proj.qweight": "model-00001-of-00001.safetensors"}}
    files = repository(None, **{INDEX: json.dumps(shards), "model-00001-of-00001.safetensors": "y" * 5000})
    hub.add("org/one-AWQ", files, kind="models")
    with pytest.raises(
        ConfigError,
        match=(
            r"org/one-AWQ is quantised already: AWQ, as the tensor a\.q_proj\.qweight tells.*org/one \(a"
            r" guess from its name\)"
        ),
    ):
        look_up(tmp_path, "org/one-AWQ")
    hub.add("org/two", repository(None, **{"quantize_config.json": "{}"}), kind="models")
    with pytest.raises(ConfigError, match=r"GPTQ, as quantize_config\.json beside the weights tells"):
        look_up(tmp_path, "org/two")


def test_the_lock_says_what_is_undone(hub: Hub, tmp_path: Path) -> None:
    hub.add(
        "org/model-fp8", repository({"quant_method": "fp8", "weight_block_size": [128, 128]}), kind="models"
    )
    hub.add("org/model", repository(None), kind="models")
    found, plain = look_up(tmp_path, "org/model-fp8"), look_up(tmp_path, "org/model")
    assert found is not None
    assert found.quantised == "fp8"
    assert plain is not None
    assert plain.quantised is None
    assert '"quantised": "fp8"' in (tmp_path / "tuner.lock").read_text(encoding="utf-8")
