"""A directory that was named as data or as a model and is not that is described, with words that use it."""

import json
import shlex
from pathlib import Path

import pytest

from tests.conftest import ROWS, Tuner, write_rows
from tuner.data.files.directory import training_files
from tuner.data.files.folder_kind import describe_folder
from tuner.errors import DataError
from tuner.models.checkpoint.files import checkpoint_files


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "It is empty."),
        (["1.jpg", "2.jpg"], "It holds 1.jpg, 2.jpg."),
        ([f"{n}.jpg" for n in range(12)], " and 4 more."),
        (["rows.jsonl"], "It holds rows (rows.jsonl): data=local data.path="),
        (["a/rows.csv", "b/rows.csv"], "It holds rows (a/rows.csv, b/rows.csv): data=local data.path="),
        (["x.gguf"], "It holds a GGUF file, which is a model: model=local model.path="),
        (["x.gguf", "y.gguf"], "It holds 2 GGUF files, each of which is a model: model=local model.path="),
        (["config.json", "model.safetensors"], "It is a model directory: model=local model.path="),
        (["a/config.json", "a/model.safetensors"], "A model lies further inside: model=local model.path="),
        (
            [f"checkpoint-{n}/{name}" for n in (100, 200) for name in ("config.json", "model.safetensors")],
            "2 models lie further inside: model=local model.path=",
        ),
        (["blobs/x", "snapshots/abc/config.json", "snapshots/abc/model.safetensors"], "A model lies further"),
        (["model_index.json", "unet/x.safetensors"], "It is a pipeline of diffusers"),
        (["adapter_config.json", "adapter_model.safetensors"], "It is a PEFT adapter, not a whole model"),
        (["runs/a/config.yaml", "store/x"], "It is where tuner keeps its runs: python -m tuner status root="),
        (["model.onnx"], "It holds model.onnx."),
    ],
)
def test_it_says_what_is_there(names: list[str], said: str, tmp_path: Path) -> None:
    folder = put(tmp_path / "it", *names)
    folder.mkdir(exist_ok=True)
    assert said in describe_folder(folder)


def test_an_adapter_names_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    assert "merge it into its base, org/base, first" in describe_folder(tmp_path)


@pytest.mark.parametrize("name", ["it", "two words", "客服"])
def test_what_is_proposed_is_taken(name: str, tmp_path: Path) -> None:
    """A model's directory as data, and the other way round; one inside another."""
    model = put(
        tmp_path / name, "config.json", "model.safetensors", "tokenizer.json", "generation_config.json"
    )
    with pytest.raises(DataError, match="is a directory without files of rows") as refused:
        training_files(model)
    assert shlex.split(str(refused.value))[-1] == f"model.path={model}"
    assert "config.json" in checkpoint_files(model)
    data = put(tmp_path / f"{name} data", "train.jsonl")
    with pytest.raises(DataError, match="is no model directory") as other:
        checkpoint_files(data)
    assert shlex.split(str(other.value))[-1] == f"data.path={data}"
    assert training_files(data).files == ("train.jsonl",)
    with pytest.raises(DataError, match="A model lies further inside") as above:
        checkpoint_files(put(tmp_path / "above" / name, "b/config.json", "b/model.safetensors"))
    checkpoint_files(Path(shlex.split(str(above.value))[-1].removeprefix("model.path=")))


def test_rows_beside_a_model_are_read(tmp_path: Path) -> None:
    assert training_files(put(tmp_path, "config.json", "model.safetensors", "a.jsonl")).files == ("a.jsonl",)


def test_a_run_is_what_another_starts_from(
    tuner: Tuner, finished: Path, words: list[str], tmp_path: Path
) -> None:
    (run,) = (finished / "runs").iterdir()
    for part in ("", "convert"):
        refused = tuner("plan", "model=local", f"model.path={run / part}", code=2)
        line = shlex.split(refused.err.partition("another starts: ")[2])
        assert line == ["model=run", f"model.run={run.name}", f"root={finished}"]
        assert tuner("plan", *line, *words[2:]).out.startswith("plan for")
    write_rows(tmp_path / "rows.jsonl", ROWS)
    assert "It is the run" in tuner("plan", "data=local", f"data.path={run}", code=2).err
    assert "where tuner keeps its runs" in tuner("plan", "data=local", f"data.path={finished}", code=2).err
