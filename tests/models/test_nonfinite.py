"""What is not finite is traced to the tensor, the weight or the layer that it comes from."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.tiny import tiny_model, write_tiny
from tuner.errors import DataError
from tuner.models.checkpoint.files import weight_files
from tuner.models.load import load_model
from tuner.models.lora.add import add_lora
from tuner.models.nonfinite import count_nonfinite, explain_nonfinite, in_files, in_layers, in_weights

IDS = torch.tensor([[5, 60, 9, 31]])
UP = "model.layers.1.mlp.up_proj.weight"


def spoilt(directory: Path, name: str, value: float) -> Path:
    """A model with such a value in one of its tensors."""
    base = write_tiny(directory, dtype=torch.float32)
    tensors = load_file(base / "model.safetensors")
    tensors[name][3, 4] = value
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    return base


@pytest.mark.parametrize(
    ("value", "word"), [(float("nan"), "nan"), (float("inf"), "inf"), (float("-inf"), "inf")]
)
def test_a_tensor_of_the_checkpoint_is_named_with_its_file(tmp_path: Path, value: float, word: str) -> None:
    base = spoilt(tmp_path / "base", UP, value)
    model = load_model(base, dtype=torch.float32, device="cpu", attention="sdpa")
    said = explain_nonfinite(model, weight_files(base), lambda: model(IDS))
    assert said.startswith(
        f"The base's weights hold it: {UP} in model.safetensors has 1 value of 10,240 that is not finite "
        f"({word})."
    )
    assert "not a matter of the rows or of attention" in said


def test_of_several_files_the_one_that_holds_it(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path, max_shard_size="500KB")
    (file,) = [path for path in weight_files(tmp_path) if UP in load_file(path)]
    tensors = load_file(file)
    tensors[UP][:] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    assert (
        in_files(weight_files(tmp_path))
        == f"{UP} in {file.name} has 10,240 values of 10,240 that are not finite (nan)"
    )


def test_a_weight_that_trains_and_went_astray() -> None:
    model = tiny_model()
    assert in_weights(model) is None
    model.model.layers[0].self_attn.q_proj.weight.data[0, 0] = float("inf")
    assert explain_nonfinite(model, [], lambda: model(IDS)).startswith(
        "It comes from model.layers.0.self_attn.q_proj.weight"
    )
    model.requires_grad_(False)
    assert in_weights(model) is None


def test_finite_weights_that_overflow_name_the_layer() -> None:
    model = tiny_model().requires_grad_(False)
    model.model.layers[1].mlp.down_proj.weight.data *= 1e38
    said = explain_nonfinite(model, [], lambda: model(IDS))
    assert (
        "the first output that is not is that of model.layers.1.mlp.down_proj (Linear), into which go values "
        "up to" in said
    )
    assert "attention" not in said


def test_what_comes_out_of_no_module_is_told_by_the_one_that_gets_it() -> None:
    model = tiny_model().requires_grad_(False)
    model.model.layers[0].mlp.gate_proj.weight.data *= 1e30
    model.model.layers[0].mlp.up_proj.weight.data *= 1e30  # their product is computed between two modules
    assert in_layers(model, lambda: model(IDS)) == "what model.layers.0.mlp.down_proj (Linear) is given"


def test_where_all_is_finite_nothing_is_said() -> None:
    model = tiny_model()
    assert explain_nonfinite(model, [], lambda: model(IDS)) == ""
    assert count_nonfinite(torch.tensor([1, 2])) is None


def test_processes_share_what_one_of_them_found() -> None:
    asked: list[str | None] = []

    def share(found: str | None) -> list[str | None]:
        asked.append(found)
        return ["the tensor w in a file has 1 value", found]

    model = tiny_model()
    assert "the tensor w in a file" in explain_nonfinite(
        model, [Path("/nowhere")], lambda: model(IDS), first=False, share=share
    )
    assert asked == [None]  # and nobody computes where one has read it


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("init", ["pissa", "olora", "pissa_niter_2"])
def test_inits_that_take_the_base_apart_name_it_too(tmp_path: Path, init: str) -> None:
    base = spoilt(tmp_path / "base", UP, float("nan"))
    model = load_model(base, dtype=torch.float32, device="cpu")
    with pytest.raises(
        DataError,
        match=r"model\.layers\.1\.mlp\.up_proj\.weight has 1 value of 10,240 that is not finite \(nan\)",
    ):
        add_lora(model, r=4, alpha=8, dropout=0.0, targets=("up_proj",), seed=0, init=init)
