"""Rows that say of which split they are: those for training are read where others stand beside them, and
the rest is counted.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from tests.conftest import Tuner
from tuner.data.formats import oasst_flat, rows
from tuner.data.formats.rows import OTHER_SPLIT
from tuner.data.formats.shape import RowShape
from tuner.data.survey import scan
from tuner.errors import DataError


def row(n: int, **more: Any) -> dict[str, Any]:
    return {"instruction": f"q{n}", "output": f"a{n}", **more}


def surveyed(folder: Path, values: list[Any], **shape: Any) -> RowShape:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return scan.scan_source([(file, "auto")], RowShape(**shape))


def left(values: list[Any], shape: RowShape) -> list[bool]:
    return [rows.is_left_out(value, shape) for value in values]


@pytest.mark.parametrize(
    ("column", "splits", "wanted"),
    [
        ("split", ["train", "test", "train"], [False, True, False]),
        ("split", ["train", "validation", "dev", "eval"], [False, True, True, True]),
        ("Split", ["TRAIN", "Test"], [False, True]),
        ("split", ["train_sft", "test_sft", "train_gen"], [False, True, False]),
        ("data_split", ["training", "held-out"], [False, True]),
        ("subset", ["train", "val", "extra"], [False, True, True]),
        ("split", ["train", "test", None], [False, True, True]),
        ("split", ["train", "train"], [False, False]),
        ("split", ["test", "validation"], [False, False]),
        ("split", ["train", "banana"], [False, False]),
        ("split", ["a", "b"], [False, False]),
        ("split", [1, 2], [False, False]),
        ("topic", ["train", "test"], [False, False]),
        ("subset", ["maths", "code"], [False, False]),
    ],
)
def test_training_rows_are_read_where_others_stand_beside_them(
    tmp_path: Path, column: str, splits: list[Any], wanted: list[bool]
) -> None:
    values = [row(n, **{column: split}) for n, split in enumerate(splits)]
    assert left(values, surveyed(tmp_path, values)) == wanted
    assert not any(left(values, surveyed(tmp_path, values, split="all")))
    table = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(values), table)
    assert left(values, scan.scan_source([(table, "auto")], RowShape())) == wanted


def test_one_split_is_read_by_its_name_and_must_be_there(tmp_path: Path) -> None:
    values = [row(n, split=split) for n, split in enumerate(["train", "Validation", "test_sft"])]
    assert left(values, surveyed(tmp_path, values, split="validation")) == [True, False, True]
    assert left(values, surveyed(tmp_path, values, split="test_sft")) == [True, True, False]
    assert left(values, surveyed(tmp_path, values, split="test")) == [True, True, False]
    with pytest.raises(
        DataError,
        match=r"data\.split=dev2: no row says.* The column split holds Validation, test_sft, train\.",
    ):
        surveyed(tmp_path, values, split="dev2")
    with pytest.raises(DataError, match=r"No row has a column split, data_split"):
        surveyed(tmp_path, [row(1)], split="test")


def test_many_values_are_no_splits(tmp_path: Path) -> None:
    values = [row(n, split=f"train {n}") for n in range(60)] + [row(60, split="test")]
    assert surveyed(tmp_path, values).facts.split is None


def test_the_column_is_read_and_is_not_named_as_unread(tmp_path: Path) -> None:
    values = [row(1, split="train"), row(2, split="test")]
    assert "split" not in rows.unread_values(values[0], surveyed(tmp_path, values))


def test_messages_of_trees_are_left_out_by_their_split(tmp_path: Path) -> None:
    asked = {
        "message_id": "1",
        "parent_id": None,
        "message_tree_id": "1",
        "role": "prompter",
        "text": "q",
        "split": "train",
    }
    said = {**asked, "message_id": "2", "parent_id": "1", "role": "assistant", "text": "a"}
    other = {**asked, "message_id": "3", "message_tree_id": "3", "split": "validation"}
    shape = surveyed(tmp_path, [asked, said, other])
    kept = Counter(
        reason
        for tree in oasst_flat.group_rows(enumerate([asked, said, other], start=1), shape)
        for reason in tree.left.values()
    )
    assert kept == {OTHER_SPLIT: 1}
    assert all(
        not tree.left for tree in list(oasst_flat.group_rows(enumerate([asked, said], start=1), shape.whole))
    )


def test_what_is_left_is_in_the_ledger_and_no_loss(tuner: Tuner, tiny_model: Path, tmp_path: Path) -> None:
    values = [row(n, split="train" if n % 4 else "test") for n in range(20)]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(value) + "\n" for value in values), encoding="utf-8"
    )
    words = [
        "model=local",
        f"model.path={tiny_model}",
        "machine=cpu",
        "data=local",
        "data.path=rows.jsonl",
        "until=tokenize",
    ]
    done = tuner(*words, "data.max_dropped=0")
    assert f"dropped 5: {OTHER_SPLIT} (rows.jsonl:1, 5, 9, 13, 17)" in done.err + done.out
    (run,) = (tmp_path / "outputs" / "runs").iterdir()
    (source,) = json.loads((run / "tokenize" / "ledger.json").read_text(encoding="utf-8"))["sources"]
    assert (source["rows"], source["kept"]) == (20, 15)
