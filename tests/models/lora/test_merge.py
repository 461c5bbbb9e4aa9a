"""The streamed merge must equal PEFT's own merge in fp32, rounded once to bf16."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from tests.models import fixtures
from tests.models.tiny import tiny_adapter, tiny_model, write_tiny
from tuner.errors import StageError
from tuner.models import quantize
from tuner.models.checkpoint.config_files import write_config
from tuner.models.checkpoint.files import checkpoint_files, weight_files
from tuner.models.checkpoint.safetensors import Checkpoint, Spec, specs_in_dtype
from tuner.models.layouts.rewrite import write_native
from tuner.models.load import load_model, load_tuned
from tuner.models.lora.merge import merge_adapter, merge_original, merged_weight, replace_rows
from tuner.models.lora.tensors import lora_pairs, token_rows

# PEFT asks transformers by a name that is going away.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@pytest.fixture
def adapter(tiny: Path, tmp_path: Path) -> Path:
    tiny_adapter(tiny).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("use_rslora", "use_dora"), [(False, False), (True, False), (True, True), (False, True)]
)
def test_equals_peft(tmp_path: Path, dtype: torch.dtype, use_rslora: bool, use_dora: bool) -> None:
    base = write_tiny(tmp_path / "base", dtype=dtype, tied=False)
    peft = tiny_adapter(base, use_rslora=use_rslora, use_dora=use_dora)
    peft.save_pretrained(tmp_path / "adapter")
    (tmp_path / "out").mkdir()
    merge_adapter(base, tmp_path / "adapter", tmp_path / "out", limit=400_000)
    write_config(base, tmp_path / "out", "bfloat16")
    expected = peft.merge_and_unload().to(torch.bfloat16).state_dict()
    model, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values())
    assert model.dtype == torch.bfloat16
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_bytes_are_the_same_every_time(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        merge_adapter(tiny, adapter, tmp_path / name)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (
        tmp_path / "b" / "model.safetensors"
    ).read_bytes()


def test_what_has_no_adapter_keeps_its_bytes(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    merge_adapter(tiny, adapter, tmp_path / "out")
    before, after = load_file(tiny / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert changed == {name for name in before if name.endswith("_proj.weight")}


def test_few_tensors_of_another_type_stay(tmp_path: Path) -> None:
    specs = {
        s.name: s
        for s in (
            Spec(name="w", dtype="F16", shape=(9,)),
            Spec(name="bias", dtype="F32", shape=(2,)),
            Spec(name="n", dtype="I64", shape=(1,)),
        )
    }
    assert {name: spec.dtype for name, spec in specs_in_dtype(specs, "BF16").items()} == {
        "w": "BF16",
        "bias": "F32",
        "n": "I64",
    }


def edit(adapter: Path, **tensors: torch.Tensor) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file(load_file(file) | tensors, file)


def test_a_tensor_that_would_be_lost_is_refused(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    edit(adapter, **{"base_model.model.lm_head.weight": torch.zeros(2, 2)})
    with pytest.raises(StageError, match=r"Of the adapter's 29 tensors 1 .*\.lm_head"):
        merge_adapter(tiny, adapter, tmp_path)


def test_a_lonely_half_is_refused(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    edit(adapter, **{"base_model.model.model.norm.lora_A.weight": torch.zeros(2, 2)})
    with pytest.raises(StageError, match="belong to no pair of A and B"):
        merge_adapter(tiny, adapter, tmp_path)


def test_magnitudes_of_another_length_or_none_are_refused(tiny: Path, tmp_path: Path) -> None:
    tiny_adapter(tiny, use_dora=True).save_pretrained(tmp_path / "adapter")
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector"
    edit(tmp_path / "adapter", **{name: torch.ones(159)})
    with pytest.raises(
        StageError, match=r"magnitudes for model\.layers\.0\.mlp\.up_proj\.weight are \(159,\)"
    ):
        merge_adapter(tiny, tmp_path / "adapter", tmp_path)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if n != name}, file)
    with pytest.raises(StageError, match=r"2 belong to no pair of A and B, first .*up_proj\.lora_A"):
        merge_adapter(tiny, tmp_path / "adapter", tmp_path)


def test_an_adapter_of_another_model_is_refused(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    names = {half: f"base_model.model.model.layers.7.q.lora_{half}.weight" for half in "AB"}
    edit(adapter, **{names["A"]: torch.zeros(2, 64), names["B"]: torch.zeros(64, 2)})
    with pytest.raises(StageError, match=r"layers\.7\.q\.weight, and the base has no such tensor"):
        merge_adapter(tiny, adapter, tmp_path)


def test_another_shape_is_refused(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    edit(adapter, **{"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": torch.zeros(4, 65)})
    with pytest.raises(StageError, match=r"is \(160, 65\), the base has BF16 \(160, 64\)"):
        merge_adapter(tiny, adapter, tmp_path)


@pytest.mark.parametrize(
    "odd",
    [
        {"alpha_pattern": {"q_proj": 3}},
        {"bias": "all"},
        {"init_lora_weights": "pissa"},
        {"use_bdlora": {}, "kasa_config": {"a": 1}},
    ],
)
def test_more_than_lora_and_dora_is_refused(odd: dict[str, object]) -> None:
    with pytest.raises(StageError, match=list(odd)[-1]):
        lora_pairs({"lora_alpha": 8} | odd, {})


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.floats(0.01, 4.0))
def test_the_product(outputs: int, inputs: int, rank: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(outputs * 100 + inputs * 10 + rank)
    w, a, b = (
        torch.randn(shape, generator=generator)
        for shape in ((outputs, inputs), (rank, inputs), (outputs, rank))
    )
    expected = w.double() + scale * b.double() @ a.double()
    torch.testing.assert_close(merged_weight(w, a, b, scale).double(), expected, rtol=1e-5, atol=1e-5)


def test_the_settings_are_pefts(adapter: Path) -> None:
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    found = lora_pairs(settings, Checkpoint([adapter / "adapter_model.safetensors"]).specs)
    assert len(found) == 14
    assert all(pair.scale == 1.5 for pair in found.values())
    assert set(found) < set(tiny_model().state_dict())


def seer() -> PreTrainedModel:
    """A model that sees too; its weights and its tensors have other names."""
    text = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(
        text_config=text | {"sliding_window": 8},
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=60,
        boi_token_index=61,
        eoi_token_index=62,
    )
    return Gemma3ForConditionalGeneration(config)


def mixture() -> PreTrainedModel:
    """A mixture of experts; the tensors of a layer's experts become two weights on loading."""
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_local_experts=3,
        )
    )


