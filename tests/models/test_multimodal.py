"""Text-only tuning of models that see, and of mixtures of experts: transformers calls their weights
otherwise than their checkpoints do.
"""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Llama4Config,
    Llama4ForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from tuner.errors import ConfigError, DataError, StageError
from tuner.models import load, quantize
from tuner.models.checkpoint.config_files import write_config
from tuner.models.checkpoint.files import weight_files
from tuner.models.checkpoint.meta_model import meta_model
from tuner.models.checkpoint.safetensors import Checkpoint
from tuner.models.checkpoint.weight_names import OriginalTensors, WeightNames, checkpoint_names, map_names
from tuner.models.lora.add import add_lora
from tuner.models.lora.initial import load_adapter
from tuner.models.lora.merge import merge_adapter
from tuner.models.targets import ALL, linear_layers, target_modules

TEXT: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
EYES: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 14,
    "out_hidden_size": 32,
}


def gemma3() -> PreTrainedModel:
    text = TEXT | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4)
    )


def mistral3() -> PreTrainedModel:
    text, vision = TEXT | {"model_type": "mistral"}, VISION | {"model_type": "pixtral", "head_dim": 8}
    return Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision))


def qwen2_vl() -> PreTrainedModel:
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 14}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=TEXT | ROPE, vision_config=vision))


def qwen2_5_vl() -> PreTrainedModel:
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=TEXT | ROPE, vision_config=EYES | {"fullatt_block_indexes": [0]})
    )


def qwen3_vl() -> PreTrainedModel:
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=TEXT | ROPE, vision_config=EYES | {"deepstack_visual_indexes": [0]})
    )


def mixtral() -> PreTrainedModel:
    return MixtralForCausalLM(MixtralConfig(**TEXT, num_local_experts=4))


def qwen2_moe() -> PreTrainedModel:
    return Qwen2MoeForCausalLM(
        Qwen2MoeConfig(**TEXT, moe_intermediate_size=24, shared_expert_intermediate_size=24, num_experts=4)
    )


def qwen3_moe() -> PreTrainedModel:
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **TEXT, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2, mlp_only_layers=[0]
        )
    )


def deepseek_v3() -> PreTrainedModel:
    sizes = {
        "moe_intermediate_size": 24,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
    }
    ranks = {
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
    }
    return DeepseekV3ForCausalLM(
        DeepseekV3Config(**TEXT | sizes | ranks | {"num_key_value_heads": 4, "head_dim": 4})
    )


SEEING = [gemma3, mistral3, qwen2_vl, pytest.param(qwen2_5_vl, marks=pytest.mark.slow), qwen3_vl]
EXPERTS = [mixtral, pytest.param(qwen2_moe, marks=pytest.mark.slow), qwen3_moe, deepseek_v3]
IDS, ENDS = torch.arange(3, 19)[None], (0, 5, 11, 16)
POSITIONS = torch.cat([torch.arange(5), torch.arange(6), torch.arange(5)])[None]

Make = Callable[[], PreTrainedModel]


def write(make: Make, directory: Path) -> Path:
    torch.manual_seed(0)
    make().to(torch.bfloat16).save_pretrained(directory)
    return directory


@pytest.fixture(params=[*SEEING, *EXPERTS], ids=lambda make: make.__name__)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(request.param, tmp_path / "base")


