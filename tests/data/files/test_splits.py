import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.data.files.row_files import is_readable
from tuner.data.files.splits import choose_files, split_of
from tuner.errors import DataError

CARD = "---\nlicense: mit\n{}\n---\n# A data set\n"


def of(*paths: str, patterns: list[str] | None = None, card: str | None = None) -> list[str]:
    return choose_files(paths, patterns, CARD.format(card) if card else None, "org/name")


@pytest.mark.parametrize(
    ("paths", "wanted"),
    [
        (
            [
                "data/train-00001-of-00002.parquet",
                "data/train-00000-of-00002.parquet",
                "data/test-00000-of-00001.parquet",
            ],
            "data/train-",
        ),
        (["train.jsonl", "valid.jsonl", "test.jsonl"], "train.jsonl"),
        (["train/0.json.gz", "train/1.json.gz", "validation/0.json.gz"], "train/"),
        (
            ["openassistant_best_replies_eval.jsonl", "openassistant_best_replies_train.jsonl"],
            "openassistant_best_replies_train",
        ),
        (
            [
                "colors.jsonl",
                "README.md",
                "prepare.py",
                "dataset_infos.json",
                ".gitattributes",
                "LICENSE.txt",
            ],
            "colors",
        ),
        (["1M-GPT4-Augmented.parquet", "3_5M-GPT3_5-Augmented.parquet"], ""),
        (["a.jsonl", "b.jsonl", "words.txt", "b.csv"], ("a.jsonl", "b.jsonl")),
        (["constraint.jsonl", "test.jsonl"], "constraint"),
        (["test/a.jsonl"], "test/"),
        (["main/train/0000.parquet", "main/test/0000.parquet", "socratic/train/0000.parquet"], "main/train/"),
        (["b/train/0000.parquet", "default/partial-train/0000.parquet"], "default/"),
    ],
)
def test_the_training_split_is_told_by_names(paths: list[str], wanted: str | tuple[str, ...]) -> None:
    assert of(*paths) == sorted(path for path in paths if path.startswith(wanted))


@pytest.mark.parametrize(
    ("card", "wanted"),
    [
        (
            (
                "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/a-*\n  - "
                "split: test\n    path: data/c-*"
            ),
            ["data/a-0.parquet", "data/a-1.parquet"],
        ),
        (
            (
                "configs:\n- config_name: x\n  data_files: data/c-*\n- config_name: y\n  default: true\n "
                " data_files: old/*.csv"
            ),
            ["old/train.csv"],
        ),
        (
            (
                "configs:\n- config_name: x\n  data_files:\n    train: [data/c-*, ./data/a-1.parquet]\n   "
                " test: nowhere"
            ),
            ["data/c-0.parquet", "data/a-1.parquet"],
        ),
        ("configs:\n- config_name: x\n  data_dir: old", ["old/train.csv"]),
        ("configs:\n- config_name: x\n  data_dir: data\n  data_files: c-*", ["data/c-0.parquet"]),
        ("configs:\n- config_name: x\n  data_files:\n  - path: '**/c-?.parquet'", ["data/c-0.parquet"]),
        (
            "configs:\n- config_name: x\n  data_files:\n  - split: other\n    path: data",
            ["data/a-0.parquet", "data/a-1.parquet", "data/c-0.parquet"],
        ),
        ("configs:\n- config_name: only_a_name", ["old/train.csv"]),
        ("configs: 3", ["old/train.csv"]),
        ("configs: [[[", ["old/train.csv"]),
    ],
)
def test_the_card_says_which_files_are_for_training(card: str, wanted: list[str]) -> None:
    assert (
        of(
            "data/a-0.parquet",
            "data/a-1.parquet",
            "data/c-0.parquet",
            "old/train.csv",
            "README.md",
            card=card,
        )
        == wanted
    )


