"""Rows that were written must be read as they were."""

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tuner.data.files.row_files import chunks, parse_rows
from tuner.data.files.write_rows import WRITES, check_ending, write_rows
from tuner.errors import ConfigError, StoreError

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=20)
ROWS = st.lists(st.fixed_dictionaries({"a": TEXT, "b": TEXT}), min_size=1, max_size=8)


def read(path: Path) -> list[Any]:
    return [row for chunk in chunks(path) for _, row in parse_rows(chunk)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS, st.sampled_from(WRITES))
def test_texts_come_back(tmp_path: Path, rows: list[dict[str, str]], ending: str) -> None:
    path = tmp_path / f"rows{ending}"
    write_rows(path, rows, ["a", "b"])
    assert read(path) == rows
    assert list(tmp_path.glob(".rows*")) == []


def test_what_is_no_text_is_json_in_a_table_and_itself_elsewhere(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"a": 1, "b": ["x", None]}, {"a": "two", "b": None, "c": {"d": True}}]
    for ending, expected in (
        (".jsonl", rows),
        (".json", rows),
        (".csv", [{"a": "1", "b": '["x", null]', "c": ""}, {"a": "two", "b": "", "c": '{"d": true}'}]),
        (".parquet", [{"a": "1", "b": ["x", None], "c": None}, {"a": "two", "b": None, "c": {"d": True}}]),
    ):
        write_rows(tmp_path / f"rows{ending}", rows, ["a", "b", "c"])
        assert read(tmp_path / f"rows{ending}") == expected, ending


def test_columns_of_a_parquet_file_keep_their_types(tmp_path: Path) -> None:
    when = datetime.datetime(2026, 1, 2, 3, 4, 5)
    table = pa.table({"n": pa.array([1, None], pa.int16()), "at": pa.array([when, None], pa.timestamp("ms"))})
    pq.write_table(table, tmp_path / "in.parquet")
    write_rows(
        tmp_path / "out.parquet",
        [row | {"answer": "x"} for row in table.to_pylist()],
        ["n", "at", "answer"],
        tmp_path / "in.parquet",
    )
    assert pq.read_table(tmp_path / "out.parquet").drop_columns("answer").equals(table)


def test_it_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def rows() -> Any:
        yield {"a": "x"}
        raise OSError(28, "No space left on device")

    for ending in WRITES:
        with pytest.raises(StoreError, match="is full"):
            write_rows(tmp_path / f"rows{ending}", rows(), ["a"])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match=r"rows\.xlsx: the ending says"):
        check_ending(tmp_path / "rows.xlsx")
