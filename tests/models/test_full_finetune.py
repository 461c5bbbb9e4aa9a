"""A part of a model trains, the rest lies in half the memory and is in the checkpoint as it was."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.models.lora.test_merge import mixture, seer
from tuner.errors import ConfigError
from tuner.models.checkpoint.config_files import write_config
from tuner.models.checkpoint.safetensors import Checkpoint
from tuner.models.export import write_full
from tuner.models.full_finetune import choose_trainable, hold_frozen, load_trainable
from tuner.models.load import load_model

CPU = torch.device("cpu")
IDS = torch.arange(5, 25)[None]


def qwen(*, tied: bool = False) -> PreTrainedModel:
    """It has norms of queries and keys inside its layers."""
    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            tie_word_embeddings=tied,
            initializer_range=0.2,
        )
    )


def written(directory: Path, *, tied: bool = False) -> Path:
    qwen(tied=tied).to(torch.bfloat16).save_pretrained(directory)
    return directory


def names(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_all_train_where_nothing_is_excluded() -> None:
    model = qwen()
    choose_trainable(model)
    assert names(model) == set(dict(model.named_parameters()))


@pytest.mark.parametrize("tied", [False, True])
def test_the_last_layers_train_and_what_comes_after_them(tied: bool) -> None:
    model = qwen(tied=tied)
    choose_trainable(model, last_layers=1)
    found = names(model)
    assert found == {
        n
        for n, _ in model.named_parameters()
        if n.startswith(("model.layers.2.", "model.norm.")) or (n.startswith("lm_head") and not tied)
    }
    assert ("lm_head.weight" in found) is not tied
    choose_trainable(model, last_layers=3, freeze=["norms", "head"])
    assert names(model) == {n for n, _ in model.named_parameters() if ".layers." in n and "norm" not in n}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("part", ["embeddings", "norms", "head"])
def test_what_is_frozen_is_what_it_is_called(part: str, tied: bool) -> None:
    model = qwen(tied=tied)
    choose_trainable(model, freeze=[part])
    table = {"model.embed_tokens.weight"} if tied or part == "embeddings" else {"lm_head.weight"}
    frozen = {n for n, _ in model.named_parameters() if "norm" in n} if part == "norms" else table
    assert set(dict(model.named_parameters())) - names(model) == frozen
    assert frozen


def test_other_families() -> None:
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=32))
    choose_trainable(gpt, last_layers=1)
    assert {name.split(".h.")[0].split(".ln_f")[0] for name in names(gpt)} == {"transformer"}
    assert {name.split(".")[2] for name in names(gpt) if ".h." in name} == {"1"}
    assert any("ln_f" in name for name in names(gpt))
    sees = seer()
    choose_trainable(sees, last_layers=1)
    assert not any("vision" in name or "projector" in name for name in names(sees))
    assert any("layers.1." in name for name in names(sees))
    experts = mixture()
    choose_trainable(experts, last_layers=1)
    assert any("experts" in name for name in names(experts))
    assert not any("layers.0." in name for name in names(experts))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"last_layers": 4}, r"algo\.last_layers=4, but this model has 3 layers"),
        ({"last_layers": 0, "freeze": ["head", "norms"]}, r"algo\.freeze=\['head', 'norms'\] leaves nothing"),
    ],
)
def test_what_can_not_be(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        choose_trainable(qwen(), **settings)


@pytest.mark.parametrize("tied", [False, True])
def test_frozen_weights_take_half_the_memory_and_the_numbers_stay(tmp_path: Path, tied: bool) -> None:
    base = written(tmp_path, tied=tied)
    whole = load_model(base, dtype=torch.float32, device="cpu")
    part = load_trainable(base, device=CPU, compute=torch.bfloat16, rounded=torch.bfloat16, last_layers=1)
    for name, parameter in part.named_parameters():
        assert parameter.dtype == (
            torch.float32 if parameter.requires_grad or "norm" in name else torch.bfloat16
        ), name
    losses, grads = [], []
    for model in (whole, part):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model.train()(input_ids=IDS, position_ids=torch.arange(20)[None]).logits
        loss = torch.nn.functional.cross_entropy(logits[0, :-1].float(), IDS[0, 1:])
        loss.backward()
        losses.append(loss.item())
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert losses[0] == losses[1]
    for name in names(part):
        assert torch.equal(grads[0][name], grads[1][name]), name
    assert all(grads[1][name] is None for name in grads[1].keys() - names(part))


def test_where_products_are_in_fp32_only_values_are_rounded() -> None:
    model = qwen()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    choose_trainable(model, last_layers=1)
    hold_frozen(model, torch.float32, torch.bfloat16)
    for name, parameter in model.named_parameters():
        as_it_was = parameter.requires_grad or "norm" in name
        assert torch.equal(parameter, before[name] if as_it_was else before[name].bfloat16().float()), name


@pytest.mark.parametrize("tied", [False, True])
def test_the_checkpoint_is_whole(tmp_path: Path, tied: bool) -> None:
    base, out = written(tmp_path / "base", tied=tied), tmp_path / "out"
    out.mkdir()
    model = load_trainable(
        base, device=CPU, compute=torch.bfloat16, rounded=torch.bfloat16, last_layers=1, freeze=["norms"]
    )
    trained = {
        name: parameter.detach() + 0.01
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    save_file(trained, tmp_path / "weights.safetensors")
    write_full(Checkpoint([tmp_path / "weights.safetensors"]), base, out, "BF16")
    write_config(base, out, "bfloat16")
    loaded, said = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(said.values())
    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, trained[name].bfloat16() if name in trained else before[name]), name
    assert loaded.dtype == torch.bfloat16
