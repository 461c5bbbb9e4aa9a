"""A directory is read as a hub's set of the same files would be, and never trains on what its names say is
for measuring.
"""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.data.files import data_paths
from tuner.data.files.directory import held_out_files, training_files
from tuner.data.files.row_files import is_readable
from tuner.data.files.splits import choose_files, split_of
from tuner.errors import DataError

CARD = (
    "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/a-*\n  - split: "
    "test\n    path: data/b-*\n---\n"
)


def made(folder: Path, *names: str, card: str = "") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(card if name == "README.md" else "{}\n")
    return folder


@pytest.mark.parametrize(
    ("names", "taken", "left"),
    [
        (
            ["train.jsonl", "validation.jsonl", "test.jsonl"],
            ["train.jsonl"],
            {"test.jsonl": "test", "validation.jsonl": "validation"},
        ),
        (
            ["dev.json", "train.json", "README.md"],
            ["train.json"],
            {"dev.json": "validation", "README.md": ""},
        ),
        (["chats.jsonl", "chats_test.jsonl"], ["chats.jsonl"], {"chats_test.jsonl": "test"}),
        (
            ["a.jsonl", "held_out.jsonl", "b.jsonl.gz"],
            ["a.jsonl", "b.jsonl.gz"],
            {"held_out.jsonl": "validation"},
        ),
        (
            ["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"],
            ["data/train-00000-of-00001.parquet"],
            {"data/test-00000-of-00001.parquet": "test"},
        ),
        (
            ["en/train.csv", "zh/train.csv", "zh/eval.csv"],
            ["en/train.csv", "zh/train.csv"],
            {"zh/eval.csv": "test"},
        ),
        (["Train/0.json", "Valid/0.json"], ["Train/0.json"], {"Valid/0.json": "validation"}),
        (
            ["a.jsonl", "b.jsonl", "a.csv", "notes.txt"],
            ["a.jsonl", "b.jsonl"],
            {"a.csv": "", "notes.txt": ""},
        ),
        (
            [".hidden.jsonl", ".git/train.jsonl", "__pycache__/x.json", "x.jsonl", "config.json"],
            ["x.jsonl"],
            {"config.json": ""},
        ),
        (["one.txt", "two.txt", "LICENSE.txt"], ["one.txt", "two.txt"], {"LICENSE.txt": ""}),
    ],
)
def test_the_training_rows_are_taken_and_the_rest_is_named(
    tmp_path: Path, names: list[str], taken: list[str], left: dict[str, str]
) -> None:
    found = training_files(made(tmp_path, *names))
    assert (list(found.files), found.left) == (taken, left)
    assert list(data_paths.locate([str(tmp_path)]).values()) == [tmp_path / name for name in taken]


def test_the_card_says_which_files_are_for_training(tmp_path: Path) -> None:
    found = training_files(made(tmp_path, "data/a-0.jsonl", "data/b-0.jsonl", "README.md", card=CARD))
    assert found.files == ("data/a-0.jsonl",)
    assert found.describe(False) == f"{tmp_path}: took data/a-0.jsonl; left data/b-0.jsonl, README.md"


def test_what_is_left_is_said_with_how_to_measure_on_it(tmp_path: Path) -> None:
    made(tmp_path / "ds", "train.jsonl", "test.jsonl", "validation.jsonl", "README.md")
    said = (
        f"{tmp_path}/ds: took train.jsonl; left test.jsonl (test), validation.jsonl (validation), README.md"
    )
    assert data_paths.describe_files([str(tmp_path / "ds")]) == [
        f"{said}. To measure on that file: data.held_out_path={tmp_path}/ds/validation.jsonl"
    ]
    assert data_paths.describe_files([str(tmp_path / "ds")], held_out=True) == [said]
    assert list(data_paths.locate([str(tmp_path / "ds/validation.jsonl")], apart=True)) == [
        "validation.jsonl"
    ]
    made(tmp_path / "parts", "train-0.jsonl", "test-0.jsonl", "test-1.jsonl")
    (line,) = data_paths.describe_files([str(tmp_path / "parts")])
    assert line.endswith(f"To measure on those files: data.held_out_path={tmp_path}/parts")
    assert [file.name for file in data_paths.locate([str(tmp_path / "parts")], apart=True).values()] == [
        "test-0.jsonl",
        "test-1.jsonl",
    ]
    (line,) = data_paths.describe_files([f"{tmp_path}/ds/t*.jsonl"])
    assert line.startswith(f"{tmp_path}/ds/t*.jsonl also matches test.jsonl")
    assert data_paths.describe_files([f"{tmp_path}/ds/train.jsonl", f"{tmp_path}/ds/test.jsonl"]) == []


