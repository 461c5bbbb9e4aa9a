import csv
import gc
import gzip
import io
import json
import pickle
import re
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet as pq

from tuner.data.files import json_window
from tuner.data.files.chunk import CHUNK
from tuner.data.files.row_files import Chunk, Unreadable, chunks, count_rows, is_readable, parse_rows
from tuner.errors import ConfigError, DataError

ROWS: list[Any] = [{"instruction": f"问 {i} \u2028 «é»", "output": "line\nline", "n": i} for i in range(40)]


def write(file: Path, content: str | bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def read(file: Path, encoding: str = "auto", letters: bool = False) -> list[tuple[int, Any]]:
    """The rows, after looking that each chunk has as many as it says, and is the same in another process."""
    rows = []
    for chunk in chunks(file, encoding, letters):
        found = list(parse_rows(chunk))
        assert count_rows(chunk) == len(found)
        assert list(parse_rows(pickle.loads(pickle.dumps(chunk)))) == found or any(
            value != value for _, row in found for value in row.values()
        )
        rows += found
    return rows


def reasons(rows: list[tuple[int, Any]]) -> dict[int, str]:
    return {number: row.reason for number, row in rows if isinstance(row, Unreadable)}


def jsonl(rows: list[Any], end: str = "\n") -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)


def comma(rows: list[Any]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def parquet(rows: list[Any]) -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), content, row_group_size=7)
    return content.getvalue()


