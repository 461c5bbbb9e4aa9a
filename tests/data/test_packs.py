from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tuner.data.packs import BATCH, SCHEMA, Pack, Packs, write_packs
from tuner.errors import StoreError


def some(count: int) -> list[Pack]:
    draw = np.random.default_rng(0)
    packs = []
    for i in range(count):
        lengths = draw.integers(1, 9, size=i % 4 + 1).astype(np.int32)
        total, documents = int(lengths.sum()), len(lengths)
        ids = draw.integers(0, 49152, size=total).astype(np.int32)
        packs.append(
            Pack(
                ids=ids,
                trained=ids % 3 == 0,
                lengths=lengths,
                files=np.zeros(documents, np.int32),
                lines=np.arange(1, documents + 1, dtype=np.int32),
            )
        )
    return packs


@pytest.mark.parametrize("count", [0, 1, BATCH - 1, BATCH, 2 * BATCH + 3])
def test_packs_come_back_as_they_were(tmp_path: Path, count: int) -> None:
    packs = some(count)
    write_packs(tmp_path / "a.arrow", packs)
    opened = Packs.open(tmp_path / "a.arrow")
    assert len(opened) == count
    for there, here in zip(opened, packs, strict=True):
        for name in ("ids", "trained", "lengths", "files", "lines"):
            assert getattr(there, name).dtype == getattr(here, name).dtype
            assert np.array_equal(getattr(there, name), getattr(here, name))


def test_an_index_out_of_range_is_refused(tmp_path: Path) -> None:
    write_packs(tmp_path / "a.arrow", some(3))
    for index in (3, -1):
        with pytest.raises(IndexError, match="of 3"):
            Packs.open(tmp_path / "a.arrow")[index]


def test_the_same_packs_are_the_same_bytes_without_metadata(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_packs(tmp_path / name, some(BATCH + 1))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert pa.ipc.open_file(str(tmp_path / "a")).schema.metadata is None


def test_ids_are_views_into_the_map(tmp_path: Path) -> None:
    write_packs(tmp_path / "a.arrow", some(3))
    assert not Packs.open(tmp_path / "a.arrow")[1].ids.flags.owndata


def test_what_is_no_file_of_packs_is_refused(tmp_path: Path) -> None:
    write_packs(tmp_path / "a.arrow", some(300))
    content = (tmp_path / "a.arrow").read_bytes()
    for name, wrong in (("cut", content[: len(content) // 2]), ("empty", b""), ("other", b"hello" * 100)):
        (tmp_path / name).write_bytes(wrong)
        with pytest.raises(StoreError, match="redo=tokenize"):
            Packs.open(tmp_path / name)
    with pa.ipc.new_file(str(tmp_path / "columns"), pa.schema([SCHEMA.field("ids")])):
        pass
    with pytest.raises(StoreError, match="other columns"):
        Packs.open(tmp_path / "columns")
    with pytest.raises(StoreError, match="missing"):
        Packs.open(tmp_path / "missing")
