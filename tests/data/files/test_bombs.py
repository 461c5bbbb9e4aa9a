"""Files that unpack to more than a machine holds, and tokenizers that do: refused in a paragraph that names
them, by limits on one row, one cell, one record.
"""

import csv
import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.conftest import Tuner, tiny_words

ROW = json.dumps(
    {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}
).encode()
GREAT = 3 << 10 if os.environ.get("TUNER_TEST_ALL") else 96
"""MiB of the bombs"""
MIB = 1 << 20


def packed(path: Path, head: bytes, piece: bytes, tail: bytes = b"") -> Path:
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(head)
        for _ in range(GREAT):
            file.write(piece * MIB)
        file.write(tail)
    return path


def one_line(where: Path) -> Path:
    return packed(where / "rows.jsonl.gz", ROW + b'\n{"text": "', b"a", b'"}\n')


def zeros_behind_rows(where: Path) -> Path:
    return packed(where / "rows.jsonl.gz", (ROW + b"\n") * 3000, b"\0")


def one_item_of_a_list(where: Path) -> Path:
    return packed(where / "rows.json.gz", b"[" + ROW + b', {"text": "', b"a", b'"}]')


def one_line_of_a_table(where: Path) -> Path:
    return packed(where / "rows.csv.gz", b"instruction,output\n2 + 2?,4\n3 + 3?,", b"a")


def one_cell_of_a_table(where: Path) -> Path:
    return packed(where / "rows.csv.gz", b'instruction,output\n2 + 2?,4\n3 + 3?,"', b"ab\n", b'"\n')


def cells_of_parquet(where: Path) -> Path:
    path = where / "rows.parquet"
    text = "a" * ((GREAT if GREAT < 256 else 256) * MIB)
    table = pa.table({"instruction": ["2 + 2?"] * 8, "output": pa.array([text] * 8, pa.large_string())})
    parquet.write_table(table, path, compression="zstd", use_dictionary=True)
    return path


@pytest.mark.parametrize(
    "bomb",
    [
        one_line,
        zeros_behind_rows,
        one_item_of_a_list,
        one_line_of_a_table,
        one_cell_of_a_table,
        cells_of_parquet,
    ],
)
def test_a_row_without_end_is_refused(
    bomb: Callable[[Path], Path], tuner: Tuner, tiny_model: Path, tmp_path: Path
) -> None:
    path = bomb(tmp_path)
    limits = ["machine.row_limit=8", "machine.parse_memory=1"]
    words = [*tiny_words(tiny_model, path), "until=tokenize", f"root={tmp_path / 'out'}", *limits]
    done = tuner(*words, code=2)
    assert "Traceback" not in done.err
    assert str(path) in done.err
    assert "machine.row_limit" in done.err


def test_a_table_of_countless_columns_is_read_or_refused(
    tuner: Tuner, tiny_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([[f"c{i}" for i in range(300_000)]] * 3)
    words = [*tiny_words(tiny_model, path), "until=tokenize", f"root={tmp_path / 'out'}"]
    done = tuner(*words, "machine.parse_timeout=20", code=2, timeout=120)
    assert "Traceback" not in done.err
    assert str(path) in done.err


def test_a_normalizer_that_grows_what_it_is_given(tuner: Tuner, tiny_model: Path, tmp_path: Path) -> None:
    """Ten in a row, each of which writes a hundred letters for one."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    told = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    steps = [
        {"type": "Replace", "pattern": {"String": chr(97 + i)}, "content": chr(98 + i) * 100}
        for i in range(10)
    ]
    told["normalizer"] = {"type": "Sequence", "normalizers": steps}
    (model / "tokenizer.json").write_text(json.dumps(told), encoding="utf-8")
    data = tmp_path / "rows.jsonl"
    data.write_bytes(ROW.replace(b"2 + 2?", b"a") + b"\n")
    words = [*tiny_words(model, data), "until=tokenize", f"root={tmp_path / 'out'}"]
    done = tuner(*words, "machine.parse_memory=0.5", "machine.parse_timeout=20", code=2)
    assert "Traceback" not in done.err
    assert "tokenizer" in done.err
    assert "machine.parse_memory" in done.err