def arrow(rows: list[Any], opened: Callable[..., Any]) -> bytes:
    content, table = io.BytesIO(), pa.Table.from_pylist(rows)
    with opened(content, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return content.getvalue()


def zstd(content: bytes) -> bytes:
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(content)
    return bytes(packed.getvalue())


KINDS: dict[str, bytes] = {
    "a.jsonl": jsonl(ROWS).encode(),
    "a.json": json.dumps(ROWS).encode(),
    "pretty.json": json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
    "a.parquet": parquet(ROWS),
    "stream.arrow": arrow(ROWS, pa.ipc.new_stream),
    "file.arrow": arrow(ROWS, pa.ipc.new_file),
}


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd], ids=["plain", "gzip", "zstd"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_rows_whatever_its_name(
    tmp_path: Path, kind: str, pack: Callable[[bytes], bytes]
) -> None:
    for name in (kind, "rows.jsonl", "rows", "rows.json.gz"):
        assert read(write(tmp_path / name, pack(KINDS[kind]))) == list(enumerate(ROWS, start=1))


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd], ids=["plain", "gzip", "zstd"])
def test_a_table_of_text_is_known_by_its_name_and_its_values_are_texts(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    texts = [{**row, "n": str(row["n"])} for row in ROWS]
    for name, text in {
        "a.csv": comma(ROWS),
        "a.CSV.GZ": comma(ROWS),
        "b.csv": comma(ROWS).replace(",", ";"),
    }.items():
        assert read(write(tmp_path / name, pack(text.encode()))) == list(enumerate(texts, start=1))
    assert read(write(tmp_path / "a.tsv", pack(b"a, b\tc\n1,5\t2\n"))) == [(1, {"a, b": "1,5", "c": "2"})]


def test_packed_pieces_one_after_the_other_are_one_file(tmp_path: Path) -> None:
    one, two = jsonl(ROWS[:20]).encode(), jsonl(ROWS[20:]).encode()
    for content in (
        gzip.compress(one) + gzip.compress(two) + bytes(512),
        zstd(one) + b"\x50\x2a\x4d\x18\x04\0\0\0skip" + zstd(two),
    ):
        assert [row for _, row in read(write(tmp_path / "a", content))] == ROWS
    skipped_first = b"\x50\x2a\x4d\x18\x04\0\0\0skip" + zstd(one)
    assert [row for _, row in read(write(tmp_path / "a", skipped_first))] == ROWS[:20]


def test_the_shared_data_has_as_many_rows_as_its_readme_says(shared: Path) -> None:
    table = re.findall(
        r"^\| `([^`]+)` \| ([\d,]+) \|",
        (shared / "data" / "README.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert len(table) >= 45
    for name, rows in table:
        found = read(shared / "data" / name)
        assert (name, len(found), reasons(found)) == (name, int(rows.replace(",", "")), {})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=4), JSON, max_size=3), max_size=6),
    plain=st.booleans(),
    indent=st.sampled_from([None, 1]),
    codec=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    end=st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_lines_and_lists_give_the_same_rows_in_every_marked_encoding(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[Any],
    plain: bool,
    indent: int | None,
    codec: str,
    end: str,
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    lines = write(
        folder / "a.json",
        "".join(json.dumps(row, ensure_ascii=plain) + end for row in rows).encode(codec, "surrogatepass"),
    )
    whole = write(
        folder / "b.jsonl", json.dumps(rows, ensure_ascii=plain, indent=indent).encode(codec, "surrogatepass")
    )
    assert [row for _, row in read(lines)] == rows
    assert read(whole) == list(enumerate(rows, start=1))


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    content=st.binary(max_size=60)
    | st.text('{}[]",:\\ua1\n\r\t \ud800é', max_size=60).map(lambda s: s.encode("utf-8", "surrogatepass"))
)
def test_whatever_is_in_a_file_is_rows_or_an_error_in_words(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("any")
    for name in ("a.jsonl", "a.csv", "a.txt", "a.parquet"):
        for begin in (
            b"",
            b"[",
            b"PAR1",
            b"ARROW1",
            b"\xff\xff\xff\xff",
            b"\xff\xfe",
            b"\x1f\x8b",
            b"\x28\xb5\x2f\xfd",
        ):
            file = write(folder / name, begin + content)
            said = str(file)
            try:
                assert all(number >= 1 for number, _ in read(file))
            except DataError as error:
                said = str(error)
            assert str(file) in said


@settings(deadline=None, max_examples=40, derandomize=True)
@given(at=st.integers(0, len(KINDS["a.json"]) - 1), what=st.binary(max_size=3))
def test_a_broken_list_loses_no_row_silently(
    tmp_path_factory: pytest.TempPathFactory, at: int, what: bytes
) -> None:
    file = write(tmp_path_factory.mktemp("broken") / "a.json", KINDS["a.json"][:at] + what)
    try:
        rows = read(file)
    except DataError:
        return
    assert reasons(rows) or not rows or what.strip() == b"]"
    assert [row for _, row in rows if not isinstance(row, Unreadable)][: len(rows) - 2] == ROWS[
        : max(len(rows) - 2, 0)
    ]


# How lines are read


def test_blank_lines_count_as_lines_and_are_no_rows(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.jsonl", '\r\n{"a": 1}\r\n \t\n\v\f\n{"a": 2}')) == [
        (2, {"a": 1}),
        (5, {"a": 2}),
    ]
    for empty in ("", "\n", " \r\n\t\n\n", "\ufeff"):
        for name in ("a.jsonl", "a.json", "a.csv", "a.txt", "a.parquet"):
            assert read(write(tmp_path / name, empty)) == []


def test_a_line_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    rows = [{"a": f"x{sign}y"} for sign in "\u2028\u2029\x85\x1c\v\f"]
    assert [row for _, row in read(write(tmp_path / "a.jsonl", jsonl(rows)))] == rows
    assert [row for _, row in read(write(tmp_path / "a.json", json.dumps(rows, ensure_ascii=False)))] == rows
    assert [row for _, row in read(write(tmp_path / "a.csv", comma(rows)))] == rows


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"a": 1,}', r"no valid JSON \(.* at column \d+\)"),
        (b'{"a": 1} {"a": 2}', r"no valid JSON \(Extra data at column 9\)"),
        (b'{"a": "\xff"}', r"no valid UTF-8 \(byte 0xff at 7\); .*data\.encoding=gb18030"),
        ('{"a": "中"}'.encode("gb18030"), r"no valid UTF-8 .*data\.encoding=gb18030"),
        (b'{"a": "\xed\xa0\x80"}', "no valid UTF-8"),
        (b'{"a": "x\x00y"}', "Invalid control character"),
        (b'{"a": 1}\x00', "Extra data"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "thousands of digits"),
        (b'{"a": "never en', "Unterminated string"),
        (b"oops", "Expecting value at column 1"),
    ],
)
def test_a_bad_line_is_one_bad_row(tmp_path: Path, line: bytes, words: str) -> None:
    good = b'{"a": 1}\n'
    rows = read(write(tmp_path / "a.jsonl", good + line + b"\n" + good))
    assert [number for number, _ in rows] == [1, 2, 3]
    assert rows[0][1] == rows[2][1] == {"a": 1}
    assert re.search(words, reasons(rows)[2])
    assert list(reasons(read(write(tmp_path / "last.jsonl", good + line)))) == [2]