def test_a_pattern_that_matches_a_directory_and_its_files_takes_each_once(tmp_path: Path) -> None:
    made(tmp_path / "ds", "a/train.jsonl", "b.jsonl")
    assert [file.name for file in data_paths.locate([f"{tmp_path}/ds/**"]).values()] == [
        "train.jsonl",
        "b.jsonl",
    ]
    assert [file.name for file in data_paths.locate([f"{tmp_path}/ds/a*"]).values()] == ["train.jsonl"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["test.jsonl"],
            r"no training split; it holds test\.jsonl\. Say which files: data\.path='.*/test\.jsonl'",
        ),
        (["test.jsonl", "dev.jsonl"], "no training split; it holds dev.jsonl, test.jsonl"),
        (["test/a.jsonl", "val/a.jsonl"], "no training split"),
        (
            ["a.jsonl", "a.parquet"],
            r"several kinds, a\.jsonl, a\.parquet, .*Say which: data\.path='.*/a\.jsonl'",
        ),
        (
            ["a.md", "b.md", "c.rst", "README.md"],
            (
                r"without files of rows .*It holds README\.md, a\.md, b\.md, c\.rst\. Texts"
                r" .*data\.path='.*/\*\.md'"
            ),
        ),
        (["model.safetensors", "config.json"], r"It is a model directory: model=local model\.path=/"),
        ([".a.jsonl"], "It is empty"),
        (["load.py", "README.md"], r"It holds README\.md, load\.py\.$"),
    ],
)
def test_a_directory_without_training_rows_is_refused_with_what_there_is(
    tmp_path: Path, names: list[str], words: str
) -> None:
    made(tmp_path, *names)
    with pytest.raises(DataError, match=words):
        training_files(tmp_path)
    with pytest.raises(DataError, match=words):
        data_paths.describe_files([str(tmp_path)])


def test_the_card_of_a_test_set_is_no_training_split(tmp_path: Path) -> None:
    card = "---\nconfigs:\n- config_name: x\n  data_files:\n  - split: test\n    path: a.jsonl\n---\n"
    made(tmp_path, "a.jsonl", "README.md", card=card)
    with pytest.raises(
        DataError, match=r"no split `train`: its card names test\. Say which files: data\.path='.*/a\.jsonl'"
    ):
        training_files(tmp_path)
    assert choose_files(["a.jsonl", "README.md"], None, card, "org/name") == ["a.jsonl"]


def test_what_is_held_out_is_the_validation_split_or_else_the_test_split(tmp_path: Path) -> None:
    assert held_out_files(made(tmp_path / "a", "train.jsonl", "test.jsonl", "val.jsonl")).files == (
        "val.jsonl",
    )
    assert held_out_files(made(tmp_path / "b", "train.jsonl", "test.jsonl")).files == ("test.jsonl",)
    assert held_out_files(made(tmp_path / "c", "x.jsonl", "train.jsonl")).files == ("x.jsonl",)
    with pytest.raises(
        DataError, match=r"data\.held_out_path: .* holds train\.jsonl, and nothing to measure on"
    ):
        held_out_files(made(tmp_path / "d", "train.jsonl"))


NAMES = st.lists(
    st.from_regex(
        r"\A((train|test|dev|data|a)/)?(train|test|valid|b|c-0|holdout)\.(jsonl|csv|py|txt|md|parquet)\Z"
    ),
    min_size=1,
    max_size=8,
    unique=True,
)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(NAMES)
def test_nothing_is_trained_on_that_is_for_measuring_and_nothing_goes_unnamed(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    folder = made(tmp_path_factory.mktemp("any"), *names)
    try:
        found = training_files(folder)
    except DataError:
        return
    assert found.files
    assert all(is_readable(name) and split_of(name) in (None, "train") for name in found.files)
    assert {*found.files, *found.left} == set(names)
