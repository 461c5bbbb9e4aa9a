"""merge leaves one directory that plain transformers loads, with everything needed to talk to it."""

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.models.tiny import tiny_adapter, write_tiny
from tests.stages.support import config, run, trained_full, trained_lora
from tuner.stages import convert
from tuner.stages.merge import STAGE

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("base"))


def converted(base: Path, tmp_path: Path, adapter: str) -> Path:
    train = (trained_lora if adapter == "lora" else trained_full)(base, tmp_path / "train")
    run(convert.STAGE, config(adapter=adapter), tmp_path / "convert", train=train, fetch_model=base)
    return tmp_path / "convert"


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_an_adapter_is_merged_as_peft_merges_it_in_the_dtype_that_trained(
    base: Path, tmp_path: Path, precision: str, dtype: torch.dtype
) -> None:
    adapter = converted(base, tmp_path, "lora")
    facts = run(STAGE, config(precision=precision), tmp_path / "out", fetch_model=base, convert=adapter)
    model, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values())
    expected = tiny_adapter(base).merge_and_unload().to(dtype).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.dtype == dtype
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in model.generation_config.eos_token_id
    assert "<|im_start|>assistant" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert facts["bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert not list((tmp_path / "out").glob("adapter*"))


def test_full_weights_are_linked(base: Path, tmp_path: Path) -> None:
    full = converted(base, tmp_path, "none")
    facts = run(STAGE, config(adapter="none"), tmp_path / "out", fetch_model=base, convert=full)
    assert facts["linked"]
    for path in full.iterdir():
        assert (tmp_path / "out" / path.name).samefile(path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.float32


def test_where_links_fail_files_are_copied(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    full = converted(base, tmp_path, "none")
    monkeypatch.setattr(os, "link", refuse)
    facts = run(STAGE, config(adapter="none"), tmp_path / "out", fetch_model=base, convert=full)
    assert not facts["linked"]
    for path in full.iterdir():
        copy = tmp_path / "out" / path.name
        assert copy.read_bytes() == path.read_bytes()
        assert not copy.samefile(path)
