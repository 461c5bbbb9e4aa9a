"""A head that is the embedding, with an adapter on one of the two: two matrices from then on, and the
logits that trained.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    PreTrainedModel,
)

from tests.models import fixtures
from tests.models.tiny import SIZES, write_tiny
from tuner.errors import ConfigError, StageError
from tuner.files import write_json
from tuner.models.checkpoint.config_files import write_config
from tuner.models.checkpoint.files import checkpoint_files
from tuner.models.checkpoint.safetensors import Checkpoint
from tuner.models.layouts.rewrite import write_native
from tuner.models.load import load_model, load_tuned
from tuner.models.lora.add import add_lora
from tuner.models.lora.export import write_adapter
from tuner.models.lora.layers import adapter_config
from tuner.models.lora.merge import merge_adapter, merge_original
from tuner.models.lora.tied_head import tied_head_in, tied_head_of, untie_head

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model (has|with) `tie_word_embeddings=True`:UserWarning"),
]
IDS = torch.tensor([[5, 60, 9, 31, 2, 44]])


def tuned(base: Path, targets: tuple[str, ...], **settings: Any) -> PeftModel:
    """An adapter as training begins it, away from where it begins."""
    model = load_model(base, dtype=torch.float32, device="cpu", attention="sdpa")
    peft = add_lora(model, r=4, alpha=8, dropout=0.0, targets=targets, seed=0, **settings)
    draw = torch.Generator().manual_seed(1)
    for name, parameter in peft.named_parameters():
        if ".lora_" in name and "magnitude" not in name:
            parameter.data = torch.randn(parameter.shape, generator=draw) * 0.2
    return peft.eval()


def converted(peft: PeftModel, base: Path, out: Path, quant: str = "none") -> Path:
    """As the stage writes it."""
    out.mkdir()
    save_file(
        {n: t.contiguous() for n, t in get_peft_model_state_dict(peft, save_embedding_layers=False).items()},
        out / "weights",
    )
    write_json(out / "settings", adapter_config(peft))
    weights = Checkpoint([out / "weights"])
    write_adapter(
        weights, out / "settings", out, "org/base", quant=quant, tie=tied_head_in(base, weights.specs)
    )
    return out


def merge(base: Path, adapter: Path, out: Path, dtype: str = "F32", **how: Any) -> Path:
    out.mkdir()
    untied = merge_adapter(base, adapter, out, dtype=dtype, **how)
    write_config(base, out, {"F32": "float32", "BF16": "bfloat16"}[dtype], untied=untied)
    return out


@pytest.mark.parametrize("settings", [{}, {"rslora": True}], ids=str)
@pytest.mark.parametrize(
    "targets",
    [("q_proj", "lm_head"), ("lm_head",), ("embed_tokens", "v_proj"), ("embed_tokens", "lm_head")],
    ids=str,
)
def test_an_adapter_on_one_of_two_tied_matrices(
    tmp_path: Path, targets: tuple[str, ...], settings: dict[str, Any]
) -> None:
    base = write_tiny(tmp_path / "base", dtype=torch.float32, tied=True)
    peft = tuned(base, targets, **settings)
    adapter = converted(peft, base, tmp_path / "adapter")
    merged = merge(base, adapter, tmp_path / "merged")
    expected = peft(IDS).logits
    there, loading = AutoModelForCausalLM.from_pretrained(merged, output_loading_info=True)
    assert not any(loading.values())
    assert there.config.tie_word_embeddings is False
    torch.testing.assert_close(there(IDS).logits, expected, atol=2e-5, rtol=2e-5)
    assert not torch.equal(there.lm_head.weight, there.model.embed_tokens.weight)
    # in PEFT itself, without merging
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    assert torch.equal(plain(IDS).logits, expected)
    assert "make" in (adapter / "README.md").read_text(encoding="utf-8")
    # what is measured without a merged directory is what that holds
    loaded = load_model(merged, dtype=torch.float32, device="cpu", attention="sdpa")
    memory = load_tuned(
        base, adapter, dtype=torch.float32, device="cpu", attention="sdpa", rounded=torch.float32
    )
    assert memory.config.tie_word_embeddings is False
    for name, value in loaded.state_dict().items():
        assert torch.equal(memory.state_dict()[name], value), name
    # and in bf16
    small = load_model(
        merge(base, adapter, tmp_path / "bf16", "BF16"), dtype=torch.bfloat16, device="cpu", attention="sdpa"
    )
    held = load_tuned(
        base, adapter, dtype=torch.bfloat16, device="cpu", attention="sdpa", rounded=torch.bfloat16
    )
    for name, value in small.state_dict().items():
        assert torch.equal(held.state_dict()[name], value), name


def test_the_untied_weights_are_those_of_pefts_merge(tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "base", dtype=torch.float32, tied=True)
    peft = tuned(base, ("q_proj", "lm_head", "embed_tokens"))
    merged = load_file(
        merge(base, converted(peft, base, tmp_path / "adapter"), tmp_path / "merged") / "model.safetensors"
    )
    head = peft.base_model.model.lm_head.base_layer  # as it is, PEFT would put both into one matrix
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    with pytest.warns(UserWarning, match="no longer tied after merging"):
        expected = peft.merge_and_unload().state_dict()
    assert merged.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(merged[name], value), name


def test_a_file_that_holds_the_tied_matrix_twice(tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "base", dtype=torch.float32, tied=True)
    file = base / "model.safetensors"
    tensors = load_file(file)
    save_file(
        tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file, {"format": "pt"}
    )
    peft = tuned(base, ("lm_head",))
    merged = merge(base, converted(peft, base, tmp_path / "adapter"), tmp_path / "merged")
    torch.testing.assert_close(
        AutoModelForCausalLM.from_pretrained(merged)(IDS).logits, peft(IDS).logits, atol=2e-5, rtol=2e-5
    )


@pytest.mark.parametrize("targets", [("lm_head", "q_proj"), ("embed_tokens",)], ids=str)
def test_a_head_of_its_own_stays_one(tmp_path: Path, targets: tuple[str, ...]) -> None:
    base = write_tiny(tmp_path / "base", dtype=torch.float32, tied=False)
    peft = tuned(base, targets)
    adapter = converted(peft, base, tmp_path / "adapter")
    assert not (adapter / "README.md").exists()
    merged = merge(base, adapter, tmp_path / "merged")
    torch.testing.assert_close(
        AutoModelForCausalLM.from_pretrained(merged)(IDS).logits, peft(IDS).logits, atol=2e-5, rtol=2e-5
    )


def gemma() -> PreTrainedModel:
    """Tied by its class, whatever config.json leaves out, with an embedding that is scaled."""
    torch.manual_seed(0)
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            **SIZES, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
        )
    )


def seeing() -> PreTrainedModel:
    """Its text part is inside of another, under other names in the checkpoint."""
    torch.manual_seed(0)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=Gemma3TextConfig(**SIZES, head_dim=8), vision_config=vision)
    )


@pytest.mark.parametrize("make", [gemma, seeing])
@pytest.mark.parametrize("targets", [("q_proj", "lm_head"), ("embed_tokens",)], ids=str)
def test_other_families(tmp_path: Path, make: Any, targets: tuple[str, ...]) -> None:
    base = tmp_path / "base"
    make().save_pretrained(base)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    for part in (config, config.get("text_config", {})):
        part.pop("tie_word_embeddings", None)  # as its publisher leaves it out
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    peft = tuned(base, targets)
    merged = merge(base, converted(peft, base, tmp_path / "adapter"), tmp_path / "merged")
    there, loading = type(make()).from_pretrained(merged, output_loading_info=True)
    assert not any(loading.values())
    torch.testing.assert_close(there(IDS).logits, peft(IDS).logits, atol=2e-5, rtol=2e-5)
    memory = load_tuned(
        base, tmp_path / "adapter", dtype=torch.float32, device="cpu", attention="sdpa", rounded=torch.float32
    )
    torch.testing.assert_close(memory(IDS).logits, peft(IDS).logits, atol=2e-5, rtol=2e-5)


def test_a_rewritten_family_gets_a_head_of_its_own_in_its_layout(tmp_path: Path) -> None:
    native = fixtures.native("minicpm", "minicpm", tmp_path / "native")
    peft = tuned(native, ("q_proj", "lm_head"))
    adapter = converted(peft, native, tmp_path / "adapter")
    (tmp_path / "original").mkdir()
    assert merge_original(native, adapter, native / "original", tmp_path / "original", dtype="F32")
    assert (
        json.loads((tmp_path / "original" / "config.json").read_text(encoding="utf-8"))["tie_word_embeddings"]
        is False
    )
    (tmp_path / "again").mkdir()
    write_native(checkpoint_files(tmp_path / "original"), "minicpm", tmp_path / "again", say=lambda _: None)
    again = load_model(tmp_path / "again", dtype=torch.float32, device="cpu", attention="sdpa")
    torch.testing.assert_close(again(IDS).logits, peft(IDS).logits, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("targets", "settings", "says"),
    [
        (
            ("embed_tokens",),
            {"dora": True},
            (
                r"algo\.dora=true is made for linear layers, and algo\.targets names the embedding"
                r" model\.embed_tokens"
            ),
        ),
        (("embed_tokens",), {"init": "pissa"}, "algo.lora_init=pissa is made for linear layers"),
        (("embed_tokens",), {"init": "orthogonal"}, "algo.lora_init=orthogonal is made for linear layers"),
        (("lm_head",), {"init": "olora"}, "would change the embedding"),
        (
            ("lm_head",),
            {"new_token_ids": (7,)},
            "model.new_tokens trains rows of the embedding, which is the output head too",
        ),
        (("embed_tokens",), {"new_token_ids": (7,)}, "can't have adapters in this model"),
    ],
)
def test_what_can_not_be_is_refused_before_it_trains(
    tmp_path: Path, targets: tuple[str, ...], settings: dict[str, Any], says: str
) -> None:
    base = write_tiny(tmp_path / "base", tied=True)
    with pytest.raises(ConfigError, match=says):
        tuned(base, targets, **settings)


def test_rows_and_a_pair_for_a_tied_head_are_not_merged(tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "base", dtype=torch.float32, tied=True)
    adapter = converted(tuned(base, ("q_proj",), new_token_ids=(7,)), base, tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    head = {
        "base_model.model.lm_head.lora_A.weight": torch.zeros(4, 64),
        "base_model.model.lm_head.lora_B.weight": torch.zeros(6400, 4),
    }
    save_file(tensors | head, adapter / "adapter_model.safetensors")
    with pytest.raises(StageError, match="rows of its own for new tokens, and a pair A, B for the head"):
        merge_adapter(base, adapter, tmp_path)


def test_dora_on_a_tied_head(tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "base", dtype=torch.float32, tied=True)
    peft = tuned(base, ("lm_head", "q_proj"), dora=True)
    merged = merge(base, converted(peft, base, tmp_path / "adapter"), tmp_path / "merged")
    torch.testing.assert_close(
        AutoModelForCausalLM.from_pretrained(merged)(IDS).logits, peft(IDS).logits, atol=1e-4, rtol=1e-4
    )


def test_what_is_tied(tmp_path: Path) -> None:
    tied, apart = write_tiny(tmp_path / "tied", tied=True), write_tiny(tmp_path / "apart", tied=False)
    found = tied_head_in(tied, ["lm_head.weight"])
    assert found is not None
    assert (found.head, found.embedding) == ("lm_head.weight", "model.embed_tokens.weight")
    assert tied_head_in(apart, ["lm_head.weight"]) is None
    assert (
        tied_head_in(tied, ["model.layers.1.q_proj.weight"]) is None
    )  # belongs to a layer: nothing is built
    model = load_model(tied, dtype=torch.float32, device="cpu")
    assert tied_head_of(model) == found
    untie_head(model)
    assert tied_head_of(model) is None
