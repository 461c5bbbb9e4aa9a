"""Tables with changed bytes are read or refused in words: nothing crashes, and no row is made of memory that
is not the file's.

The seed is printed; TUNER_TEST_SEED=N repeats it. `scripts/test --all` damages a thousand of each kind.
"""

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from tests.conftest import REPO, Tuner, environment
from tests.data.files.damaged_table import whole
from tuner.data.files.tables import arrow
from tuner.errors import DataError

COPIES = 1000 if os.environ.get("TUNER_TEST_ALL") else 60
SEED = int(os.environ.get("TUNER_TEST_SEED") or random.SystemRandom().randrange(10**6))
SHARED = REPO.parent / "shared" / "cases" / "faults" / "arrow_crash"


@pytest.mark.parametrize("kind", ["file", "stream", "parquet"])
def test_changed_bytes_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    print("seed", SEED)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.data.files.damaged_table"),
            *(kind, str(SEED), "0", str(COPIES), str(tmp_path)),
        ],
        cwd=REPO,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    told = (
        f"seed {SEED}, {kind}: ended with {done.returncode} at {done.stdout[-40:]!r}\n{done.stderr[-2000:]}"
    )
    assert done.returncode == 0, told
    found = Counter(line.split()[1] for line in done.stdout.splitlines())
    print(kind, dict(found))
    assert found.total() == COPIES
    assert found["refused"] > found["read"] > 0


def test_text_that_is_no_utf8_is_its_rows_trouble_and_offsets_are_the_files(tmp_path: Path) -> None:
    path = tmp_path / "rows.arrow"
    good = whole("file")
    path.write_bytes(good.replace("frage 7 ä".encode(), b"frage 7 \xff\xff"))
    rows = [row for row, _ in arrow(path, path, False)]
    assert len(rows) == 60
    assert [type(row).__name__ for row in rows].count("Unreadable") == 1
    offsets = pa.py_buffer(b"\0\0\0\0\xff\0\0\0\x08\0\0\0")  # the second is behind the end
    text = pa.py_buffer(b"\xff\xfe\xff\xfe\xff\xfe\xff\xfe")  # and no UTF-8 either
    broken = pa.Array.from_buffers(pa.string(), 2, [None, offsets, text])
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, pa.schema([("x", pa.string())])) as writer:
        writer.write_batch(pa.record_batch([broken], names=["x"]))
    with pytest.raises(DataError, match="can't be read as Arrow"):
        list(arrow(path, path, False))


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the damaged files")
@pytest.mark.parametrize("name", ["bad_-11_2.arrow", "bad_-7_192.arrow"])
def test_files_that_have_crashed_end_in_a_paragraph(name: str, tuner: Tuner, tiny: list[str]) -> None:
    words = [word for word in tiny if not word.startswith("data.path")]
    done = tuner(*words, f"data.path={SHARED / name}", "until=tokenize", code=2)
    assert "can't be read as Arrow" in done.err
    assert "Traceback" not in done.err
