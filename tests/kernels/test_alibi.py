"""Llama with ALiBi: against scores written out in fp64, under every attention, packed, padded and cached."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from tuner.kernels import alibi
from tuner.kernels.attention import register_attention

ATTENTIONS = ["eager", "sdpa", "tuner"]


def model(attention: str, *, heads: int = 5, groups: int = 5) -> alibi.AlibiLlamaForCausalLM:
    """Two layers, the same weights every time, of order 1 so that every part matters."""
    alibi.register_alibi()
    register_attention()
    config = alibi.AlibiConfig(
        vocab_size=97,
        hidden_size=16 * heads,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=32,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(
        config, attn_implementation=attention, trust_remote_code=False
    ).eval()
    for parameter in made.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=1.2 * parameter.shape[1] ** -0.5)
    return made


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(1, 97, shape, generator=torch.Generator().manual_seed(1))


def test_slopes() -> None:
    assert alibi.slopes(8) == [2.0**-i for i in range(1, 9)]
    forty = alibi.slopes(40)
    assert forty[:32] == [2 ** (-i / 4) for i in range(1, 33)]
    assert forty[32:] == [2 ** (-i / 8) for i in (1, 3, 5, 7, 9, 11, 13, 15)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", [5, 40])
def test_columns_are_distances(dtype: torch.dtype, heads: int) -> None:
    positions = torch.tensor([[0, 1, 2, 127, 128, 129, 1000, 4000, 4001, 4095]])
    q, k = alibi.distance_columns(positions, heads, 128**-0.5, dtype)
    assert q.dtype == k.dtype == dtype
    scores = (q.double() @ k.double().transpose(2, 3) * 128**-0.5)[0]
    slope = torch.tensor(alibi.slopes(heads), dtype=torch.float64)[:, None, None]
    expected = slope * (positions[0][None, :] - positions[0][:, None])
    # Softmax sees differences of a row only, and their slope is off by 2 ** -17 at most (twice that where
    # rounding met rounding).
    torch.testing.assert_close(scores - scores[..., :1], expected - expected[..., :1], atol=0, rtol=2**-16)
    # What is equal along a row is small, so that a score of a near key is not rounded as a large number is.
    assert scores.diagonal(dim1=1, dim2=2).abs().max() < (1e-3 if dtype == torch.float32 else 0.1)


def explicit(layer: alibi.AlibiAttention, hidden_NC: torch.Tensor) -> torch.Tensor:
    """One document through one layer's attention, a head and a query at a time, in fp64."""
    wq, wk, wv, wo = (p.weight.double() for p in (layer.q_proj, layer.k_proj, layer.v_proj, layer.o_proj))
    x, dim = hidden_NC.double(), layer.head_dim
    heads, each = wq.shape[0] // dim, wq.shape[0] // wk.shape[0]
    out = torch.zeros_like(x)
    for h, slope in enumerate(alibi.slopes(heads)):
        own, shared = slice(h * dim, (h + 1) * dim), slice(h // each * dim, (h // each + 1) * dim)
        q, k, v = x @ wq[own].T, x @ wk[shared].T, x @ wv[shared].T
        for n in range(len(x)):
            scores = k[: n + 1] @ q[n] * dim**-0.5 + slope * (torch.arange(n + 1) - n)
            out[n] += wo[:, own] @ (scores.softmax(0) @ v[: n + 1])
    return out


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(("heads", "groups"), [(5, 5), (4, 2)])
def test_attention_is_the_formula(attention: str, heads: int, groups: int) -> None:
    made = model(attention, heads=heads, groups=groups)
    seen: dict[str, torch.Tensor] = {}
    layer = made.model.layers[1].self_attn
    layer.register_forward_hook(
        lambda _, _args, kwargs, out: seen.update(x=kwargs["hidden_states"][0], out=out[0][0]),
        with_kwargs=True,
    )
    with torch.no_grad():
        made(input_ids=ids(1, 150), position_ids=torch.arange(150)[None], use_cache=False)
        torch.testing.assert_close(seen["out"].double(), explicit(layer, seen["x"]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_documents_compute_and_learn_as_if_alone(attention: str, dtype: torch.dtype) -> None:
    lengths = (7, 1, 19)
    row, made = ids(1, sum(lengths)), model(attention).to(dtype)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    packed = made(input_ids=row, position_ids=positions, use_cache=False).logits[0]
    alone = torch.cat(
        [
            made(input_ids=p, position_ids=torch.arange(p.shape[1])[None], use_cache=False).logits[0]
            for p in row.split(lengths, dim=1)
        ]
    )
    tolerance = 1e-5 if dtype == torch.float32 else 6e-2
    torch.testing.assert_close(packed, alone, atol=tolerance, rtol=tolerance)
    grad = torch.randn(packed.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    weights = [made.model.layers[0].self_attn.q_proj.weight, made.model.embed_tokens.weight]
    for found, wanted in zip(
        torch.autograd.grad(packed, weights, grad), torch.autograd.grad(alone, weights, grad), strict=True
    ):
        assert (found - wanted).float().norm() / wanted.float().norm() < (
            1e-5 if dtype == torch.float32 else 3e-2
        )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_padding_on_either_side_changes_nothing(attention: str) -> None:
    made, text = model(attention), ids(1, 20)
    expected = made(input_ids=text).logits[0]
    for left, right in ((6, 0), (0, 6)):
        padded = torch.nn.functional.pad(text, (left, right))
        mask = torch.nn.functional.pad(torch.ones_like(text), (left, right))
        found = made(input_ids=padded, attention_mask=mask).logits[0, left : left + 20]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@torch.no_grad()
def test_decoding_with_a_cache_is_decoding_without(attention: str, cache: str) -> None:
    made = model(attention)
    made.generation_config = GenerationConfig(pad_token_id=0)
    text = torch.nn.functional.pad(ids(2, 20), (3, 0))
    mask = (text != 0).long()
    wanted = made.generate(text, attention_mask=mask, max_new_tokens=40, do_sample=False, use_cache=False)
    found = made.generate(
        text,
        attention_mask=mask,
        max_new_tokens=40,
        do_sample=False,
        cache_implementation=cache,
        disable_compile=True,
    )
    assert torch.equal(found, wanted)


def test_without_alibi_it_would_be_another_model() -> None:
    made, text = model("sdpa"), ids(1, 20)
    with torch.no_grad():
        before = made(input_ids=text).logits
        made.model.rotary_emb.inv_freq.mul_(3.0)  # rope is idle
        assert torch.equal(made(input_ids=text).logits, before)
        longer = made(
            input_ids=text, position_ids=2 * torch.arange(20)[None], attention_mask=torch.ones_like(text)
        ).logits
    assert (longer - before).abs().max() > 0.1


def test_a_checkpoint_comes_back_as_it_was_and_plain_transformers_refuses_it(tmp_path: Path) -> None:
    made = model("sdpa")
    made.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False)
    assert isinstance(again, alibi.AlibiLlamaForCausalLM)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in made.state_dict().items())
    code = (
        f"from transformers import AutoConfig; AutoConfig.from_pretrained({str(tmp_path)!r}, "
        "trust_remote_code=False)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert alibi.MODEL_TYPE in done.stderr
