"""What a file is, its content decides: every kind of rows is read under every name, and prose that only
looks like rows stays prose.
"""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet as pq

from tests.data.files.test_row_files import comma, read, reasons, write
from tuner.data.files.row_files import file_note
from tuner.data.formats.shape import RowShape
from tuner.errors import DataError

ROWS: list[Any] = [{"instruction": f"What is {i}+1?", "output": f"{i + 1}."} for i in range(8)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TURNS = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": str(i)}] for i in range(3)]
NAMES = ("a.txt", "a.md", "a.json", "a.jsonl", "a.csv", "a", "a.py", "a.data", "A.TXT.gz")
PROSE = {
    "[1] A. Smith, On foxes.\n[2] B. Jones.\n": "a.txt",
    "[Chapter 1]\n\nOnce upon a time.\n": "b.txt",
    "{foo} is a place.\nSo is {bar}.\n": "c.txt",
    '{"a": 1}\nis an object, and this is prose about it.\n': "d.md",
    '["a", "b"]\n': "e.txt",
    "{\n  not json\n}\n": "f.txt",
    '{"key": {"inner": 1}, "other": 2}\nand more\n': "g.rst",
    "Question, answer\nOne, two, three\nOnce\n": "h.txt",
    "He came, he saw\nand left, too\n": "i.txt",
    "# Title\n\nOnce upon a time.\n": "story.MD",
    '{\n "name": "x",\n "version": 1\n}\n': "settings.txt",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "text",
    [
        LINES,
        json.dumps(ROWS),
        json.dumps(ROWS, indent=1),
        comma(ROWS),
        json.dumps({"data": ROWS}),
        json.dumps({"v": 1, "rows": ROWS}, indent=2),
    ],
    ids=["lines", "list", "pretty list", "table", "under a key", "under a key, pretty"],
)
def test_rows_are_rows_whatever_their_file_is_called(tmp_path: Path, name: str, text: str) -> None:
    if name == "a.csv" and text.startswith("{") and text.count("\n") < len(ROWS):
        return  # a table whose first line is an object: that name says more
    content = gzip.compress(text.encode()) if name.endswith("gz") else text
    assert [row for _, row in read(write(tmp_path / name, content))] == ROWS


@pytest.mark.parametrize("name", NAMES)
def test_a_table_in_parquet_is_known_by_its_bytes(tmp_path: Path, name: str) -> None:
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), content)
    assert [row for _, row in read(write(tmp_path / name, content.getvalue()))] == ROWS


def test_lists_of_turns_are_rows_in_a_text_too(tmp_path: Path) -> None:
    for content in (
        json.dumps(TURNS),
        "".join(json.dumps(turns) + "\n" for turns in TURNS),
        ",\n".join(map(json.dumps, TURNS)),
    ):
        assert [row for _, row in read(write(tmp_path / "a.txt", content))] == TURNS


@pytest.mark.parametrize("text", PROSE)
def test_prose_is_one_text_whatever_it_begins_with(tmp_path: Path, text: str) -> None:
    assert read(write(tmp_path / PROSE[text], text)) == [(1, {"text": text})]


@pytest.mark.parametrize("name", ["story.py", "story", "story.html", "0001"])
def test_a_name_that_says_nothing_is_asked_about(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, "# Title\n\nOnce upon a time.\n")
    with pytest.raises(DataError, match=rf"{name} holds no rows.*data\.format=text"):
        read(file)
    assert read(file, letters=True) == [(1, {"text": "# Title\n\nOnce upon a time.\n"})]


def test_what_was_said_to_be_a_text_is_one_unless_it_holds_rows_of_texts(tmp_path: Path) -> None:
    code = '[{"a": 1}]\n'
    for name, content in {
        "a.txt": LINES,
        "b.md": json.dumps(ROWS),
        "c.py": code,
        "d.json": '{\n "a": 1,\n "b": 2\n}\n',
        "e.jsonl": "prose\n",
    }.items():
        assert read(write(tmp_path / name, content), letters=True) == [(1, {"text": content})], name
    book = json.dumps({"cells": [{"source": "x = 1"}], "nbformat": 4}, indent=1)
    assert read(write(tmp_path / "a.ipynb", book), letters=True) == [(1, {"text": book})]
    assert [
        row
        for _, row in read(write(tmp_path / "b.ipynb", json.dumps({"rows": [{"text": "a"}]})), letters=True)
    ] == [{"text": "a"}]
    texts = [{"text": "one"}, {"text": "two"}]
    for name in ("a.txt", "a.jsonl", "a", "a.md"):
        assert [row for _, row in read(write(tmp_path / name, json.dumps(texts)), letters=True)] == texts
    assert [row for _, row in read(write(tmp_path / "rows.jsonl", LINES), letters=True)] == ROWS
    assert (
        RowShape(format="text").letters,
        RowShape(format="text", columns={"text": "a"}).letters,
        RowShape().letters,
    ) == (True, False, False)