def test_patterns_are_taken_in_their_order_and_go_over_directories() -> None:
    paths = ["a/train-0.jsonl", "a/train-1.jsonl", "b/x.jsonl.zst", "b/x.py", "test.csv"]
    assert of(*paths, patterns=["test.csv", "*train*"]) == ["test.csv", "a/train-0.jsonl", "a/train-1.jsonl"]
    assert of(*paths, patterns=["b/", "*.zst"]) == ["b/x.jsonl.zst"]


def test_what_fits_nothing_is_refused_with_what_there_is() -> None:
    with pytest.raises(
        DataError, match=r"'trian\.jsonl' matches no file of org/name\. Did you mean train\.jsonl\?"
    ):
        of("train.jsonl", "x.csv", patterns=["trian.jsonl"])
    with pytest.raises(DataError, match=r"It holds a\.jsonl, b\.bin"):
        of("a.jsonl", "b.bin", patterns=["zzz"])
    with pytest.raises(DataError, match=r"matches data\.pkl, load\.py, which can't be read as rows"):
        of("data.pkl", "load.py", "a.jsonl", patterns=["[dl]*"])
    with pytest.raises(
        DataError, match=r"has no file that can be read as rows .*holds data\.zip, img/0\.png, img/1\.png"
    ):
        of("data.zip", "img/0.png", "img/1.png")
    with pytest.raises(DataError, match="it holds no files at all"):
        of()
    with pytest.raises(DataError, match=r"files of several kinds.*data.files='a\.csv'"):
        of("a.jsonl", "a.csv")
    with pytest.raises(DataError, match=r"no training split; it holds test\.jsonl, valid\.jsonl"):
        of("test.jsonl", "valid.jsonl")
    with pytest.raises(
        DataError, match=r"no split `train`: its card names train_sft, train_gen.*data.files='s-"
    ):
        of(
            "s-0.jsonl",
            "g-0.jsonl",
            card=(
                "configs:\n- config_name: x\n  data_files:\n  - {split: train_sft, path: s-*}\n  - {split: "
                "train_gen, path: g-*}"
            ),
        )
    card = (
        "configs:\n- config_name: x\n  data_dir: d\n  data_files:\n  - {split: test, path: t/**}\n  - "
        "{split: dev, path: v-*}\n  - {split: train_1, path: "
    )
    with pytest.raises(DataError, match=r"data.files='d/u-\*\.jsonl'"):
        of("d/t/0.jsonl", "d/u-0.jsonl", "v-0.jsonl", card=f"{card}u-*.jsonl}}")
    with pytest.raises(DataError, match=r"data.files='d/t/\*\*'"):
        of("d/t/0.jsonl", "d/u-0.jsonl", "v-0.jsonl", card=f"{card}w-*}}")
    assert of("d/t/0.jsonl", "d/u-0.jsonl", patterns=["d/t/**"]) == ["d/t/0.jsonl"]
    with pytest.raises(
        DataError,
        match=r"card names data\.zip for training, and no such file can be read as rows\. It holds eval\.csv",
    ):
        of("data.zip", "eval.csv", card="configs:\n- config_name: x\n  data_files: data.zip")


def test_a_data_set_that_is_a_script_is_refused() -> None:
    with pytest.raises(
        DataError,
        match=(
            r"a script .*\(name\.py\), and code from a hub is never run.*data\.revision=refs/convert/parquet"
        ),
    ):
        of("name.py", "README.md", "raw.tar")


PATHS = st.lists(
    st.from_regex(r"\A((train|test|dev|data|a)/)?(train|test|valid|b|c-0)\.(jsonl|csv|py|txt|pkl|parquet)\Z"),
    max_size=8,
    unique=True,
)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(PATHS)
def test_what_is_chosen_can_be_read_and_is_of_no_other_split_than_training(paths: list[str]) -> None:
    try:
        found = choose_files(paths, None, None, "org/name")
    except DataError:
        return
    assert found
    assert found == sorted(set(found))
    assert set(found) <= {path for path in paths if is_readable(path)}
    splits = {split_of(path) for path in found}
    assert len(splits) == 1
    assert "train" in splits or not any(split_of(path) == "train" for path in paths if is_readable(path))