def test_what_python_takes_for_json_arrives(tmp_path: Path) -> None:
    (_, row), (_, other) = read(
        write(tmp_path / "a.jsonl", '{"a": "\\ud800", "b": NaN, "c": -Infinity, "d": "\\u0000"}\n"text"\n')
    )
    assert (row["a"], row["b"], row["c"], row["d"], other) == ("\ud800", None, None, "\0", "text")


def test_a_list_of_turns_in_a_line_is_a_row_and_a_list_of_rows_is_the_set(tmp_path: Path) -> None:
    turns = '[{"role": "user", "content": "a"}]'
    assert read(write(tmp_path / "a.json", turns)) == [(1, json.loads(turns))]
    assert len(read(write(tmp_path / "a.json", f"{turns}\n{turns}\n"))) == 2
    assert len(read(write(tmp_path / "a.jsonl", '[{"from": "human", "value": "a"}]\n\n'))) == 1
    assert read(write(tmp_path / "a.json", f"[{turns}, {turns}]"))[1] == (2, json.loads(turns))
    assert (
        read(
            write(
                tmp_path / "a.json", '[{"role": "prompter", "text": "a"}, {"role": "assistant", "text": "b"}]'
            )
        )[1][0]
        == 2
    )
    assert read(write(tmp_path / "a.json", "[]")) == []
    assert read(write(tmp_path / "a.json", f"[]\n{turns}")) == [(1, []), (2, json.loads(turns))]
    broken = read(write(tmp_path / "a.jsonl", '[{"role": "user", "content"}]\n' + turns))
    assert list(reasons(broken)) == [1]
    assert broken[1][1] == json.loads(turns)


def test_a_row_larger_than_a_chunk_stays_one(tmp_path: Path) -> None:
    rows = [{"a": "é" * 200_000}, {"a": "b"}, {"a": "é" * (2 * CHUNK)}, {"a": "c"}]
    for content in (jsonl(rows), json.dumps(rows, ensure_ascii=False), json.dumps(rows)):
        assert read(write(tmp_path / "a", content))[2:] == [(3, rows[2]), (4, rows[3])]
    assert [row for _, row in read(write(tmp_path / "a.csv", comma(rows)))] == rows
    assert [row for _, row in read(write(tmp_path / "a", parquet(rows)))] == rows


# How lists are read


