import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.data import sources
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
        assert sources.locate([name]) == {file.name: file}


def test_several_files_keep_their_order(folder: Path) -> None:
    files = [write(folder / name, "{}") for name in ("b.jsonl", "x/a.jsonl", "x/c.jsonl")]
    assert sources.locate(["b.jsonl", "x/*.jsonl"]) == {"0000-b.jsonl": files[0], "0001-a.jsonl": files[1], "0002-c.jsonl": files[2]}
    assert list(sources.locate(["**/*.jsonl"]).values()) == files


def test_the_home_directory_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder / "home"))
    file = write(folder / "home" / "a.jsonl", "{}")
    assert sources.locate(["~/a.jsonl"]) == {"a.jsonl": file}


def test_what_is_missing_is_said_with_what_lies_near(folder: Path) -> None:
    write(folder / "support.jsonl", "{}")
    with pytest.raises(DataError, match=r"no file 'suport\.jsonl' in .*Did you mean support\.jsonl\?"):
        sources.locate(["suport.jsonl"])
    with pytest.raises(DataError, match=r"holds support\.jsonl\."):
        sources.locate(["*.csv"])
    with pytest.raises(DataError, match="no directory"):
        sources.locate(["nowhere/a.jsonl"])
    with pytest.raises(DataError, match="is a directory"):
        sources.locate(["."])


def test_a_package_is_found_without_running_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "site" / "carrier" / "__init__.py", "raise SystemExit('imported')")
    file = write(folder / "site" / "carrier" / "inner" / "a.jsonl", "{}")
    monkeypatch.syspath_prepend(str(folder / "site"))
    assert sources.locate(["inner/a.jsonl"], "carrier") == {"a.jsonl": file}
    assert sources.locate(["a.jsonl"], "carrier.inner") == {"a.jsonl": file}
    assert "carrier" not in sys.modules
    with pytest.raises(ConfigError, match="no package 'carier' is installed"):
        sources.locate(["a.jsonl"], "carier")


JSON_ROWS = st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=8) | st.integers() | st.none(), max_size=3), max_size=6)


@settings(deadline=None, max_examples=40)
@given(rows=JSON_ROWS, ascii_only=st.booleans(), indent=st.sampled_from([None, 1]), bom=st.booleans())
def test_lines_and_lists_give_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], ascii_only: bool, indent: int | None, bom: bool
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    mark = b"\xef\xbb\xbf" if bom else b""
    lines = write(folder / "a.json", mark + "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n\n" for row in rows).encode())
    whole = write(folder / "b.jsonl", mark + json.dumps(rows, ensure_ascii=ascii_only, indent=indent).encode())
    assert [row for _, row in sources.read(lines)] == rows
    assert list(sources.read(whole)) == list(enumerate(rows, start=1))


def test_blank_lines_count_as_lines(tmp_path: Path) -> None:
    assert list(sources.read(write(tmp_path / "a.jsonl", '\r\n{"a": 1}\r\n\n{"a": 2}'))) == [(2, {"a": 1}), (4, {"a": 2})]


def test_a_line_of_turns_is_a_row_and_a_line_of_rows_is_the_set(tmp_path: Path) -> None:
    turns = '[{"role": "user", "content": "a"}]\n'
    assert len(list(sources.read(write(tmp_path / "a.json", turns)))) == 1
    assert list(sources.read(write(tmp_path / "b.json", '[{"instruction": "a"}, {"instruction": "b"}]')))[1][0] == 2
    assert len(list(sources.read(write(tmp_path / "c.json", f"[{turns}, {turns}]")))) == 2


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    assert list(sources.read(write(tmp_path / "a.jsonl", b""))) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": 1}\n{"a": 1,}\n', r"a\.jsonl:2: no valid JSON"),
        (b'{"a": 1}\n{"a": "\xff"}\n', r"a\.jsonl:2: no valid UTF-8 \(byte 0xff at 7\)"),
        (b'{"a": 1}\n' + b"[" * 200_000 + b"\n", r"a\.jsonl:2: JSON nested too deeply"),
        (b'[\n{"a": 1},\n{"a"}\n]', r"a\.jsonl:3: no valid JSON"),
        (b'[\n{"a": "\xff"}]', r"a\.jsonl: no valid UTF-8"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        list(sources.read(write(tmp_path / "a.jsonl", content)))


def test_good_rows_come_before_the_error_and_ten_bad_ones_are_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"a": 1}\n' + "oops\n" * 30)
    rows = sources.read(file)
    assert next(rows) == (1, {"a": 1})
    with pytest.raises(DataError, match="10 rows can't be used") as caught:
        next(rows)
    assert str(caught.value).count("no valid JSON") == 10
