"""A directory as data.path, through the front door: the training split, in words."""

from pathlib import Path

from tests.cases.conftest import brought, shared
from tests.conftest import Tuner

pytestmark = shared


def test_a_directory_is_its_training_split_and_the_rest_is_named(
    tuner: Tuner, tiny_model: Path, tmp_path: Path
) -> None:
    brought("directory_hint", tmp_path)
    words = ["model=local", f"model.path={tiny_model}", "machine=cpu", "data=local"]
    for _ in range(2):  # it is said again where nothing is to be fetched
        shown = tuner("preview", "1", *words, "data.path=ds")
        said = (
            f"{tmp_path}/ds: took train.jsonl; left test.jsonl (test), validation.jsonl (validation). To "
            "measure on that file: "
        )
        assert shown.err.count(f"{said}data.held_out_path={tmp_path}/ds/validation.jsonl") == 1
        assert "train.jsonl" in shown.out
        assert "test.jsonl" not in shown.out
    shown = tuner("preview", "1", *words, "data.path=pq")
    assert (
        f"{tmp_path}/pq: took data/train-00000-of-00001.parquet; left data/test-00000-of-00001.parquet "
        "(test), README.md" in shown.err
    )
    proposed = tuner("preview", *words, "data.path=ds", f"data.held_out_path={tmp_path}/ds/validation.jsonl")
    assert "validation.jsonl" in proposed.out
