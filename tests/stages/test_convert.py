"""convert leaves directories that PEFT, transformers and serving engines read, the same to the byte."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.models.tiny import write_tiny
from tests.stages.support import config, run, trained_full, trained_lora
from tuner.errors import DataError, StageError
from tuner.stages.convert import STAGE

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("base"))


def test_lora_becomes_an_adapter_directory(base: Path, tmp_path: Path) -> None:
    train = trained_lora(base, tmp_path / "train")
    facts = run(STAGE, config(), tmp_path / "a", train=train, fetch_model=base)
    run(STAGE, config(), tmp_path / "b", train=train, fetch_model=base)
    names = {
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert {path.name for path in (tmp_path / "a").iterdir()} == names
    for name in names:
        content = (tmp_path / "a" / name).read_bytes()
        assert content == (tmp_path / "b" / name).read_bytes()
        assert str(tmp_path).encode() not in content
    assert facts["step"] == 3
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"] == "org/tiny"
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "a")


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_full_becomes_a_model_directory(base: Path, tmp_path: Path, precision: str, dtype: torch.dtype) -> None:
    train = trained_full(base, tmp_path / "train")
    run(STAGE, config(adapter="none", precision=precision), tmp_path / "out", train=train, fetch_model=base)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.dtype == dtype
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in model.generation_config.eos_token_id
    assert tokenizer.chat_template == (tmp_path / "out" / "chat_template.jinja").read_text(encoding="utf-8")


def test_a_damaged_training_is_refused(base: Path, tmp_path: Path) -> None:
    train = trained_lora(base, tmp_path / "train")
    weights = train / "steps" / "step-000003" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(StageError, match="files of the step to convert are damaged"):
        run(STAGE, config(), tmp_path / "out", train=train, fetch_model=base)


def test_a_template_of_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    train = trained_lora(base, tmp_path / "train")
    plain = config()
    chat = replace(plain.model.chat, special=("<|start|>", "<|stop|>"), end="<|stop|>", assistant="<|start|>{text}<|stop|>")
    with pytest.raises(DataError, match=r"<\|start\|>"):
        run(STAGE, replace(plain, model=replace(plain.model, chat=chat)), tmp_path / "out", train=train, fetch_model=base)
