from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.models.tiny import tiny_adapter, write_tiny
from tuner.errors import ConfigError, DataError, StageError
from tuner.gpus import Trouble
from tuner.models import load
from tuner.models.merge import merge_adapter
from tuner.models.sidecars import write_config


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny-llama")
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=6400, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def test_dtype_and_rounding(tiny: Path) -> None:
    exact = load.load_model(tiny, dtype=torch.float32, device="cpu")
    half = load.load_model(tiny, dtype=torch.bfloat16, device="cpu")
    rounded = load.load_model(tiny, dtype=torch.float32, device="cpu", rounded=torch.bfloat16)
    for a, b, c in zip(exact.parameters(), half.parameters(), rounded.parameters(), strict=True):
        assert (a.dtype, b.dtype, c.dtype) == (torch.float32, torch.bfloat16, torch.float32)
        assert torch.equal(c, a.bfloat16().float())
        assert torch.equal(c, b.float())
    assert exact.config._attn_implementation == "tuner"
    assert not exact.config.use_cache
    assert not exact.training


def test_sdpa_generates(tiny: Path) -> None:
    model = load.load_model(tiny, dtype=torch.float32, device="cpu", attention="sdpa")
    assert model.config.use_cache
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=2, do_sample=False, pad_token_id=0).shape == (1, 4)


def test_no_model_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't be loaded"):
        load.load_model(tmp_path, dtype=torch.float32, device="cpu")


def test_code_beside_the_weights_never_runs(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}', encoding="utf-8"
    )
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    with pytest.raises(DataError, match="can't be loaded"):
        load.load_model(tmp_path, dtype=torch.float32, device="cpu")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32, torch.float16])
def test_base_and_adapter_are_the_merged_model_bit_for_bit(tmp_path: Path, stored: torch.dtype, tied: bool) -> None:
    base = write_tiny(tmp_path / "base", dtype=stored, tied=tied)
    tiny_adapter(base).save_pretrained(tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged", limit=400_000)
    write_config(base, tmp_path / "merged", "bfloat16")
    for dtype in (torch.bfloat16, torch.float32):
        tuned = load.load_tuned(base, tmp_path / "adapter", dtype=dtype, device="cpu")
        written = load.load_model(tmp_path / "merged", dtype=dtype, device="cpu")
        assert type(tuned) is type(written)
        assert tuned.config._attn_implementation == written.config._attn_implementation
        assert (tuned.lm_head.weight.data_ptr() == tuned.model.embed_tokens.weight.data_ptr()) == tied
        ours, theirs = tuned.state_dict(), written.state_dict()
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert ours[name].dtype == tensor.dtype == dtype, name
            assert torch.equal(ours[name], tensor), name


def test_without_an_adapter_it_is_the_model_as_it_lies_there(tmp_path: Path) -> None:
    base = write_tiny(tmp_path, dtype=torch.float32)
    tuned, plain = (load.load_tuned(base, None, dtype=torch.float32, device="cpu"), load.load_model(base, dtype=torch.float32, device="cpu"))
    assert all(torch.equal(a, b) for a, b in zip(tuned.parameters(), plain.parameters(), strict=True))


def test_an_adapter_of_another_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    other = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)
    LlamaForCausalLM(other).save_pretrained(tmp_path / "deeper")
    tiny_adapter(tmp_path / "deeper").save_pretrained(tmp_path / "adapter")
    with pytest.raises(StageError, match=r"layers\.2\..*, and the base has no such tensor"):
        load.load_tuned(tiny, tmp_path / "adapter", dtype=torch.float32, device="cpu")


def test_lora(tiny: Path) -> None:
    base = load.load_model(tiny, dtype=torch.bfloat16, device="cpu")
    model = load.add_lora(base, r=4, alpha=8.0, dropout=0.0, targets="all-linear", seed=3)
    trains = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert load.trainable(model) == sum(p.numel() for p in trains.values())
    assert len(trains) == 2 * 7 * 2
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in trains.items())
    assert not any("lm_head" in name for name in trains)
    again = load.add_lora(load.load_model(tiny, dtype=torch.float32, device="cpu"), r=4, alpha=8.0, dropout=0.0, targets="all-linear", seed=3)
    assert all(torch.equal(p, dict(again.named_parameters())[name].bfloat16().float()) for name, p in trains.items())
    assert load.adapter_config(model) == load.adapter_config(again)
    assert load.adapter_config(model)["lora_alpha"] == 8


def test_targets(tiny: Path) -> None:
    model = load.add_lora(load.load_model(tiny, dtype=torch.float32, device="cpu"), r=2, alpha=2, dropout=0.0, targets="q_proj", seed=0)
    assert load.adapter_config(model)["target_modules"] == ["q_proj"]
    with pytest.raises(ConfigError, match=r"algo\.targets=.*nope.*linear layers are down_proj, gate_proj, k_proj, lm_head"):
        load.add_lora(load.load_model(tiny, dtype=torch.float32, device="cpu"), r=2, alpha=2, dropout=0.0, targets=("nope",), seed=0)


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("flags\t\t: fpu avx512_bf16\n", True),
        ("flags : amx_bf16\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("", False),
    ],
)
def test_bf16_only_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch, text: str, has: bool) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _, **__: text)
    assert load.compute_dtype("bf16", "cpu") == (torch.bfloat16 if has else torch.float32)
    assert load.compute_dtype("bf16", "cuda") == torch.bfloat16
    assert load.compute_dtype("fp32", "cpu") == torch.float32


def test_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(load, "trouble", lambda *_: None)
    assert load.resolve_device("auto").type == "cpu"
    with pytest.raises(ConfigError, match=r"machine\.device=cuda needs an NVIDIA GPU"):
        load.resolve_device("cuda")
    monkeypatch.setattr(load, "trouble", lambda *_: Trouble("the driver is too old", "update it"))
    assert load.resolve_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match=r"machine\.device=auto finds a GPU that can't be used\. the driver is too old: update it"):
        load.resolve_device("auto")
