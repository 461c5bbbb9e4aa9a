from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tuner.data.tokenize.job import TokenizedRows
from tuner.data.tokenize.spool import Spool

IDS = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans()), min_size=1, max_size=9)


@given(batches=st.lists(st.lists(IDS, min_size=1, max_size=4), min_size=1, max_size=4), draw=st.data())
def test_tokens_come_back_as_they_were(
    batches: list[list[list[tuple[int, bool]]]], draw: st.DataObject, tmp_path_factory: object
) -> None:
    whole = [document for batch in batches for document in batch]
    members = np.array(
        draw.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=6)), dtype=np.int64
    )
    path = Path(tmp_path_factory.mktemp("documents")) / "spill"  # type: ignore[attr-defined]
    documents, first = Spool(path), 0
    for number, batch in enumerate(batches):
        flat = [token for document in batch for token in document]
        documents.add(made(batch, flat), file=number, first=first)
        first += len(batch)
    documents.done()
    pack = documents.pack(members)
    wanted = [token for i in members for token in whole[i]]
    assert list(zip(pack.ids.tolist(), pack.trained.tolist(), strict=True)) == wanted
    assert pack.lengths.tolist() == [len(whole[i]) for i in members]
    assert documents.trained.tolist() == [sum(trained for _, trained in document) for document in whole]
    assert documents.units.tolist() == list(range(len(whole)))
    documents.close()
    assert not path.exists()


def made(batch: list[list[tuple[int, bool]]], flat: list[tuple[int, bool]]) -> TokenizedRows:
    return TokenizedRows(
        places=np.arange(len(batch), dtype=np.int64),
        lines=np.arange(1, len(batch) + 1, dtype=np.int32),
        weights=np.ones(len(batch), dtype=np.int32),
        lengths=np.array([len(document) for document in batch], dtype=np.int32),
        ids=np.array([id_ for id_, _ in flat], dtype=np.int32),
        trained=np.array([trained for _, trained in flat], dtype=np.bool_),
        hashes=np.arange(len(batch), dtype=np.uint64),
    )


def test_a_document_may_be_wanted_several_times_or_not_at_all(tmp_path: Path) -> None:
    documents = Spool(tmp_path / "spill")
    batch = [[(7, True)], [(8, False), (9, True)], [(10, True)]]
    documents.add(
        made(batch, [token for document in batch for token in document]),
        file=0,
        first=5,
        repeats=np.array([0, 2, 1]),
    )
    documents.done()
    assert documents.units.tolist() == [6, 6, 7]
    assert documents.pack(np.array([0, 1, 2])).ids.tolist() == [8, 9, 8, 9, 10]
    documents.keep(np.array([False, True, True]))
    assert documents.pack(np.array([0, 1])).ids.tolist() == [8, 9, 10]
    documents.close()
