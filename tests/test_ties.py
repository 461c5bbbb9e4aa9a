"""A run whose adapter is on a head that is the embedding, from the command line: what trained is what is
merged, measured, talked with and taken away.
"""

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import Tuner, linked


@pytest.mark.slow
def test_a_tied_head_with_an_adapter_in_fp32(
    tuner: Tuner, tiny: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    done = tuner(
        *tiny,
        "algo.steps=2",
        "algo.targets=[q_proj,lm_head,embed_tokens]",
        "algo.optim.lr=0.05",
        "eval.prompts=[What is 1 plus 1?]",
    )
    assert "they are two matrices now (tie_word_embeddings: false)" in done.err + done.out
    root = tmp_path / "outputs"
    merged, adapter = linked(root, "merge"), linked(root, "convert")
    with safe_open(merged / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}  # noqa: SIM118
    config = json.loads((merged / "config.json").read_text(encoding="utf-8"))
    assert (config["tie_word_embeddings"], config["dtype"]) == (False, "float32")
    model, loading = AutoModelForCausalLM.from_pretrained(merged, output_loading_info=True)
    assert not any(loading.values())
    ids = AutoTokenizer.from_pretrained(merged)("What is 1 plus 1?", return_tensors="pt")["input_ids"]
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert not torch.allclose(model(ids).logits, base(ids).logits, atol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns that its own merge would go wrong
        peft = PeftModel.from_pretrained(base, adapter).eval()
    torch.testing.assert_close(model(ids).logits, peft(ids).logits, atol=1e-5, rtol=1e-5)
    assert "merge_and_unload" in (adapter / "README.md").read_text(encoding="utf-8")
    report = json.loads((linked(root, "evaluate") / "report.json").read_text(encoding="utf-8"))
    assert report["held_out"]["loss"]["after"] < report["held_out"]["loss"]["before"]
    tuner("export", "last", "model", "taken")
    taken = AutoModelForCausalLM.from_pretrained(tmp_path / "taken")
    assert torch.equal(taken(ids).logits, model(ids).logits)


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["[q_proj,lm_head]", "[q_proj,embed_tokens]"])
def test_under_zero_3_too(tuner: Tuner, tiny: list[str], tmp_path: Path, targets: str) -> None:
    words = [
        "algo.steps=2",
        f"algo.targets={targets}",
        "algo.optim.lr=0.05",
        "machine.processes=2",
        "machine.zero=3",
        "eval.prompts=[]",
    ]
    done = tuner(*tiny, *words)
    assert "proved on these rows" in done.out + done.err
    report = json.loads(
        (linked(tmp_path / "outputs", "evaluate") / "report.json").read_text(encoding="utf-8")
    )
    assert report["held_out"]["loss"]["after"] < report["held_out"]["loss"]["before"]
