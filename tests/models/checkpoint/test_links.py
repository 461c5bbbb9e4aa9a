"""Links in a model's directory: what strangers may point at, and what labs do."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import Tuner, linked, tiny_words
from tuner.errors import DataError
from tuner.models.checkpoint.files import SETTINGS, TEXT
from tuner.models.checkpoint.links import COPIED, EXPECTED, links_out, refuse_astray


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "id_rsa"
    path.parent.mkdir()
    path.write_text("-----BEGIN PRIVATE KEY----- geheim\n", encoding="utf-8")
    return path


def test_each_small_file_is_of_one_kind() -> None:
    assert {*COPIED, *EXPECTED} == {*TEXT, *SETTINGS}


@pytest.mark.parametrize("name", [*COPIED, *EXPECTED])
def test_a_link_to_something_else_is_refused(name: str, model: Path, secret: Path) -> None:
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(secret)
    with pytest.raises(DataError, match=f"{name} is a link to {secret}.*model.links=follow"):
        refuse_astray(model)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "config.json"])
def test_json_of_another_kind_is_refused(name: str, model: Path, secret: Path) -> None:
    secret.write_text('{"auths": {"registry": {"auth": "geheim"}}}', encoding="utf-8")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(secret)
    with pytest.raises(DataError, match=f"{name} is a link to"):
        refuse_astray(model)


def test_a_farm_of_links_is_read_and_named(
    tiny_model: Path, tmp_path: Path, tuner: Tuner, data: Path
) -> None:
    farm = tmp_path / "farm"
    farm.mkdir()
    for path in tiny_model.iterdir():
        (farm / path.name).symlink_to(path)
    refuse_astray(farm)
    done = tuner(*tiny_words(farm, data), "until=tokenize")
    assert f"config.json is a link to {tiny_model / 'config.json'}" in done.err
    assert "model.safetensors is" not in done.err


def test_a_snapshot_in_a_hub_s_cache_is_the_hub_s(model: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate([*model.iterdir()]):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert list(links_out(snapshot)) == []


def test_nothing_of_a_stranger_s_target_reaches_a_result(
    model: Path, secret: Path, tuner: Tuner, data: Path, tmp_path: Path
) -> None:
    (model / "vocab.txt").symlink_to(secret)
    words = [*tiny_words(model, data), "until=convert"]
    done = tuner(*words, code=2)
    assert f"vocab.txt is a link to {secret}" in done.err
    assert "Traceback" not in done.err
    assert not [
        path for path in (tmp_path / "outputs").rglob("*") if path.is_file() and "geheim" in _text(path)
    ]
    tuner(*words, "model.links=follow")
    convert = linked(tmp_path / "outputs", "convert")
    assert (convert / "vocab.txt").read_text(encoding="utf-8") == secret.read_text(encoding="utf-8")
    assert json.loads((convert / "adapter_config.json").read_text(encoding="utf-8"))["r"]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
