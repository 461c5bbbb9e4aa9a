"""The sha256 of a file: that of hashlib, and a bar where it takes longer than a second."""

import hashlib
import re
import sys
from pathlib import Path

import pexpect
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import environment, tiny_words
from tuner.files import PIECE, sha256_of
from tuner.store.hashes import hash_file

LARGE = 1 << 30
"""bytes, which take every machine more than a second"""


@given(st.sampled_from([0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE]), st.binary(min_size=1, max_size=4))
def test_it_is_that_of_all_bytes_and_each_piece_is_told(
    tmp_path_factory: pytest.TempPathFactory, size: int, of: bytes
) -> None:
    path, content = tmp_path_factory.mktemp("hash") / "file", (of * size)[:size]
    path.write_bytes(content)
    read: list[int] = []
    assert sha256_of(path, read.append) == hash_file(path) == hashlib.sha256(content).hexdigest()
    assert sum(read) == size


def frames(said: str, columns: int) -> list[str]:
    """What a terminal showed of a bar, one after the other; each fits."""
    plain = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", said)]
    bars = [line for line in plain if "%" in line]
    assert max(map(len, bars)) <= columns
    return bars


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_large_file_has_a_bar_that_fits_the_window(tiny_model: Path, tmp_path: Path, columns: int) -> None:
    """In a run: the file is hashed before anything reads it, so what is in it does not matter here."""
    data = tmp_path / "conversations of a quarter with a long name.jsonl"
    with data.open("wb") as file:
        file.truncate(LARGE)
    env = environment({"TERM": "xterm"})
    env.pop("COLUMNS", None)
    terminal = pexpect.spawn(
        sys.executable,
        ["-m", "tuner", f"root={tmp_path / 'out'}", *tiny_words(tiny_model, data), "until=fetch"],
        env=env,
        encoding="utf-8",
        dimensions=(40, columns),
        timeout=60,
    )
    terminal.expect(r"sha256 of conver.*?[1-9]\d?%")
    shown = frames(terminal.before + terminal.after, columns)
    terminal.close(force=True)
    assert len(shown) >= 2
    assert (data.name in shown[-1]) is (columns == 120)  # else it is cut, and the bar stays
    assert "━" in shown[-1]


def test_a_small_one_shows_none(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"tuner")
    code = (
        "from pathlib import Path; from tuner.store.hashes import hash_file; "
        f"hash_file(Path({str(tmp_path / 'small')!r}))"
    )
    terminal = pexpect.spawn(
        sys.executable, ["-c", code], env=environment({"TERM": "xterm"}), encoding="utf-8"
    )
    terminal.expect(pexpect.EOF)
    assert terminal.before == ""
