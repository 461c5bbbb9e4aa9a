"""The streamed merge must equal PEFT's own merge in fp32, rounded once to bf16."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.models.tiny import tiny_adapter, tiny_model, write_tiny
from tuner.errors import StageError
from tuner.models.merge import merge_adapter, merged, pairs, rounded
from tuner.models.shards import Checkpoint, Spec
from tuner.models.sidecars import write_config

# PEFT asks transformers by a name that is going away.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@pytest.fixture
def adapter(tiny: Path, tmp_path: Path) -> Path:
    tiny_adapter(tiny).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_equals_peft(tmp_path: Path, dtype: torch.dtype, use_rslora: bool) -> None:
    base = write_tiny(tmp_path / "base", dtype=dtype, tied=False)
    peft = tiny_adapter(base, use_rslora=use_rslora)
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
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


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
        for s in (Spec(name="w", dtype="F16", shape=(9,)), Spec(name="bias", dtype="F32", shape=(2,)), Spec(name="n", dtype="I64", shape=(1,)))
    }
    assert {name: spec.dtype for name, spec in rounded(specs, "BF16").items()} == {"w": "BF16", "bias": "F32", "n": "I64"}


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


def test_an_adapter_of_another_model_is_refused(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    names = {half: f"base_model.model.model.layers.7.q.lora_{half}.weight" for half in "AB"}
    edit(adapter, **{names["A"]: torch.zeros(2, 64), names["B"]: torch.zeros(64, 2)})
    with pytest.raises(StageError, match=r"layers\.7\.q\.weight, and the base has no such tensor"):
        merge_adapter(tiny, adapter, tmp_path)


def test_another_shape_is_refused(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    edit(adapter, **{"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": torch.zeros(4, 65)})
    with pytest.raises(StageError, match=r"is \(160, 65\), the base has BF16 \(160, 64\)"):
        merge_adapter(tiny, adapter, tmp_path)


@pytest.mark.parametrize("odd", [{"use_dora": True}, {"alpha_pattern": {"q_proj": 3}}, {"bias": "all"}])
def test_more_than_plain_lora_is_refused(odd: dict[str, object]) -> None:
    with pytest.raises(StageError, match=next(iter(odd))):
        pairs({"lora_alpha": 8} | odd, {})


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.floats(0.01, 4.0))
def test_the_product(outputs: int, inputs: int, rank: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(outputs * 100 + inputs * 10 + rank)
    w, a, b = (torch.randn(shape, generator=generator) for shape in ((outputs, inputs), (rank, inputs), (outputs, rank)))
    expected = w.double() + scale * b.double() @ a.double()
    torch.testing.assert_close(merged(w, a, b, scale).double(), expected, rtol=1e-5, atol=1e-5)


def test_the_settings_are_pefts(adapter: Path) -> None:
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    found = pairs(settings, Checkpoint([adapter / "adapter_model.safetensors"]).specs)
    assert len(found) == 14
    assert all(pair.scale == 1.5 for pair in found.values())
    assert set(found) < set(tiny_model().state_dict())