@pytest.mark.parametrize(
    ("content", "number", "words"),
    [
        ('[\n{"a": 1},\n{"a": "x', 2, "begins in line 3"),
        ('[\n{"a": 1},\n{"a": tru', 2, "begins in line 3"),
        ('[\n{"a": 1},\n{"a": "\\u12', 2, "begins in line 3"),
        ('[\n{"a": 1},\n' + "[" * 100_000, 2, "begins in line 3"),
        ('[\n{"a": 1},\n', 2, "inside the list, in line 3"),
        ('[\n{"a": 1}\n', 2, "inside the list, in line 3"),
        ("[\n", 1, "inside the list, in line 2"),
    ],
)
def test_a_list_that_breaks_off_has_its_rows_and_one_bad_one(
    tmp_path: Path, content: str, number: int, words: str
) -> None:
    rows = read(write(tmp_path / "a.json", content))
    assert list(reasons(rows)) == [number] == [len(rows)]
    assert words in rows[-1][1].reason
    assert [row for _, row in rows[:-1]] == [{"a": 1}][: number - 1]


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (b'{"b": {"c": 1, "c": "]"}}', "in line 3: .*the key 'c' twice"),
        (b"[" * 100_000 + b"]" * 100_000, "in line 3: JSON nested too deeply"),
        (b'{"b": ' + b"9" * 5000 + b"}", "in line 3: .*thousands of digits"),
        (b"9" * 5000, "in line 3: .*thousands of digits"),
        (b'{"b":\n"\xc4\xe3"}', r"in line 4: no valid UTF-8 \(byte 0xc4\); .*data\.encoding=gb18030"),
    ],
)
def test_an_item_that_is_no_row_is_passed_over(tmp_path: Path, item: bytes, words: str) -> None:
    rows = read(write(tmp_path / "a.json", b'[\n{"a": 1},\n' + item + b',\n{"a": 2}]'))
    assert (len(rows), rows[0], rows[2]) == (3, (1, {"a": 1}), (3, {"a": 2}))
    assert re.search(words, reasons(rows)[2])


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ('{"a"}\n]', r"a\.json:3: no valid JSON in item 2 .*'\}"),
        ('{"a": 1,}]', r"a\.json:3: no valid JSON in item 2"),
        ('{"a": 1} {"a": 2}]', r"a\.json:3: no valid JSON in item 2 .*Expecting ',' or '\]'"),
        ("{'a': 1}]", r"a\.json:3: no valid JSON in item 2"),
        ('\n{"a": "b\nc"}]', r"a\.json:4: .*Invalid control character"),
        ("]", r"a\.json:3: no valid JSON in item 2 .*Expecting value"),
        ('{"a": 2}]\n\n[{"a": 3}]', r"a\.json:5: text after the end of the JSON list \('\[\{"),
        ('{"a": 2}]}', r"a\.json:3: text after the end"),
    ],
)
def test_a_list_with_broken_syntax_is_refused_with_its_line(tmp_path: Path, rest: str, words: str) -> None:
    file = write(tmp_path / "a.json", '[\n{"a": 1},\n' + rest)
    with pytest.raises(DataError, match=words):
        read(file)


def test_values_across_the_borders_of_the_window_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [1234567, True, None, -1.5e-7, '\\"é😀\ud800', {"a": [{}], "b": ["x" * 40]}, [], "", 0]
    for step in (1, 2, 3, 5, 7, 16):
        monkeypatch.setattr(json_window, "STEP", step)
        for plain in (True, False):
            content = json.dumps(rows, ensure_ascii=plain, indent=1).encode("utf-8", "replace")
            expected = (
                rows
                if plain
                else [
                    str(row).encode("utf-8", "replace").decode() if isinstance(row, str) else row
                    for row in rows
                ]
            )
            assert read(write(tmp_path / "a.json", content)) == list(enumerate(expected, start=1))
        assert reasons(read(write(tmp_path / "b.json", '[{"a": 1, "a": "]}"},\n2]'))).keys() == {1}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            json.dumps({"version": 1, "data": ROWS}, indent=2)[:-9],
            "a JSON object that goes over several lines",
        ),
        ('{"data": [\n{"a": 1},\n{"a": 2}\n]\n', r"jq -c '\.data\[\]'"),
        (json.dumps(ROWS[0], indent=1) * 2, "a JSON object that goes over several lines"),
    ],
)
def test_an_object_over_several_lines_that_is_broken_is_refused_as_a_whole(
    tmp_path: Path, content: str, words: str
) -> None:
    with pytest.raises(DataError, match=rf"a\.json:1: .*{words}" if "jq" not in words else words):
        read(write(tmp_path / "a.json", content))


def test_a_first_row_that_is_cut_off_spoils_itself_only(tmp_path: Path) -> None:
    assert list(reasons(read(write(tmp_path / "a.jsonl", '{"a": [1,\n' + jsonl(ROWS))))) == [1]


# How tables are read


