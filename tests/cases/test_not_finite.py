"""A base that computes what is not finite: the tensor is named, and nothing else is blamed."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.conftest import Tuner

UP = "model.layers.1.mlp.up_proj.weight"


def spoilt(model: Path, out: Path, value: float) -> Path:
    shutil.copytree(model, out)
    tensors = load_file(out / "model.safetensors")
    tensors[UP][3, 4] = value
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


@pytest.mark.parametrize(
    ("value", "more"),
    [
        (float("nan"), ()),
        (float("inf"), ("machine.preflight=false",)),
        (float("nan"), ("algo.lora_init=pissa",)),
    ],
    ids=str,
)
def test_nan_weights(
    tuner: Tuner, tiny: list[str], tiny_model: Path, tmp_path: Path, value: float, more: tuple[str, ...]
) -> None:
    words = [word for word in tiny if not word.startswith("model.path")]
    done = tuner(*words, f"model.path={spoilt(tiny_model, tmp_path / 'spoilt', value)}", *more, code=None)
    assert done.code in (1, 2)
    said = " ".join((done.out + done.err).split())
    assert f"{UP}" in said
    assert f"has 1 value of 8,192 that is not finite ({value})" in said
    assert "machine.attention" not in said
    assert "documents of a pack see each other" not in said
    assert "Traceback" not in said


def test_a_scale_beyond_floats_is_refused_before_anything_runs(tuner: Tuner, tiny: list[str]) -> None:
    done = tuner(*tiny, "algo.alpha=1e308", code=2)
    assert "algo.alpha is 1e+308, but training uses 32-bit floats, and the largest is 3.4e+38" in " ".join(
        done.err.split()
    )