@pytest.mark.parametrize("make", [seer, mixture])
def test_a_model_with_other_names_keeps_its_tensors(
    make: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    base, target = tmp_path / "base", tmp_path / "out"
    make().to(torch.bfloat16).save_pretrained(base)
    target.mkdir()
    auto: Any = AutoModelForImageTextToText if make is seer else AutoModelForCausalLM
    scope = r".*language_model.*(q_proj|o_proj)" if make is seer else ["q_proj", "o_proj"]
    peft = get_peft_model(
        auto.from_pretrained(base, dtype=torch.float32),
        LoraConfig(r=2, lora_alpha=3, target_modules=scope, task_type="CAUSAL_LM"),
    )
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape) * 0.1
    peft.save_pretrained(tmp_path / "adapter")
    merge_adapter(base, tmp_path / "adapter", target)
    write_config(base, target, "bfloat16")
    before, after = load_file(base / "model.safetensors"), load_file(target / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {
        name
        for name in before
        if before[name].dtype != after[name].dtype or not torch.equal(before[name], after[name])
    }
    assert len(changed) == 4
    assert all("vision" not in name and name.endswith(("q_proj.weight", "o_proj.weight")) for name in changed)
    expected = peft.merge_and_unload().to(torch.bfloat16).state_dict()
    assert all(
        torch.equal(value, expected[name])
        for name, value in auto.from_pretrained(target).state_dict().items()
    )


def test_a_base_in_4_bits_is_what_the_adapter_goes_into(tmp_path: Path) -> None:
    base, target = write_tiny(tmp_path / "base", tied=False), tmp_path / "out"
    target.mkdir()
    peft = tiny_adapter(base)
    peft.save_pretrained(tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    # the others have no part in it
    tensors = {name: tensor for name, tensor in tensors.items() if "q_proj" in name}
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    merge_adapter(base, tmp_path / "adapter", target, quant="nf4")
    write_config(base, target, "bfloat16")

    quantised = load_model(base, dtype=torch.bfloat16, device="cpu", quant="nf4", attention="sdpa")
    held = {
        name: module for name, module in quantised.named_modules() if type(module).__name__ == "Linear4bit"
    }
    before, after = load_file(base / "model.safetensors"), load_file(target / "model.safetensors")
    assert {f"{name}.weight" for name in held} == quantize.quantised_tensors(base)
    for name, tensor in after.items():
        module = held.get(name.removesuffix(".weight"))
        if module is None:
            assert torch.equal(tensor, before[name]), name
            continue
        # what the layer multiplies by
        frozen = module(torch.eye(tensor.shape[1], dtype=torch.bfloat16)).T.detach().float()
        pair = [
            tensors.get(
                f"base_model.model.{name.removesuffix('.weight')}.lora_{half}.weight", torch.zeros(1, 1)
            )
            for half in "BA"
        ]
        product = pair[0] @ pair[1] * 1.5
        assert torch.equal(tensor, (frozen + product).to(torch.bfloat16)), name
    measured = load_tuned(
        base, tmp_path / "adapter", dtype=torch.bfloat16, device="cpu", attention="sdpa", quant="nf4"
    )
    assert all(torch.equal(value, after[name]) for name, value in measured.state_dict().items())


def test_rows_take_the_places_that_the_settings_name() -> None:
    specs = {
        name: Spec(name=name, dtype="F32", shape=(2, 4))
        for name in (
            f"base_model.model.{module}.token_adapter.trainable_tokens_delta"
            for module in ("model.embed_tokens", "lm_head")
        )
    }
    found = token_rows({"trainable_token_indices": {"embed_tokens": [5, 3], "lm_head": [1, 2]}}, specs)
    assert {name: part.ids for name, part in found.items()} == {
        "model.embed_tokens.weight": (5, 3),
        "lm_head.weight": (1, 2),
    }
    first = dict(list(specs.items())[:1])
    assert token_rows({"trainable_token_indices": [7, 8]}, first)["model.embed_tokens.weight"].ids == (7, 8)
    assert token_rows({}, {}) == {}
    for said in (None, [7], [7, 7], {"wte": [7, 8]}, {"tokens": [7, 8]}):
        with pytest.raises(StageError, match=r"rows for model\.embed_tokens are \(2, 4\)"):
            token_rows({"trainable_token_indices": said}, first)


def test_rows_beyond_the_embedding_are_refused(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    edit(
        adapter,
        **{"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": torch.zeros(1, 64)},
    )
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    (adapter / "adapter_config.json").write_text(
        json.dumps(settings | {"trainable_token_indices": [6400]}), encoding="utf-8"
    )
    with pytest.raises(
        StageError,
        match=r"a row for the token 6400, and model\.embed_tokens\.weight of the base has 6400 rows",
    ):
        merge_adapter(tiny, adapter, tmp_path)


def test_a_pair_and_rows_for_one_weight_are_refused(tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "base", tied=False)
    tiny_adapter(base).save_pretrained(tmp_path / "adapter")
    names = {half: f"base_model.model.lm_head.lora_{half}.weight" for half in "AB"}
    head = {"base_model.model.lm_head.token_adapter.trainable_tokens_delta": torch.zeros(1, 64)}
    edit(tmp_path / "adapter", **{names["A"]: torch.zeros(2, 64), names["B"]: torch.zeros(6400, 2)}, **head)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps(settings | {"trainable_token_indices": {"lm_head": [5]}}), encoding="utf-8"
    )
    with pytest.raises(StageError, match=r"both a pair A, B and rows of its own for lm_head\.weight"):
        merge_adapter(base, tmp_path / "adapter", tmp_path)


@given(
    st.lists(st.integers(0, 9), unique=True, max_size=10), st.sampled_from([torch.float32, torch.bfloat16])
)
def test_replaced_rows(ids: list[int], dtype: torch.dtype) -> None:
    weight, values = (
        torch.arange(30.0).reshape(10, 3).to(dtype),
        torch.rand(len(ids), 3, generator=torch.Generator().manual_seed(len(ids))),
    )
    out = replace_rows(weight, values, ids)
    for i in range(10):
        assert torch.equal(out[i], values[ids.index(i)].to(dtype) if i in ids else weight[i])


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("internlm2", "internlm2"),
        ("baichuan2_7b", "baichuan2"),
        ("chatglm3", "chatglm3"),
        ("qwen", "qwen"),
        ("minicpm", "minicpm"),
    ],
)
def test_a_rewritten_family_gets_its_adapter_in_the_original_layout(
    name: str, layout: str, tmp_path: Path
) -> None:
    base, out = fixtures.native(name, layout, tmp_path / "base"), tmp_path / "out"
    out.mkdir()
    peft = get_peft_model(
        fixtures.load(base), LoraConfig(r=2, lora_alpha=3, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    generator = torch.Generator().manual_seed(1)
    for parameter in (p for n, p in peft.named_parameters() if "lora_" in n):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    peft.save_pretrained(tmp_path / "adapter")
    merge_original(base, tmp_path / "adapter", base / "original", out)
    assert {n: s.shape for n, s in Checkpoint(weight_files(out)).specs.items()} == {
        n: s.shape for n, s in Checkpoint(weight_files(fixtures.directory(name))).specs.items()
    }

    (tmp_path / "again").mkdir()
    (tmp_path / "merged").mkdir()
    write_native(checkpoint_files(out), layout, tmp_path / "again", say=lambda _: None)
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")
    again, expected = (
        Checkpoint(weight_files(tmp_path / "again")),
        Checkpoint(weight_files(tmp_path / "merged")),
    )
    assert again.specs == expected.specs
    for tensor in again.specs:
        # made by a division that is rounded in another type
        if name == "baichuan2_7b" and tensor == "lm_head.weight":
            torch.testing.assert_close(again[tensor], expected[tensor], rtol=0.02, atol=1e-3)
        else:
            assert torch.equal(again[tensor], expected[tensor]), tensor


def test_what_full_training_made_goes_back_too(tmp_path: Path) -> None:
    base, out = fixtures.native("internlm2", "internlm2", tmp_path / "base"), tmp_path / "out"
    out.mkdir()
    merge_original(base, None, base / "original", out)
    fixtures.check_same(fixtures.directory("internlm2"), out)