def test_cells_of_a_csv_hold_what_they_may(tmp_path: Path) -> None:
    content = '\ufeff\r\nq , a,\r\n"1, ""x""\r\n2",,z\r\n\r\n  \r\n=5" disk,é,\r\n'
    assert read(write(tmp_path / "a.csv", content)) == [
        (1, {"q": '1, "x"\r\n2', "a": "", "": "z"}),
        (2, {"q": '=5" disk', "a": "é", "": ""}),
    ]
    assert read(write(tmp_path / "a.csv", "a,b\n")) == []
    assert read(write(tmp_path / "a.csv", 'a\n""\nx')) == [(1, {"a": ""}), (2, {"a": "x"})]
    assert read(write(tmp_path / "a.csv", '"a;b;c;d",e\n1,2')) == [(1, {"a;b;c;d": "1", "e": "2"})]
    assert read(write(tmp_path / "old.csv", "a,b\r1,2\r")) == [(1, {"a": "1", "b": "2"})]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"1", "in line 3: 1 cell, where the first line names 2 columns"),
        (b"1,2,3", "in line 3: 3 cells"),
        (b'"1"x,2', "in line 3: no valid CSV .*written twice"),
        (b"1,\x00", "in line 3: a NUL byte"),
        (b"1,\xff", r"in line 3: no valid UTF-8 \(byte 0xff\); .*data\.encoding"),
    ],
)
def test_a_bad_line_of_a_csv_is_one_bad_row(tmp_path: Path, line: bytes, words: str) -> None:
    rows = read(write(tmp_path / "a.csv", b"a,b\n1,2\n" + line + b"\n3,4\n"))
    assert (len(rows), rows[2]) == (3, (3, {"a": "3", "b": "4"}))
    assert re.search(words, reasons(rows)[2])