def test_a_broken_row_is_one_bad_row_where_the_name_or_the_others_say_rows(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a", "a.json"):
        assert list(reasons(read(write(tmp_path / name, "oops\n" + LINES)))) == [1]
        assert list(reasons(read(write(tmp_path / name, LINES + "oops\n")))) == [len(ROWS) + 1]
    assert list(reasons(read(write(tmp_path / "a.txt", LINES + "oops\n")))) == [len(ROWS) + 1]


def test_rows_as_python_prints_them_are_no_prose(tmp_path: Path) -> None:
    found = reasons(read(write(tmp_path / "a.txt", "".join(f"{row}\n" for row in ROWS))))
    assert list(found) == list(range(1, len(ROWS) + 1))
    assert all(
        reason.endswith("this is how Python prints it, and json.dumps writes JSON")
        for reason in found.values()
    )


def test_a_table_that_is_called_json_and_has_names_of_its_own_is_refused(tmp_path: Path) -> None:
    for name in ("a.json", "b.jsonl"):
        with pytest.raises(
            DataError, match=rf"{name} looks like a table with the columns frage, antwort.*\.csv or \.tsv"
        ):
            read(write(tmp_path / name, "frage;antwort\n1+1?;2\n2+2?;4\n"))


# One object that holds the rows


def test_rows_under_the_only_key_are_read_and_the_rest_is_named(tmp_path: Path) -> None:
    for indent in (None, 2):
        file = write(
            tmp_path / "a.json",
            json.dumps(
                {"version": "1.1", "labels": ["x"], "data": ROWS, "by": {"name": "me"}}, indent=indent
            ),
        )
        assert [row for _, row in read(file)] == ROWS
        assert (
            file_note(file)
            == "the rows are the 8 objects under 'data'; beside it, not read: version (the string '1.1'),"
            " labels (a list of 1), by (an object with the keys name)"
        )
    assert (
        file_note(write(tmp_path / "b.json", json.dumps(ROWS)))
        == file_note(write(tmp_path / "c.txt", ""))
        == ""
    )


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            {"train": ROWS, "test": ROWS[:2]},
            r"several lists of objects: train \(8\), test \(2\).*jq -c '\.train\[\]' a\.json",
        ),
        ({"features": [{"a": 1}], "rows": ROWS}, r"features \(1\), rows \(8\)"),
        (
            {"instruction": ["a", "b"], "output": ["c", "d"]},
            r"keys \(instruction, output\) are columns.*orient='records'",
        ),
        ({"instruction": {"0": "a", "1": "b"}, "output": {"0": "c", "1": "d"}}, "are columns or row numbers"),
        ({"0": ROWS[0], "1": ROWS[1]}, r"keys \(0, 1\) are columns or row numbers"),
    ],
)
def test_an_object_whose_rows_cant_be_told_is_refused_by_its_keys(
    tmp_path: Path, value: Any, words: str, indent: int | None
) -> None:
    with pytest.raises(DataError, match=words):
        read(write(tmp_path / "a.json", json.dumps(value, indent=indent)))


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS[0]},
        {"conversations": [{"from": "human", "value": "a"}], "tools": [{"name": "f"}]},
        {"conversation": [{"system": "a", "input": "b", "output": "c"}]},
        {"instruction": "a", "instances": [{"input": "b", "output": "c"}]},
        {"question": "a", "answer": "b", "passages": [{"title": "c"}]},
        {"talk": TURNS[0]},
        {"text": "a", "spans": [{"at": 1}]},
    ],
)
def test_a_row_that_is_alone_in_its_file_stays_a_row(tmp_path: Path, row: Any, indent: int | None) -> None:
    for name in ("a.json", "a.jsonl", "a.txt"):
        assert read(write(tmp_path / name, json.dumps(row, indent=indent))) == [(1, row)]


