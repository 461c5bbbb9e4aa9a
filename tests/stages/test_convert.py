"""convert leaves directories that PEFT, transformers and serving engines read, the same to the byte."""

import json
import shutil
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
from tuner.train.checkpoints import save as checkpoint
from tuner.train.checkpoints import sharded, steps
from tuner.train.engine import State

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
    assert (
        json.loads((tmp_path / "a" / "adapter_config.json").read_text(encoding="utf-8"))[
            "base_model_name_or_path"
        ]
        == "org/tiny"
    )
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "a")


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_full_becomes_a_model_directory(
    base: Path, tmp_path: Path, precision: str, dtype: torch.dtype
) -> None:
    train = trained_full(base, tmp_path / "train")
    run(STAGE, config(adapter="none", precision=precision), tmp_path / "out", train=train, fetch_model=base)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.dtype == dtype
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in model.generation_config.eos_token_id
    assert tokenizer.chat_template == (tmp_path / "out" / "chat_template.jinja").read_text(encoding="utf-8")


def resaved(train: Path, out: Path, of: int, drop: tuple[str, ...] = ()) -> Path:
    """The same training, as so many processes leave it: each with an equal part of every tensor, cut
    without regard to its rows.
    """
    (found,) = steps.saved_steps(train)
    weights = {name: tensor for name, tensor in sharded.open_step(found).weights.items() if name not in drop}
    savers = [checkpoint.Saver(out, rank=rank, of=of, timeout=20) for rank in range(of)]
    for rank, saver in enumerate(savers):
        own = {}
        for name, tensor in weights.items():
            begin, end = rank * tensor.numel() // of, (rank + 1) * tensor.numel() // of
            own[f"{name}@{begin}"] = tensor.flatten()[begin:end]
        state = State(
            weights=own, optimizer={}, shapes={name: tuple(tensor.shape) for name, tensor in weights.items()}
        )
        saver.save(state, step=found.step, tokens=found.tokens, scores=found.scores, optimizer=False)
    for saver in savers:
        saver.wait()
    for name in steps.SETTINGS:
        if (train / name).exists():
            shutil.copyfile(train / name, out / name)
    return out


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_what_several_processes_saved_becomes_the_same_files(
    base: Path, tmp_path: Path, adapter: str
) -> None:
    train = (trained_lora if adapter == "lora" else trained_full)(base, tmp_path / "train")
    settings = config(adapter=adapter, precision="fp32" if adapter == "lora" else "bf16")
    run(STAGE, settings, tmp_path / "one", train=train, fetch_model=base)
    run(STAGE, settings, tmp_path / "three", train=resaved(train, tmp_path / "parts", 3), fetch_model=base)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_what_did_not_train_is_the_base(base: Path, tmp_path: Path) -> None:
    train = trained_full(base, tmp_path / "train")
    frozen = "model.layers.0.mlp.up_proj.weight"
    parts = resaved(train, tmp_path / "parts", 2, drop=(frozen,))
    run(STAGE, config(adapter="none", precision="fp32"), tmp_path / "out", train=parts, fetch_model=base)
    model, plain = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (tmp_path / "out", base)
    )
    same = {
        name for name, weight in model.state_dict().items() if torch.equal(weight, plain.state_dict()[name])
    }
    assert same == {frozen}


def test_an_adapter_that_began_as_a_part_of_its_base_is_written_for_the_plain_base(
    base: Path, tmp_path: Path
) -> None:
    train = trained_lora(base, tmp_path / "train")
    (found,) = steps.saved_steps(train)
    shutil.copyfile(found.dir / "weights.safetensors", train / steps.INITIAL)  # nothing was learned
    run(STAGE, config(), tmp_path / "out", train=resaved(train, tmp_path / "parts", 2), fetch_model=base)
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "out"
    )
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text(encoding="utf-8"))
    assert written["r"] == 2 * json.loads((train / steps.ADAPTER).read_text(encoding="utf-8"))["r"]
    ids_1N = torch.arange(20, 40)[None]
    with torch.no_grad(), adapted.disable_adapter():
        expected = adapted(ids_1N).logits
    with torch.no_grad():
        assert torch.allclose(adapted(ids_1N).logits, expected, atol=1e-4)


def test_a_damaged_training_is_refused(base: Path, tmp_path: Path) -> None:
    train = trained_lora(base, tmp_path / "train")
    weights = train / "steps" / "step-000003" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(
        StageError, match=r"files of the step to convert are damaged: weights\.safetensors of step 3"
    ):
        run(STAGE, config(), tmp_path / "out", train=train, fetch_model=base)


def test_a_template_of_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    train = trained_lora(base, tmp_path / "train")
    plain = config()
    chat = replace(
        plain.model.chat,
        special=("<|start|>", "<|stop|>"),
        end="<|stop|>",
        assistant="<|start|>{text}<|stop|>",
    )
    with pytest.raises(DataError, match=r"<\|start\|>"):
        run(
            STAGE,
            replace(plain, model=replace(plain.model, chat=chat)),
            tmp_path / "out",
            train=train,
            fetch_model=base,
        )
