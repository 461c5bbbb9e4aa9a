import numpy as np
import pytest

from tuner.data.tokens import Pack, Packs
from tuner.train.batch import collate, count_targets

NONE = np.zeros(2, dtype=np.int32)


def test_the_example_of_the_docstring() -> None:
    pack = Pack(
        ids=np.array([1, 2, 30, 4, 50], dtype=np.int32),
        trained=np.array([0, 0, 1, 0, 1], dtype=bool),
        lengths=np.array([3, 2], dtype=np.int32),
        files=NONE,
        lines=NONE,
    )
    batch = collate([pack, pack])
    assert batch.ids_1N.tolist() == [[1, 2, 30, 4, 50] * 2]
    assert batch.positions_1N.tolist() == [[0, 1, 2, 0, 1] * 2]
    assert batch.keep_M.tolist() == [1, 3, 6, 8]
    assert batch.targets_M.tolist() == [30, 50, 30, 50]
    assert count_targets([pack, pack]) == 4


def test_counts_agree(packs: Packs) -> None:
    assert all(collate([pack]).targets_M.shape[0] == count_targets([pack]) for pack in packs)


def test_lengths_must_cover_the_pack() -> None:
    pack = Pack(
        ids=np.arange(3, dtype=np.int32), trained=np.ones(3, dtype=bool), lengths=np.array([2], dtype=np.int32), files=NONE[:1], lines=NONE[:1]
    )
    with pytest.raises(ValueError, match="2 tokens together, the packs 3"):
        collate([pack])
