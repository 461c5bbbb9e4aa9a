"""New tokens, in a checkpoint that also sees, through the front door: their rows train, are merged, and
nothing else of it changes.
"""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROWS, SHARED, Tuner, linked, write_rows

TOKENS = ["<tool>", "客服词"]


def write_seeing(directory: Path) -> None:
    """A tiny Gemma 3 with its vision tower, and the tokenizer of minimind."""
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {
        "vocab_size": 6400,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=6399,
        boi_token_index=6398,
        eoi_token_index=6397,
    )
    torch.manual_seed(0)
    Gemma3ForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(SHARED / "tokenizers" / "minimind" / name, directory / name)


@pytest.mark.slow
def test_new_tokens_in_a_checkpoint_that_sees(tuner: Tuner, tmp_path: Path) -> None:
    if not (SHARED / "tokenizers" / "minimind").is_dir():
        pytest.skip("the shared tokenizers are not here")
    import torch
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    from tuner.models.checkpoint.files import weight_files
    from tuner.models.checkpoint.safetensors import Checkpoint

    write_seeing(tmp_path / "model")
    rows = json.loads(json.dumps(ROWS[:20], ensure_ascii=False).replace("plus", "客服词"))
    write_rows(tmp_path / "rows.jsonl", rows)
    tuner(
        "model=local",
        "model.path=model",
        "model/chat=minimind",
        f"model.new_tokens=[{','.join(TOKENS)}]",
        "data=local",
        "data.path=rows.jsonl",
        "data.length=64",
        "algo.steps=3",
        "algo.r=4",
        "algo.optim.lr=1e-2",
        "machine=cpu",
        "machine.threads=1",
        "machine.trackers=[]",
        "until=merge",
    )
    root = tmp_path / "outputs"
    before, base, merged = (
        Checkpoint(weight_files(directory))
        for directory in (tmp_path / "model", linked(root, "fetch_model"), linked(root, "merge"))
    )
    tokenizer = AutoTokenizer.from_pretrained(linked(root, "merge"), trust_remote_code=False)
    ids = [tokenizer.convert_tokens_to_ids(token) for token in TOKENS]
    assert ids == [6400, 6401]
    assert ids[1] in tokenizer("1 客服词 2").input_ids
    assert merged.specs.keys() == before.specs.keys()
    changed = {
        name
        for name in before.specs
        if base.specs[name] != merged.specs[name] or not torch.equal(base[name], merged[name])
    }
    assert not [name for name in changed if "vision" in name or "projector" in name]
    (embedding,) = [name for name in before.specs if name.endswith("embed_tokens.weight")]
    assert torch.equal(merged[embedding][:6400], before[embedding])
    assert not torch.equal(merged[embedding][6401], base[embedding][6401]), (
        "the row of a token that was read did not train"
    )
    model = AutoModelForImageTextToText.from_pretrained(linked(root, "merge"), trust_remote_code=False)
    assert model.get_input_embeddings().num_embeddings >= 6402
