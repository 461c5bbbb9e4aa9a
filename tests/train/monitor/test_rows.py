"""The rows of a metrics.jsonl, read while it grows: each once, whole, and anew where another file takes its
place.
"""

import json
from pathlib import Path

from tuner.train.monitor.rows import RowReader, read_rows


def line(step: int) -> str:
    return json.dumps({"step": step}) + "\n"


def steps(reader: RowReader, path: Path) -> list[int]:
    return [row["step"] for row in reader.new_rows(path)]


def test_each_row_is_read_once(tmp_path: Path) -> None:
    path, reader = tmp_path / "metrics.jsonl", RowReader()
    assert steps(reader, path) == read_rows(path) == []
    path.write_text(line(1) + line(2) + line(3)[:5])
    assert steps(reader, path) == [1, 2]
    assert steps(reader, path) == []
    with path.open("a") as file:
        file.write(line(3)[5:] + line(4))
    assert steps(reader, path) == [3, 4]
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3, 4]


def test_a_file_that_takes_its_place_is_read_from_its_beginning(tmp_path: Path) -> None:
    path, reader = tmp_path / "metrics.jsonl", RowReader()
    path.write_text(line(1) + line(2))
    reader.pass_over(path)
    assert steps(reader, path) == []
    # what a run that goes on does with the rows after its saved step
    (tmp_path / "new").write_text(line(1))
    (tmp_path / "new").replace(path)
    assert steps(reader, path) == [1]
    path.unlink()
    assert steps(reader, path) == []
