"""Models with a recurrent state or a convolution in their layers, from the command line: one document a
row, said, proved, merged and measured.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import Tuner, linked
from tests.models.hybrids import hybrid


def written(kind: str, tiny_model: Path, out: Path) -> Path:
    """A tiny hybrid with the tokenizer of the tiny model."""
    size = json.loads((tiny_model / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    AutoModelForCausalLM.from_config(hybrid(kind, vocab_size=size)).save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_model / name, out / name)
    return out


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        pytest.param("lfm2", ("algo.optim.lr=0.01",), marks=pytest.mark.slow),
        pytest.param("qwen3_next", ("algo.optim.lr=0.01",), marks=pytest.mark.slow),
        pytest.param("falcon_h1", ("algo.optim.lr=0.01", "machine.micro_batch=4"), marks=pytest.mark.slow),
        pytest.param("bamba", ("algo=full", "algo.optim.lr=0.01"), marks=pytest.mark.slow),
        pytest.param("lfm2", ("machine.processes=2", "machine.zero=3"), marks=pytest.mark.slow),
    ],
)
def test_a_hybrid_trains_one_document_a_row(
    tuner: Tuner, tiny: list[str], tiny_model: Path, tmp_path: Path, kind: str, more: tuple[str, ...]
) -> None:
    model = written(kind, tiny_model, tmp_path / "hybrid")
    words = [word for word in tiny if not word.startswith(("model.path", "algo.steps", "algo.r="))]
    if "algo=full" not in more:
        words.append("algo.r=4")
    done = tuner(*words, f"model.path={model}", "algo.steps=2", *more)
    said = done.out + done.err
    assert "each document trains as a row of its own, one at a time" in said
    assert "proved on these rows: packed 0e+00" in said or "mask right" in said
    root = tmp_path / "outputs"
    facts = json.loads((linked(root, "train") / "manifest.json").read_text(encoding="utf-8"))["facts"]
    assert facts["rows"] == "documents"
    assert facts["micro_batch"] == 1
    assert facts["proofs"]["packed"] == 0
    assert facts["proofs"]["attention"] < 2e-4
    report = json.loads((linked(root, "evaluate") / "report.json").read_text(encoding="utf-8"))
    assert report["held_out"]["loss"]["after"] < report["held_out"]["loss"]["before"]
    merged, loading = AutoModelForCausalLM.from_pretrained(linked(root, "merge"), output_loading_info=True)
    assert not any(loading.values())
    assert merged.dtype == torch.float32
