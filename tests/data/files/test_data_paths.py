import json
import sys
from pathlib import Path

import pytest

from tuner.data.files import data_paths
from tuner.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(file: Path, content: str | bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def test_one_file_is_known_by_its_name(folder: Path) -> None:
    for name in ("客服/2026(1).jsonl", "a [x].jsonl", "what?.json"):
        file = write(folder / name, "{}")
        assert data_paths.locate([name]) == {file.name: file}


def test_several_files_keep_their_order(folder: Path) -> None:
    files = [write(folder / name, "{}") for name in ("b.jsonl", "x/a.jsonl", "x/c.jsonl")]
    assert data_paths.locate(["b.jsonl", "x/*.jsonl"]) == {
        "0000-b.jsonl": files[0],
        "0001-a.jsonl": files[1],
        "0002-c.jsonl": files[2],
    }
    assert list(data_paths.locate(["**/*.jsonl"]).values()) == files


def test_the_home_directory_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder / "home"))
    file = write(folder / "home" / "a.jsonl", "{}")
    assert data_paths.locate(["~/a.jsonl"]) == {"a.jsonl": file}


def test_what_is_missing_is_said_with_what_lies_near(folder: Path) -> None:
    write(folder / "support.jsonl", "{}")
    with pytest.raises(DataError, match=r"no file 'suport\.jsonl' in .*Did you mean support\.jsonl\?"):
        data_paths.locate(["suport.jsonl"])
    with pytest.raises(DataError, match=r"holds support\.jsonl\."):
        data_paths.locate(["*.csv"])
    with pytest.raises(DataError, match="no directory"):
        data_paths.locate(["nowhere/a.jsonl"])
    assert data_paths.locate(["."]) == {"support.jsonl": folder / "support.jsonl"}


def test_a_package_is_found_without_running_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "site" / "carrier" / "__init__.py", "raise SystemExit('imported')")
    file = write(folder / "site" / "carrier" / "inner" / "a.jsonl", "{}")
    monkeypatch.syspath_prepend(str(folder / "site"))
    assert data_paths.locate(["inner/a.jsonl"], "carrier") == {"a.jsonl": file}
    assert data_paths.locate(["a.jsonl"], "carrier.inner") == {"a.jsonl": file}
    assert "carrier" not in sys.modules
    with pytest.raises(ConfigError, match="no package 'carier' is installed"):
        data_paths.locate(["a.jsonl"], "carier")


def save(folder: Path, shards: list[str], present: list[str] | None = None) -> list[Path]:
    """A directory as save_to_disk of `datasets` leaves it."""
    write(
        folder / "state.json",
        json.dumps(
            {"_data_files": [{"filename": name} for name in shards], "_fingerprint": "0", "_split": "train"}
        ),
    )
    write(folder / "dataset_info.json", "{}")
    return [write(folder / name, b"\xff\xff\xff\xff") for name in (shards if present is None else present)]


def test_a_directory_that_datasets_saved_stands_for_its_shards_in_their_order(folder: Path) -> None:
    shards = save(
        folder / "saved",
        ["data-00000-of-00003.arrow", "data-00002-of-00003.arrow", "data-00001-of-00003.arrow"],
    )
    write(folder / "saved" / "cache-1.arrow", "")
    rows = write(folder / "a.jsonl", "{}")
    found = data_paths.locate(["saved", "a.jsonl"])
    assert list(found.values()) == [*shards, rows]
    assert list(found)[1:] == [
        "0001-data-00002-of-00003.arrow",
        "0002-data-00001-of-00003.arrow",
        "0003-a.jsonl",
    ]
    (one,) = save(folder / "one", ["data-00000-of-00001.arrow"])
    assert data_paths.locate(["on*"]) == {"data-00000-of-00001.arrow": one}


def test_splits_and_damaged_directories_are_refused(folder: Path) -> None:
    write(folder / "splits" / "dataset_dict.json", '{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match=r"holds the splits train, test .*data\.path=.*splits/train"):
        data_paths.locate(["splits"])
    write(folder / "splits" / "dataset_dict.json", '{"splits": ["test", "train_sft"]}')
    with pytest.raises(DataError, match=r"Name the one to train on, as in data\.path=.*splits/train_sft\.$"):
        data_paths.locate(["splits"])
    write(folder / "splits" / "dataset_dict.json", '{"splits": ["test", "validation"]}')
    with pytest.raises(DataError, match=r"None of them is for training by its name; name one\.$"):
        data_paths.locate(["splits"])
    save(folder / "lost", ["a.arrow", "b.arrow"], present=["a.arrow"])
    with pytest.raises(DataError, match=r"state\.json names b\.arrow, which is not in"):
        data_paths.locate(["lost"])
    save(folder / "outside", ["../a.jsonl"], present=[])
    with pytest.raises(DataError, match="a file under `_data_files` has no name of its own"):
        data_paths.locate(["outside"])
    for content in ("", "[]", "{}", '{"_data_files": []}', '{"_data_files": 3}', "[" * 100_000):
        write(folder / "broken" / "state.json", content)
        with pytest.raises(DataError, match=r"state\.json.*`_data_files`"):
            data_paths.locate(["broken"])


def test_all_endings_that_can_be_read_are_named(folder: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"holds no data file \(\.jsonl, .*\.parquet, \.arrow, \.txt, also with \.gz or \.zst\)",
    ):
        data_paths.locate(["*.csv"])
    for name in ("a.parquet", "b.csv.gz", "c.txt", "d.py"):
        write(folder / name, "")
    with pytest.raises(DataError, match=r"holds a\.parquet, b\.csv\.gz, c\.txt\."):
        data_paths.locate(["*.json"])


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (
            "https://example.com/a/rows.jsonl?x=1",
            (
                r"is an address.*curl -L -o rows\.jsonl"
                r" 'https://example\.com/a/rows\.jsonl\?x=1'.*data\.path=rows\.jsonl"
            ),
        ),
        ("http://example.com/", r"Download it first.*data=hub data\.repo=ORG/NAME"),
        ("https://huggingface.co/datasets/org/set", r"data=hub data\.repo=org/set$"),
        (
            "https://huggingface.co/datasets/org/set/blob/main/data/a.jsonl",
            r"data=hub data\.repo=org/set 'data\.files=data/a\.jsonl'$",
        ),
        (
            "https://huggingface.co/datasets/org/set/resolve/v2/a.csv?download=true",
            r"data\.repo=org/set data\.revision=v2 'data\.files=a\.csv'$",
        ),
        ("hf://datasets/org/set/a.parquet", r"data=hub data\.repo=org/set 'data\.files=a\.parquet'$"),
        ("hf://datasets/org/set@v1", r"data=hub data\.repo=org/set data\.revision=v1$"),
        (
            "https://www.modelscope.cn/datasets/org/set/files",
            r"data=hub data\.source=modelscope data\.repo=org/set$",
        ),
        ("s3://bucket/rows.jsonl", r"with the tool of that store.*data\.path=rows\.jsonl"),
    ],
)
def test_an_address_is_answered_with_what_to_do(folder: Path, address: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        data_paths.locate([address])
