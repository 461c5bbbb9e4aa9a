"""A trained step must come out as PEFT and transformers read it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, LlamaForCausalLM, PreTrainedModel

from tests.models.lora.test_merge import mixture, seer
from tests.models.tiny import tiny_adapter, write_tiny
from tuner.errors import StageError
from tuner.models.checkpoint.config_files import write_config
from tuner.models.checkpoint.safetensors import Checkpoint
from tuner.models.export import write_full
from tuner.models.lora.add import trainable_rows
from tuner.models.lora.export import write_adapter
from tuner.models.new_tokens import write_rows

# PEFT asks transformers by a name that is going away.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


def test_peft_loads_the_adapter(tiny: Path, tmp_path: Path) -> None:
    peft = tiny_adapter(tiny)
    peft.save_pretrained(tmp_path / "peft")
    save_file(get_peft_model_state_dict(peft), tmp_path / "weights.safetensors")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_adapter(
            Checkpoint([tmp_path / "weights.safetensors"]),
            tmp_path / "peft" / "adapter_config.json",
            tmp_path / name,
            "org/name",
        )
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    text = (tmp_path / "a" / "adapter_config.json").read_text(encoding="utf-8")
    assert json.loads(text)["base_model_name_or_path"] == "org/name"
    assert str(tmp_path) not in text
    loaded = PeftModel.from_pretrained(
        LlamaForCausalLM.from_pretrained(tiny, dtype=torch.float32), tmp_path / "a"
    )
    ids = torch.arange(5, 25)[None]
    assert torch.equal(loaded(ids).logits, peft.eval()(ids).logits)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("code", "dtype"), [("BF16", torch.bfloat16), ("F32", torch.float32)])
def test_full_weights_load(tmp_path: Path, tied: bool, code: str, dtype: torch.dtype) -> None:
    base = write_tiny(tmp_path / "base", tied=tied)
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    weights = {name: p.detach() + 0.001 for name, p in model.named_parameters()}
    save_file(weights, tmp_path / "weights.safetensors")
    (tmp_path / "out").mkdir()
    write_full(Checkpoint([tmp_path / "weights.safetensors"]), base, tmp_path / "out", code)
    write_config(base, tmp_path / "out", str(dtype).removeprefix("torch."))
    loaded, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values())
    assert loaded.dtype == dtype
    assert ("lm_head.weight" in load_file(tmp_path / "out" / "model.safetensors")) is not tied
    for name, p in loaded.named_parameters():
        assert torch.equal(p, weights[name].to(dtype)), name


def test_a_tensor_that_did_not_train_is_copied(tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "base")
    save_file(
        load_file(base / "model.safetensors") | {"model.buffer": torch.arange(3)},
        base / "model.safetensors",
        metadata={"format": "pt"},
    )
    weights = {n: t.float() for n, t in load_file(base / "model.safetensors").items() if n != "model.buffer"}
    save_file(weights, tmp_path / "weights.safetensors")
    (tmp_path / "out").mkdir()
    write_full(Checkpoint([tmp_path / "weights.safetensors"]), base, tmp_path / "out", "BF16")
    assert load_file(tmp_path / "out" / "model.safetensors")["model.buffer"].tolist() == [0, 1, 2]


def test_a_trained_tensor_without_a_place_is_refused(tiny: Path, tmp_path: Path) -> None:
    save_file({"model.experts": torch.zeros(2, 2)}, tmp_path / "weights.safetensors")
    with pytest.raises(
        StageError, match=r"model\.experts is \(2, 2\), the base checkpoint has no such tensor"
    ):
        write_full(Checkpoint([tmp_path / "weights.safetensors"]), tiny, tmp_path, "BF16")


@pytest.mark.parametrize(
    ("make", "class_"), [(seer, AutoModelForImageTextToText), (mixture, AutoModelForCausalLM)]
)
def test_trained_weights_go_back_to_the_tensors_they_were_made_of(
    make: Callable[[], PreTrainedModel], class_: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    base, out = tmp_path / "base", tmp_path / "out"
    make().to(torch.bfloat16).save_pretrained(base)
    out.mkdir()
    weights = {
        name: p.detach() + 0.01
        for name, p in class_.from_pretrained(base, dtype=torch.float32).named_parameters()
    }
    save_file(weights, tmp_path / "weights.safetensors")
    write_full(Checkpoint([tmp_path / "weights.safetensors"]), base, out, "F32", limit=30_000)
    write_config(base, out, "float32")
    before = load_file(base / "model.safetensors")
    after = {
        name: tensor for path in sorted(out.glob("*.safetensors")) for name, tensor in load_file(path).items()
    }
    assert {name: tensor.shape for name, tensor in before.items()} == {
        name: tensor.shape for name, tensor in after.items()
    }
    assert any(".experts.1.w1." in name for name in after) == (make is mixture)
    loaded, loading = class_.from_pretrained(out, output_loading_info=True)
    assert not any(loading.values())
    for name, p in loaded.named_parameters():
        assert torch.equal(p, weights[name]), name


def test_an_untrained_model_comes_back_to_the_byte(tmp_path: Path) -> None:
    base = tmp_path / "base"
    mixture().to(torch.bfloat16).save_pretrained(base)
    save_file(
        {
            name: p.detach().float()
            for name, p in AutoModelForCausalLM.from_pretrained(base).named_parameters()
        },
        tmp_path / "weights.safetensors",
    )
    (tmp_path / "out").mkdir()
    write_full(Checkpoint([tmp_path / "weights.safetensors"]), base, tmp_path / "out", "BF16")
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_expert_of_another_shape_is_refused(tmp_path: Path) -> None:
    mixture().save_pretrained(tmp_path / "base")
    save_file(
        {"model.layers.0.mlp.experts.down_proj": torch.zeros(2, 16, 24)}, tmp_path / "weights.safetensors"
    )
    with pytest.raises(
        StageError, match=r"experts\.down_proj is \(2, 16, 24\), the base checkpoint has \(3, 16, 24\)"
    ):
        write_full(Checkpoint([tmp_path / "weights.safetensors"]), tmp_path / "base", tmp_path, "BF16")


@pytest.mark.parametrize("tied", [True, False])
def test_the_readme_of_an_adapter_with_new_rows_works_on_the_public_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    public, grown, out = write_tiny(tmp_path / "public", tied=tied), tmp_path / "grown", tmp_path / "out"
    for directory in (grown, out):
        directory.mkdir()
    write_rows({path.name: path for path in public.iterdir()}, {6400: [5, 6], 6401: [7]}, grown)
    model = LlamaForCausalLM.from_pretrained(grown, dtype=torch.float32)
    config = LoraConfig(
        r=2,
        target_modules=["q_proj"],
        task_type="CAUSAL_LM",
        trainable_token_indices=trainable_rows(model, [6400, 6401]),
    )
    peft = get_peft_model(model, config)
    for p in peft.parameters():
        if p.requires_grad:
            p.data += torch.randn(p.shape, generator=torch.Generator().manual_seed(3)) * 0.1
    peft.save_pretrained(tmp_path / "peft", save_embedding_layers=False)
    save_file(get_peft_model_state_dict(peft, save_embedding_layers=False), tmp_path / "weights.safetensors")
    write_adapter(
        Checkpoint([tmp_path / "weights.safetensors"]),
        tmp_path / "peft" / "adapter_config.json",
        out,
        "org/name",
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (out / name).write_bytes((public / name).read_bytes())
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "2\nnew tokens, up to the id 6401" in text
    code = (
        text.partition("```python\n")[2]
        .partition("```")[0]
        .replace('"org/name"', f'"{public}", dtype="float32"')
    )
    monkeypatch.chdir(out)
    found: dict[str, Any] = {}
    exec(code, found)
    ids = torch.tensor([[5, 6400, 9, 6401, 6400]])
    # heads of other sizes add in another order
    torch.testing.assert_close(
        found["model"].eval()(ids).logits, peft.eval()(ids).logits[..., :6402], atol=1e-5, rtol=1e-5
    )


def test_an_adapter_without_new_rows_has_no_readme(tiny: Path, tmp_path: Path) -> None:
    peft = tiny_adapter(tiny)
    peft.save_pretrained(tmp_path / "peft")
    (tmp_path / "out").mkdir()
    write_adapter(
        Checkpoint([tmp_path / "peft" / "adapter_model.safetensors"]),
        tmp_path / "peft" / "adapter_config.json",
        tmp_path / "out",
        "org/name",
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
