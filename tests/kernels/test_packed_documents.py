import pytest
import torch

from tuner.kernels.packed_documents import (
    REMEMBERED,
    Documents,
    announce_documents,
    document_borders,
    documents_of,
    recall_documents,
)


def positions(*lengths: int) -> torch.Tensor:
    return torch.cat([torch.arange(n) for n in lengths])[None]


def test_borders() -> None:
    assert document_borders(positions(3, 2, 1)) == [0, 3, 5, 6]
    assert document_borders(positions(1)) == [0, 1]
    with pytest.raises(ValueError, match="begin at 4"):
        document_borders(positions(9)[:, 4:])


def test_what_follows_from_borders() -> None:
    row = Documents([0, 3, 5, 6], torch.device("cpu"))
    with torch.inference_mode():
        assert not row.offsets.is_inference(), "it serves training too"
    assert (row.tokens, row.longest, row.offsets.tolist(), row.offsets.dtype) == (
        6,
        3,
        [0, 3, 5, 6],
        torch.int32,
    )


def test_announced_positions_are_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.kernels.packed_documents.document_borders", pytest.fail)
    row = positions(3, 2)
    announce_documents(row, (0, 3, 5))
    assert documents_of(row).borders == (0, 3, 5)
    assert documents_of(row[None].expand(4, -1, -1)[0]) is documents_of(row), (
        "a view of the same memory is the same row"
    )
    with torch.inference_mode():
        other = positions(2, 3)
        announce_documents(other, (0, 2, 5))
        assert documents_of(other).borders == (0, 2, 5)


def test_positions_that_nobody_announced_are_read_once() -> None:
    row = positions(4, 1, 1)
    assert recall_documents(row) is None
    assert documents_of(row).borders == (0, 4, 5, 6)
    assert documents_of(row) is documents_of(row)
    announce_documents(row, ())
    assert documents_of(row).borders == (0, 4, 5, 6)


def test_other_positions_are_another_row() -> None:
    row = positions(2, 2)
    announce_documents(row, (0, 2, 4))
    assert documents_of(row.clone()).borders == (0, 2, 4)
    assert documents_of(row[:, :3]).borders == (0, 2, 3)
    row[0] = torch.arange(4)
    assert documents_of(row).borders == (0, 4), "memory that was written to holds other positions"


def test_memory_of_forgotten_rows_is_not_mistaken_for_them() -> None:
    for length in range(1, 4 * REMEMBERED):
        lengths = (length, 64 - length)
        # each is freed, and the next may lie where it lay
        assert documents_of(positions(*lengths)).borders == (0, length, 64)