def test_rows_of_turns_may_be_under_a_key_that_rows_have_too(tmp_path: Path) -> None:
    for key in ("conversations", "messages", "data"):
        rows = [{"messages": turns} for turns in TURNS]
        assert [row for _, row in read(write(tmp_path / "a.json", json.dumps({key: rows})))] == rows


def test_an_object_that_is_larger_than_a_chunk_is_read_in_pieces(tmp_path: Path) -> None:
    rows = [{"instruction": "é" * 3000, "n": i} for i in range(400)]
    assert [
        row for _, row in read(write(tmp_path / "a.json", json.dumps({"data": rows}, ensure_ascii=False)))
    ] == rows


# Small things that people's files have


def test_a_comma_behind_a_row_is_passed_over(tmp_path: Path) -> None:
    for content in (
        LINES.replace("\n", ",\n"),
        LINES.replace("\n", " , \r\n"),
        LINES.replace("\n", ",\n").rstrip(",\n"),
    ):
        assert [row for _, row in read(write(tmp_path / "a.jsonl", content))] == ROWS
    assert list(reasons(read(write(tmp_path / "a.jsonl", '{"a": 1},,\n{"a": 2}, {"a": 3}\n')))) == [1, 2]


def test_what_is_no_number_is_nothing_at_any_depth(tmp_path: Path) -> None:
    text = '{"a": NaN, "b": {"c": [NaN, 1, -Infinity]}, "d": "NaN"}'
    wanted = {"a": None, "b": {"c": [None, 1, None]}, "d": "NaN"}
    assert (
        read(write(tmp_path / "a.jsonl", text))
        == read(write(tmp_path / "b.json", f"[{text}]"))
        == [(1, wanted)]
    )
    table = pa.table(
        {
            "a": pa.array([float("nan"), 1.5]),
            "b": pa.array([[{"x": float("nan"), "y": "z"}], [{"x": 2.0, "y": "nan"}]]),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert [row for _, row in read(tmp_path / "a.parquet")] == [
        {"a": None, "b": [{"x": None, "y": "z"}]},
        {"a": 1.5, "b": [{"x": 2.0, "y": "nan"}]},
    ]


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16"])
def test_lines_of_a_mac_of_old_are_lines(tmp_path: Path, codec: str) -> None:
    for name, text in {"a.jsonl": LINES, "a.csv": comma(ROWS), "a.json": json.dumps(ROWS, indent=1)}.items():
        assert [
            row for _, row in read(write(tmp_path / name, text.replace("\n", "\r").encode(codec)))
        ] == ROWS
    assert read(write(tmp_path / "a.txt", "One.\r\rTwo.\r".encode(codec))) == [
        (1, {"text": "One.\n\nTwo.\n"})
    ]
    assert read(write(tmp_path / "b.txt", "10 %\r20 %\nDone.\r\n".encode(codec))) == [
        (1, {"text": "10 %\r20 %\nDone.\n"})
    ]


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "\ufeffsep=;"])
def test_a_table_says_what_its_columns_are_apart_by(tmp_path: Path, line: str) -> None:
    text = f"{line}\r\ninstruction;output\r\na, b, c, d;e\r\n"
    assert [row for _, row in read(write(tmp_path / "a.csv", text))] == [
        {"instruction": "a, b, c, d", "output": "e"}
    ]
    assert [row for _, row in read(write(tmp_path / "a.tsv", text))] == [
        {"instruction": "a, b, c, d", "output": "e"}
    ]


@settings(deadline=None, max_examples=80, derandomize=True)
@given(text=st.text('[]{}",:a1 \n\t#é', min_size=1, max_size=40).filter(str.strip))
def test_whatever_a_text_begins_with_its_letters_are_rows_of_objects_or_all_there(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    rows = [row for _, row in read(write(tmp_path_factory.mktemp("any") / "a.txt", text))]
    assert rows == [{"text": text}] or all(
        isinstance(json.loads(json.dumps(row)), dict | list) for row in rows
    )
