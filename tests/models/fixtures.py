"""The tiny original-layout checkpoints of the shared fixtures, and what the original code computed on them:
what tests of layouts measure against.

directory(name)                a fixture, or the test is skipped
native(name, layout, out)      the same checkpoint, rewritten
load(path, attention)          the model in a directory, fp32, without remote code
check_logits, check_greedy, check_training, check_long      that model against reference.safetensors
check_inverse(original, native, out)                        the way back: names, dtypes, bytes
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from tests.conftest import SHARED
from tuner.kernels import alibi
from tuner.kernels.attention import register_attention
from tuner.models.checkpoint.files import checkpoint_files, weight_files
from tuner.models.checkpoint.safetensors import Checkpoint
from tuner.models.layouts.detection import ORIGINAL
from tuner.models.layouts.rewrite import write_native, write_original

ATOL = 1e-5
"""of logits in fp32; a verified rewriting stays below 5.5e-6, the smallest mistake tried moves them by
4e-5
"""


def directory(name: str) -> Path:
    """The fixture of that name; skips the test where it is absent."""
    path = SHARED / "fixtures" / "models" / name
    if not path.is_dir():
        pytest.skip("the shared fixtures are not here")
    return path


def reference(name: str) -> dict[str, Tensor]:
    """What the original code computed."""
    return load_file(directory(name) / "reference.safetensors")


def native(name: str, layout: str, out: Path) -> Path:
    """The fixture rewritten into `out`, which is made."""
    out.mkdir(parents=True)
    write_native(checkpoint_files(directory(name)), layout, out, say=lambda _: None)
    return out


def load(path: Path, attention: str = "eager") -> PreTrainedModel:
    """The model in a directory, fp32, in eval mode; every tensor is found and none is left over."""
    alibi.register_alibi()
    register_attention()
    model, found = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=torch.float32,
        attn_implementation=attention,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
    )
    assert not any(found.values()), found
    return model.eval()


@torch.no_grad()
def check_logits(model: PreTrainedModel, expected: dict[str, Tensor]) -> None:
    """Left- and right-padded, wherever a token is no padding."""
    for side in ("", "_right"):
        mask = expected[f"attention_mask{side}"]
        logits = model(input_ids=expected[f"input_ids{side}"], attention_mask=mask).logits
        seen = mask.bool()
        torch.testing.assert_close(logits[seen], expected[f"logits{side}"][seen], atol=ATOL, rtol=0)
        assert torch.equal(logits[seen].argmax(-1), expected[f"logits{side}"][seen].argmax(-1))


@torch.no_grad()
def check_packed(model: PreTrainedModel, expected: dict[str, Tensor]) -> None:
    """Both texts one after the other in a row, with positions that begin anew, as training packs them. The
    model was loaded with attention "tuner".
    """
    seen = expected["attention_mask_right"].bool()
    ids_1N = torch.cat([row[kept] for row, kept in zip(expected["input_ids_right"], seen, strict=True)])[None]
    positions_1N = torch.cat([torch.arange(int(kept.sum())) for kept in seen])[None]
    logits = model(input_ids=ids_1N, position_ids=positions_1N, attention_mask=None, use_cache=False).logits[
        0
    ]
    torch.testing.assert_close(logits, expected["logits_right"][seen], atol=ATOL, rtol=0)


def check_greedy(model: PreTrainedModel, expected: dict[str, Tensor]) -> None:
    """Cached decoding of the left-padded batch, and of its first row alone."""
    for ids, mask, wanted in (
        (expected["input_ids"], expected["attention_mask"], expected["greedy_ids"]),
        (expected["input_ids"][:1], expected["attention_mask"][:1], expected["greedy_ids_row0"]),
    ):
        assert torch.equal(greedy(model, ids, mask), wanted)


def greedy(model: PreTrainedModel, ids: Tensor, mask: Tensor | None = None, *, cache: bool = True) -> Tensor:
    """Eight tokens, each the likeliest."""
    model.generation_config = GenerationConfig(pad_token_id=0)
    mask = torch.ones_like(ids) if mask is None else mask
    found = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, use_cache=cache)
    return found[:, ids.shape[1] :]


def check_training(model: PreTrainedModel, expected: dict[str, Tensor], *, tied: bool = False) -> None:
    """The loss of the right-padded batch within 1e-6, and the 2-norm of the body's gradient. With a tied
    head the shared matrix is body.
    """
    model.train()
    model.zero_grad()
    loss = model(
        input_ids=expected["input_ids_right"],
        attention_mask=expected["attention_mask_right"],
        labels=expected["labels"],
    ).loss
    torch.testing.assert_close(loss.detach(), expected["train_loss"][0], atol=1e-6, rtol=0)
    loss.backward()
    head = None if tied else model.get_output_embeddings().weight
    squares = [
        p.grad.double().square().sum() for p in model.parameters() if p.grad is not None and p is not head
    ]
    torch.testing.assert_close(
        torch.stack(squares).sum().sqrt(), expected["train_grad_norm_body"][0].double(), atol=0, rtol=1e-6
    )
    model.eval()


@torch.no_grad()
def check_long(model: PreTrainedModel, expected: dict[str, Tensor], key: str = "logits_long") -> None:
    """One pass beyond the window, on a model that has seen nothing yet."""
    logits = model(input_ids=expected["input_ids_long"]).logits
    torch.testing.assert_close(logits, expected[key], atol=ATOL, rtol=0)


def check_inverse(original: Path, rewritten: Path, out: Path) -> None:
    """An untrained rewritten checkpoint, written in its original layout into `out` (which is made), is
    what it was: names, dtypes, bytes, settings.
    """
    out.mkdir(parents=True)
    weights = Checkpoint(weight_files(rewritten))
    write_original(weights.specs, weights.__getitem__, rewritten / ORIGINAL, out)
    check_same(original, out)
    assert json.loads((out / "config.json").read_text()) == json.loads((original / "config.json").read_text())


def check_same(original: Path, written: Path) -> None:
    """The same tensors in both directories: names, dtypes, shapes and bytes; in which files they lie is
    free.
    """
    before, after = Checkpoint(weight_files(original)), Checkpoint(weight_files(written))
    assert before.specs == after.specs
    for name in before.specs:
        assert torch.equal(bits(before[name]), bits(after[name])), name


def bits(value: Tensor) -> Tensor:
    """The bytes of a tensor."""
    return value.contiguous().reshape(-1).view(torch.uint8)
