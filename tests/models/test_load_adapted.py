"""An adapter beside a base in 4 or 8 bits: what is loaded to answer is the model that trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from tests.models.tiny import tiny_model
from tuner.files import write_json
from tuner.models import load
from tuner.models.checkpoint.safetensors import Checkpoint
from tuner.models.generate import generate_answers
from tuner.models.load_adapted import load_adapted
from tuner.models.lora.add import add_lora
from tuner.models.lora.export import write_adapter
from tuner.models.lora.layers import adapter_config
from tuner.models.lora.tied_head import tied_head_in

pytest.importorskip("bitsandbytes", reason="installed by the extra `quant`")


def trained(base: Path, out: Path, quant: str, **settings: Any) -> Any:
    """The model as training leaves it, with its adapter in `out` as convert writes it."""
    model = load.load_model(base, dtype=torch.bfloat16, device="cpu", quant=quant, attention="sdpa")
    settings = {"targets": "all-linear"} | settings
    peft = add_lora(model, r=4, alpha=8, dropout=0.1, seed=0, **settings).eval()
    draw = torch.Generator().manual_seed(1)
    for name, parameter in peft.named_parameters():
        if parameter.requires_grad and ".lora_A" not in name:
            parameter.data = parameter.data + torch.randn(parameter.shape, generator=draw) * 0.2
    weights = {
        name: tensor.contiguous()
        for name, tensor in get_peft_model_state_dict(peft, save_embedding_layers=False).items()
    }
    out.mkdir()
    save_file(weights, out / "weights")
    write_json(out / "settings.json", adapter_config(peft))
    tie = tied_head_in(base, [name.removeprefix("base_model.model.") for name in weights])
    (out / "adapter").mkdir()
    write_adapter(
        Checkpoint([out / "weights"]), out / "settings.json", out / "adapter", "", quant=quant, tie=tie
    )
    return peft


@pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")
@pytest.mark.parametrize(
    ("quant", "tied", "settings"),
    [
        ("nf4", False, {}),
        ("int8", False, {}),
        ("nf4", False, {"dora": True}),
        ("nf4", True, {"new_token_ids": [7, 9]}),
        ("nf4", True, {"targets": ("q_proj", "lm_head")}),
    ],
)
def test_it_is_the_model_that_trained_and_talks(
    tmp_path: Path, quant: str, tied: bool, settings: dict[str, Any]
) -> None:
    base = tmp_path / "base"
    tiny_model(tied=tied).to(torch.bfloat16).save_pretrained(base)
    peft = trained(base, tmp_path / "trained", quant, **settings)
    model = load_adapted(
        base, tmp_path / "trained" / "adapter", dtype=torch.bfloat16, device="cpu", quant=quant
    )
    ids = [*range(100, 116), 7]
    assert torch.equal(model(torch.tensor([ids])).logits, peft(torch.tensor([ids])).logits)
    assert not model.training
    (answer,) = generate_answers(model, [ids], end_id=0, max_new_tokens=8)
    out = peft.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=8, eos_token_id=0)
    assert [id_ for id_ in out[0, len(ids) :].tolist() if id_] == answer