def test_a_quote_that_is_not_closed_is_said_with_all_it_takes(tmp_path: Path) -> None:
    rows = read(write(tmp_path / "a.csv", 'a,b\n1,2\n3,"4\n5,6\n7,8\n'))
    assert (len(rows), rows[0]) == (2, (1, {"a": "1", "b": "2"}))
    assert re.search(r"in line 3: a quote is opened .* line 5", reasons(rows)[2])


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    table = pa.table([[1], [2]], names=["a", "a"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for file in (tmp_path / "a.parquet", tmp_path / "a.arrow", write(tmp_path / "a.csv", "a,a\n1,2\n")):
        with pytest.raises(DataError, match=r"the column 'a' is there twice"):
            read(file)


@pytest.mark.parametrize("kind", ["a.parquet", "file.arrow", "stream.arrow"])
def test_a_damaged_table_is_refused(tmp_path: Path, kind: str) -> None:
    content = KINDS[kind]
    for cut in (10, 20, len(content) // 2, len(content) - 20):
        with pytest.raises(DataError, match=rf"{kind} can't be read as (Parquet|Arrow) \(.+\)\."):
            read(write(tmp_path / kind, content[:cut]))


def test_a_value_that_python_has_no_word_for_spoils_its_row_only(tmp_path: Path) -> None:
    broken = pa.StringArray.from_buffers(
        3, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffc")
    )
    pq.write_table(pa.table({"a": broken}), tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet")
    assert (rows[0], rows[2]) == ((1, {"a": "a"}), (3, {"a": "c"}))
    assert "can't be read" in reasons(rows)[2]


# How texts are read


def test_a_text_file_is_one_row_and_a_long_one_is_cut_without_loss(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.txt", "\ufeff one\r\n\r\n{two}\n ")) == [
        (1, {"text": " one\n\n{two}\n "})
    ]
    for paragraph in ("Some words é.\n" * 50 + "\n", "words é " * 40 + "\n", "words é ", "é", "x"):
        text = paragraph * (int(2.5 * CHUNK) // len(paragraph.encode()))
        rows = read(write(tmp_path / "a.txt", text))
        assert "".join(row["text"] for _, row in rows) == text
        assert len(rows) in (3, 4)
        assert all(len(row["text"].encode()) <= CHUNK for _, row in rows)
        assert [number for number, _ in rows] == [
            1 + "".join(row["text"] for _, row in rows[:i]).count("\n") for i in range(len(rows))
        ]
        if paragraph.endswith("\n\n"):
            assert all(row["text"].endswith("\n\n") for _, row in rows)
    assert "in line 2: a NUL byte" in reasons(read(write(tmp_path / "a.txt", "a\nb\0")))[1]
    assert re.search(
        r"in line 2: no valid UTF-8 .*data\.encoding=gb18030",
        reasons(read(write(tmp_path / "a.txt", b"a\n\xff")))[1],
    )


# Encodings


@pytest.mark.parametrize(
    "codec", ["gb18030", "big5", "utf-16-le", "utf-16-be", "utf-16", "shift_jis", "utf8"]
)
def test_a_named_encoding_is_read(tmp_path: Path, codec: str) -> None:
    rows = [{"a": "中文 " * 100_000}, {"a": "\r\n"}]
    for name, text in {
        "a.jsonl": jsonl(rows, "\r\n"),
        "a.json": json.dumps(rows, ensure_ascii=False),
        "a.csv": comma(rows),
    }.items():
        assert read(write(tmp_path / name, text.encode(codec)), codec) == list(enumerate(rows, start=1))
    assert read(write(tmp_path / "a.txt", "一\n".encode(codec)), codec) == [(1, {"text": "一\n"})]


def test_a_list_in_another_encoding_is_refused_with_a_hint_even_where_its_bytes_look_like_json(
    tmp_path: Path,
) -> None:
    rows = [{"a": "中文"}, {"a": "俓"}, {"a": "b"}]  # 俓 ends in a backslash
    file = write(tmp_path / "a.json", json.dumps(rows, ensure_ascii=False).encode("gb18030"))
    assert b'\\"' in file.read_bytes()
    with pytest.raises(DataError, match=r"a\.json:1: no valid JSON in item 2 .*data\.encoding=gb18030"):
        read(file)
    assert [row for _, row in read(file, "gb18030")] == rows


def test_latin_1_is_refused_unless_it_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"a": "é"}\n'.encode("latin-1"))
    assert "data.encoding=latin-1" in reasons(read(file))[1]
    assert read(file, "latin-1") == [(1, {"a": "é"})]


def test_an_encoding_that_does_not_fit_is_refused_with_the_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:2: the bytes ff are no gb18030\. Set data\.encoding"):
        read(write(tmp_path / "a.jsonl", '{"a": "中"}\n"'.encode("gb18030") + b'\xff"\n'), "gb18030")
    with pytest.raises(DataError, match=r"a\.jsonl:2: the bytes .* are no utf-16"):
        read(write(tmp_path / "a.jsonl", '{"a": 1}\n{"a": 2}'.encode("utf-16")[:-1]))
    with pytest.raises(DataError, match=r"byte order mark of UTF-16, and data\.encoding is gb18030"):
        read(write(tmp_path / "a.jsonl", "{}".encode("utf-16")), "gb18030")
    for unknown in ("klingon", "rot13", "hex"):
        with pytest.raises(ConfigError, match=f"data.encoding: no text encoding '{unknown}'"):
            read(write(tmp_path / "a.jsonl", "{}"), unknown)


# What is no data


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (bytes(range(256)) * 20, "binary data that is no known kind"),
        (bytes(5000), "binary data"),
        (jsonl(ROWS).encode("utf-16-le"), r"data\.encoding=utf-16-le"),
        (jsonl(ROWS).encode("utf-16-be"), r"data\.encoding=utf-16-be"),
        (b"PK\x03\x04" + bytes(100), "a ZIP archive"),
        (gzip.compress(bytes(257) + b"ustar" + bytes(500)), "a tar archive"),
        (gzip.compress(gzip.compress(b"{}")), "packed with gzip twice"),
        (pickle.dumps(ROWS), "a Python pickle, which could run code"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    ],
    ids=lambda value: "bytes" if isinstance(value, bytes) else None,  # gzip writes the time
)
def test_what_is_no_data_is_refused_by_what_it_is(tmp_path: Path, content: bytes, words: str) -> None:
    for name in ("a.jsonl", "a.csv", "a.txt", "a.parquet"):
        with pytest.raises(DataError, match=rf"{re.escape(name)} .*{words}"):
            read(write(tmp_path / name, content))


@pytest.mark.parametrize("pack", [gzip.compress, zstd], ids=["gzip", "zstd"])
def test_packed_data_that_breaks_off_or_is_damaged_is_refused(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    whole = pack(jsonl(ROWS * 500).encode())
    for packed in (whole[: len(whole) // 2], whole[:-3]):
        with pytest.raises(DataError, match=r"a\.jsonl can't be unpacked: its packed data breaks off"):
            read(write(tmp_path / "a.jsonl", packed))
    with pytest.raises(DataError, match="its packed data is damaged"):
        read(write(tmp_path / "a.jsonl", whole + b"garbage"))


def test_what_cannot_be_opened_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"nothing\.jsonl can't be read \(No such file or directory\)"):
        read(tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match=r"can't be read \(Is a directory\)"):
        read(tmp_path)

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    file = write(tmp_path / "a.jsonl", "{}")
    monkeypatch.setattr(Path, "open", refuse)  # the mode of a file doesn't bind the superuser
    with pytest.raises(DataError, match=r"a\.jsonl can't be read \(Permission denied\)"):
        read(file)


def test_names_of_data_are_known() -> None:
    assert all(
        map(is_readable, ("a.jsonl", "b.JSON.gz", "c.csv.zst", "0001-train.parquet", "x.arrow", "y.txt"))
    )
    assert not any(map(is_readable, ("a.py", "a.gz", "README.md", "model.safetensors", "state.pkl")))


# Streaming


def generated(kind: str, rows: int) -> Iterator[bytes]:
    row = json.dumps({"instruction": "x" * 200, "output": "é" * 100}, ensure_ascii=False)
    if kind == "csv":
        yield b"instruction,output\n"
        yield from (b"x" * 200 + b"," + "é".encode() * 100 + b"\n" for _ in range(rows))
    elif kind == "list":
        yield b"["
        yield from ((", " if i else "").encode() + row.encode() for i in range(rows))
        yield b"]"
    else:
        yield from (row.encode() + b"\n" for _ in range(rows))


@pytest.mark.parametrize("kind", ["lines", "list", "csv"])
def test_a_large_file_is_read_in_little_memory_and_cut_the_same_every_time(tmp_path: Path, kind: str) -> None:
    rows = 90_000 if kind == "lines" else 30_000
    file = tmp_path / ("a.csv" if kind == "csv" else "a.json")
    with file.open("wb") as sink:
        sink.writelines(generated(kind, rows))
    gc.collect()
    tracemalloc.start()
    try:
        firsts, found = [], 0
        for chunk in chunks(file):
            firsts.append(chunk.first)
            found += count_rows(chunk)
            if len(firsts) % 8 == 1:
                assert sum(1 for _ in parse_rows(chunk)) == count_rows(chunk)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == rows
    assert file.stat().st_size > 5 * CHUNK
    assert peak < 16 * CHUNK
    assert firsts == [chunk.first for chunk in chunks(file)]


def test_lines_are_cut_faster_than_they_could_be_parsed(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", b"".join(generated("lines", 30_000)))
    begin = time.perf_counter()
    found = sum(map(count_rows, chunks(file)))
    cut = time.perf_counter() - begin
    begin = time.perf_counter()
    with file.open("rb") as lines:
        assert sum(1 for line in lines if json.loads(line)) == found
    assert cut < time.perf_counter() - begin


def test_a_file_that_is_not_read_to_its_end_is_closed(tmp_path: Path) -> None:
    content = jsonl(ROWS * 400)
    for name, packed in {
        "a.jsonl": content.encode(),
        "b": gzip.compress(content.encode()),
        "c.csv": comma(ROWS * 400).encode(),
    }.items():
        reading = chunks(write(tmp_path / name, packed))
        assert isinstance(next(reading), Chunk)
        reading.close()
        gc.collect()  # an open file would warn here