@pytest.fixture(params=SEEING, ids=lambda make: make.__name__)
def seeing(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(request.param, tmp_path / "base")


@pytest.fixture(params=EXPERTS, ids=lambda make: make.__name__)
def sparse(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(request.param, tmp_path / "base")


def logits(model: torch.nn.Module, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, position_ids=positions).logits


def adapted(base: Path, directory: Path, dtype: torch.dtype = torch.float32) -> PeftModel:
    model = add_lora(
        load.load_model(base, dtype=dtype, device="cpu"),
        r=2,
        alpha=3,
        dropout=0.0,
        targets="all-linear",
        seed=0,
    )
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    model.save_pretrained(directory)
    return model.eval()


def test_documents_of_a_pack_are_alone(base: Path) -> None:
    model, reference = (
        load.load_model(base, dtype=torch.float32, device="cpu"),
        load.load_model(base, dtype=torch.float32, device="cpu", attention="sdpa"),
    )
    packed = logits(model, IDS, POSITIONS)
    for begin, end in pairwise(ENDS):
        with torch.no_grad():
            alone = reference(input_ids=IDS[:, begin:end], use_cache=False).logits
        torch.testing.assert_close(packed[:, begin:end], alone, rtol=1e-4, atol=1e-4)


def test_the_whole_of_a_seeing_model_trains_on_text_through_its_adapters(seeing: Path) -> None:
    model = add_lora(
        load.load_model(seeing, dtype=torch.float32, device="cpu"),
        r=2,
        alpha=2,
        dropout=0.0,
        targets="all-linear",
        seed=0,
    ).train()
    model(input_ids=IDS, position_ids=POSITIONS).logits.square().mean().backward()
    trains = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".language_model.layers." in name and "lora_" in name for name in trains)
    assert all(parameter.grad is not None for parameter in trains.values())
    assert len(trains) == 2 * 7 * 2


def test_generation_continues_text(seeing: Path) -> None:
    model = load.load_model(seeing, dtype=torch.float32, device="cpu", attention="sdpa")
    ids = model.generate(IDS, max_new_tokens=3, do_sample=False, eos_token_id=95)
    for length in range(16, 19):
        with torch.no_grad():
            assert model(input_ids=ids[:, :length], use_cache=False).logits[0, -1].argmax() == ids[0, length]


def test_neither_head_nor_router_nor_eyes_are_among_all_linear(base: Path) -> None:
    found = linear_layers(meta_model(base))
    assert found
    assert not [
        name
        for name in found
        if any(
            word in name
            for word in ("lm_head", "visual", "vision", "projector", "merger", "router", ".experts.")
        )
    ]
    assert not [name for name in found if name.endswith((".gate", ".shared_expert_gate"))]


def test_merged_with_an_adapter_it_is_peft_s_model_and_the_rest_keeps_its_bytes(
    base: Path, tmp_path: Path
) -> None:
    trained = adapted(base, tmp_path / "adapter")
    names = checkpoint_names(base)
    (tmp_path / "merged").mkdir()
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged", names=names)
    write_config(base, tmp_path / "merged", "bfloat16")
    before, after = (
        load_file(base / "model.safetensors"),
        load_file(tmp_path / "merged" / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    changed = {names[f"{name}.weight"] for name in target_modules(meta_model(base), ALL)}
    assert {name for name in before if not torch.equal(before[name], after[name])} == changed

    tuned = load.load_tuned(base, tmp_path / "adapter", dtype=torch.float32, device="cpu")
    written = load.load_model(tmp_path / "merged", dtype=torch.float32, device="cpu").state_dict()
    for name, tensor in tuned.state_dict().items():
        assert torch.equal(tensor, written[name]), name
    theirs = {
        name: tensor.bfloat16().float() for name, tensor in trained.merge_and_unload().state_dict().items()
    }
    for name, tensor in tuned.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=2**-7, atol=1e-6, msg=name)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_loading_with_an_adapter_leaves_the_files_alone(tmp_path: Path, stored: torch.dtype) -> None:
    base = write(qwen2_vl, tmp_path / "base")
    if stored == torch.float32:
        qwen2_vl().save_pretrained(base)
    adapted(base, tmp_path / "adapter", torch.bfloat16)
    before = (base / "model.safetensors").read_bytes()
    for dtype in (torch.bfloat16, torch.float32):
        load.load_tuned(base, tmp_path / "adapter", dtype=dtype, device="cpu")
        load.load_model(base, dtype=dtype, device="cpu", rounded=torch.bfloat16)
    assert (base / "model.safetensors").read_bytes() == before


def test_experts_of_an_fp32_checkpoint_are_rounded_as_merging_rounds_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mixtral().save_pretrained(tmp_path / "base")
    adapted(tmp_path / "base", tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    merge_adapter(
        tmp_path / "base",
        tmp_path / "adapter",
        tmp_path / "merged",
        names=checkpoint_names(tmp_path / "base"),
    )
    write_config(tmp_path / "base", tmp_path / "merged", "bfloat16")
    tuned = load.load_tuned(
        tmp_path / "base", tmp_path / "adapter", dtype=torch.float32, device="cpu"
    ).state_dict()
    for name, tensor in (
        load.load_model(tmp_path / "merged", dtype=torch.float32, device="cpu").state_dict().items()
    ):
        assert torch.equal(tuned[name], tensor), name


@pytest.mark.parametrize("make", [gemma3, mistral3], ids=lambda make: make.__name__)
def test_in_4_bits_only_the_language_model_is_held(make: Make, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base = write(make, tmp_path / "base")
    model = load.load_model(base, dtype=torch.bfloat16, device="cpu", quant="nf4")
    held = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.uint8}
    assert held == {f"{name}.weight" for name in linear_layers(meta_model(base))}
    assert quantize.quantised_tensors(base) == {checkpoint_names(base)[name] for name in held}
    tuned = add_lora(model, r=2, alpha=2, dropout=0.0, targets="all-linear", seed=0).train()
    tuned(input_ids=IDS, position_ids=POSITIONS).logits.float().square().mean().backward()
    assert len([parameter for parameter in tuned.parameters() if parameter.grad is not None]) == 2 * 7 * 2


def test_a_name_means_the_language_model_s_modules_and_an_expression_whatever_it_says(tmp_path: Path) -> None:
    base = write(gemma3, tmp_path / "base")

    def modules(targets: str | tuple[str, ...]) -> set[str]:
        model = add_lora(
            load.load_model(base, dtype=torch.float32, device="cpu"),
            r=2,
            alpha=2,
            dropout=0.0,
            targets=targets,
            seed=0,
        )
        return {
            name.removeprefix("base_model.model.model.").partition(".lora_A")[0]
            for name, _ in model.named_parameters()
            if "lora_A" in name
        }

    language = {f"language_model.layers.{layer}.self_attn.q_proj" for layer in range(2)}
    assert modules("q_proj") == modules(("q_proj",)) == language
    assert modules(r".*\.q_proj") == language | {"vision_tower.encoder.layers.0.self_attn.q_proj"}
    assert modules(
        ("vision_tower.encoder.layers.0.self_attn.q_proj", r".*language_model.*\.mlp\.up_proj")
    ) == {
        "vision_tower.encoder.layers.0.self_attn.q_proj",
        "language_model.layers.0.mlp.up_proj",
        "language_model.layers.1.mlp.up_proj",
    }


def test_beside_experts_attention_is_adapted(sparse: Path, tmp_path: Path) -> None:
    trained = adapted(sparse, tmp_path / "adapter")
    assert all(
        ".self_attn." in name for name, parameter in trained.named_parameters() if parameter.requires_grad
    )


def test_an_mlp_that_peft_takes_for_experts_is_refused(tmp_path: Path) -> None:
    model = load.load_model(write(qwen3_moe, tmp_path), dtype=torch.float32, device="cpu")
    with pytest.raises(
        ConfigError,
        match=(
            r"algo\.targets=.*down_proj.* takes for parts of this model's experts \(down_proj\).*all-linear"
        ),
    ):
        add_lora(model, r=2, alpha=2, dropout=0.0, targets=("q_proj", "down_proj"), seed=0)


def test_experts_are_taken_apart_into_their_tensors_again(sparse: Path) -> None:
    specs, model = (
        Checkpoint(weight_files(sparse)),
        load.load_model(sparse, dtype=torch.bfloat16, device="cpu"),
    )
    weights = model.state_dict()
    again = OriginalTensors(sparse, weights.__getitem__)
    assert again.weight_of.keys() == specs.specs.keys()
    assert len(set(again.weight_of.values())) < len(again.weight_of)
    for name in sorted(specs.specs):
        assert torch.equal(again[name], specs[name]), name


def test_what_changed_in_an_expert_is_in_its_tensor(tmp_path: Path) -> None:
    base = write(mixtral, tmp_path)
    weights = {
        name: tensor.clone()
        for name, tensor in load.load_model(base, dtype=torch.bfloat16, device="cpu").state_dict().items()
    }
    before = Checkpoint(weight_files(base))
    # the third expert's way up is the second half
    weights["model.layers.1.mlp.experts.gate_up_proj"][2, 48:] += 1
    again = OriginalTensors(base, weights.__getitem__)
    changed = {name for name in sorted(before.specs) if not torch.equal(again[name], before[name])}
    assert changed == {"model.layers.1.block_sparse_moe.experts.2.w3.weight"}


def test_a_weight_that_is_part_of_a_larger_tensor_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write(qwen2_vl, tmp_path)
    found = map_names(meta_model(base), Checkpoint(weight_files(base)).specs)
    torn = WeightNames(plain=found.plain, made={}, split=frozenset({"model.visual.q"}), steps=found.steps)
    monkeypatch.setattr("tuner.models.checkpoint.weight_names.map_names", lambda *_: torn)
    with pytest.raises(StageError, match=r"model\.visual\.q is a part of a larger tensor"):
        OriginalTensors(base, lambda _: torch.zeros(1))


def test_a_class_of_its_own_for_text_reads_the_same_checkpoint(tmp_path: Path) -> None:
    text = TEXT | {
        "intermediate_size_mlp": 48,
        "num_local_experts": 2,
        "interleave_moe_layer_step": 2,
        "attn_temperature_tuning": False,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    torch.manual_seed(0)
    Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=vision)).save_pretrained(
        tmp_path
    )
    names = checkpoint_names(tmp_path)
    assert (
        names["model.layers.0.self_attn.q_proj.weight"]
        == "language_model.model.layers.0.self_attn.q_proj.weight"
    )
    weights = Checkpoint(weight_files(tmp_path))
    model = load.load_model(tmp_path, dtype=torch.float32, device="cpu")
    assert torch.equal(
        model.model.layers[0].self_attn.q_proj.weight,
        weights[names["model.layers.0.self_attn.q_proj.weight"]],
    )


def test_a_model_that_writes_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}', encoding="utf-8")
    with pytest.raises(DataError, match="model_type vit is not a language model"):
        load.load_model(tmp_path, dtype=torch.float32, device="cpu")


def test_an_adapter_comes_back_as_it_was_written_here_and_with_peft(base: Path, tmp_path: Path) -> None:
    trained = adapted(base, tmp_path / "adapter")
    fresh = add_lora(
        load.load_model(base, dtype=torch.float32, device="cpu"),
        r=2,
        alpha=3,
        dropout=0.0,
        targets="all-linear",
        seed=5,
    )
    load_adapter(fresh, tmp_path / "adapter")
    plain = type(trained.get_base_model()).from_pretrained(base, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    positions = torch.arange(16)[None]
    expected = logits(trained, IDS, positions)
    assert torch.equal(logits(fresh.eval(), IDS, positions), expected)
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(input_ids=IDS, use_cache=False).logits, expected, rtol=1e-4, atol=1e-4
        )
