"""A trained step must come out as PEFT and transformers read it."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from tests.models.tiny import tiny_adapter, write_tiny
from tuner.errors import StageError
from tuner.models.convert import write_adapter, write_full
from tuner.models.sidecars import write_config

# PEFT asks transformers by a name that is going away.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


def test_peft_loads_the_adapter(tiny: Path, tmp_path: Path) -> None:
    peft = tiny_adapter(tiny)
    peft.save_pretrained(tmp_path / "peft")
    save_file(get_peft_model_state_dict(peft), tmp_path / "weights.safetensors")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_adapter(tmp_path / "weights.safetensors", tmp_path / "peft" / "adapter_config.json", tmp_path / name, "org/name")
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    text = (tmp_path / "a" / "adapter_config.json").read_text(encoding="utf-8")
    assert json.loads(text)["base_model_name_or_path"] == "org/name"
    assert str(tmp_path) not in text
    loaded = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tiny, dtype=torch.float32), tmp_path / "a")
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
    write_full(tmp_path / "weights.safetensors", base, tmp_path / "out", code)
    write_config(base, tmp_path / "out", str(dtype).removeprefix("torch."))
    loaded, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values())
    assert loaded.dtype == dtype
    assert ("lm_head.weight" in load_file(tmp_path / "out" / "model.safetensors")) is not tied
    for name, p in loaded.named_parameters():
        assert torch.equal(p, weights[name].to(dtype)), name


def test_a_tensor_that_did_not_train_is_copied(tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "base")
    save_file(load_file(base / "model.safetensors") | {"model.buffer": torch.arange(3)}, base / "model.safetensors", metadata={"format": "pt"})
    weights = {n: t.float() for n, t in load_file(base / "model.safetensors").items() if n != "model.buffer"}
    save_file(weights, tmp_path / "weights.safetensors")
    (tmp_path / "out").mkdir()
    write_full(tmp_path / "weights.safetensors", base, tmp_path / "out", "BF16")
    assert load_file(tmp_path / "out" / "model.safetensors")["model.buffer"].tolist() == [0, 1, 2]


def test_a_trained_tensor_without_a_place_is_refused(tiny: Path, tmp_path: Path) -> None:
    save_file({"model.experts": torch.zeros(2, 2)}, tmp_path / "weights.safetensors")
    with pytest.raises(StageError, match=r"model\.experts is \(2, 2\), the base checkpoint has no such tensor"):
        write_full(tmp_path / "weights.safetensors", tiny, tmp_path, "BF16")
