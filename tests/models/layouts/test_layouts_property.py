"""The rewriting of any geometry, against the original written out head by head: rows are picked by number,
angles turned as complex numbers, in fp64.

Nothing here is taken from the mapping that it judges.
"""

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.models.fixtures import bits, load
from tuner.models.checkpoint.files import checkpoint_files
from tuner.models.checkpoint.safetensors import Checkpoint
from tuner.models.layouts.detection import ORIGINAL
from tuner.models.layouts.rewrite import write_native, write_original

LENGTH, FFN, VOCABULARY = 11, 12, 23


@dataclass(frozen=True, kw_only=True)
class Case:
    """A checkpoint to be made."""

    layout: str
    layers: int
    groups: int
    each: int
    """query heads to a key/value head"""
    dim: int
    bias: bool
    tied: bool
    window: int
    rope: tuple[str, float] | None
    """linear or dynamic, and a factor"""
    dtype: torch.dtype
    seed: int

    @property
    def heads(self) -> int:
        return self.groups * self.each

    @property
    def hidden(self) -> int:
        return self.heads * self.dim


@st.composite
def cases(draw: st.DrawFn) -> Case:
    layout = draw(
        st.sampled_from(
            ["internlm2", "internlm3", "internlm", "baichuan", "baichuan2", "baichuan_13b", "baichuan2_13b"]
        )
    )
    old = layout.startswith("baichuan")
    rope = (
        None
        if old
        else draw(
            st.none() | st.tuples(st.sampled_from(["linear", "dynamic"]), st.sampled_from([1.0, 2.0, 3.5]))
        )
    )
    if layout == "internlm":
        rope = ("dynamic", 1.0)
    return Case(
        layout=layout,
        layers=draw(st.integers(1, 3)),
        groups=draw(st.integers(1, 3)),
        each=draw(st.integers(1, 4)) if layout in ("internlm2", "internlm3") else 1,
        dim=draw(st.sampled_from([4, 8, 12])),
        bias=not old and draw(st.booleans()),
        tied=not old and draw(st.booleans()),
        window=draw(st.sampled_from([7, 64])),
        rope=rope,
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16])),
        seed=draw(st.integers(0, 99)),
    )


def config(case: Case) -> dict[str, Any]:
    """config.json as the family writes it."""
    found: dict[str, Any] = {
        "hidden_act": "silu",
        "hidden_size": case.hidden,
        "intermediate_size": FFN,
        "num_attention_heads": case.heads,
        "num_hidden_layers": case.layers,
        "rms_norm_eps": 1e-5,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": case.tied,
        "torch_dtype": str(case.dtype).removeprefix("torch."),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "auto_map": {"AutoModel": "modeling.Model"},
    }
    if case.layout == "internlm2":
        scaling = case.rope and {"type": case.rope[0], "factor": case.rope[1]}
        return found | {
            "model_type": "internlm2",
            "num_key_value_heads": case.groups,
            "bias": case.bias,
            "rope_theta": 5e4,
            "rope_scaling": scaling,
            "max_position_embeddings": case.window,
        }
    if case.layout == "internlm3":
        scaling = case.rope and {"rope_type": case.rope[0], "factor": case.rope[1]}
        return found | {
            "model_type": "internlm3",
            "num_key_value_heads": case.groups,
            "head_dim": case.dim,
            "qkv_bias": case.bias,
            "bias": case.bias,
            "rope_theta": 5e4,
            "rope_scaling": scaling,
            "max_position_embeddings": case.window,
        }
    if case.layout == "internlm":
        return found | {
            "model_type": "internlm",
            "bias": case.bias,
            "rotary": {"base": 5e4, "type": "dynamic"},
            "max_position_embeddings": case.window,
        }
    return found | {
        "model_type": "baichuan",
        ("model_max_length" if case.layout.endswith("13b") else "max_position_embeddings"): case.window,
    }


def tensors(case: Case) -> dict[str, Tensor]:
    """A random checkpoint in the original layout."""
    generator = torch.Generator().manual_seed(case.seed)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * 1.2 / columns**0.5

    def vector(size: int, about: float) -> Tensor:
        return about + 0.3 * torch.randn(size, generator=generator)

    two = case.layout == "internlm2"
    words = (
        ("tok_embeddings", "attention_norm", "ffn_norm", "attention.wo")
        if two
        else ("embed_tokens", "input_layernorm", "post_attention_layernorm", "self_attn.o_proj")
    )
    gate, up, down = (
        ("feed_forward.w1", "feed_forward.w3", "feed_forward.w2")
        if two
        else ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    )
    rows = {
        "internlm2": {"attention.wqkv": (case.heads + 2 * case.groups) * case.dim},
        "internlm": {f"self_attn.{part}_proj": case.hidden for part in "qkv"},
        "internlm3": {
            f"self_attn.{part}_proj": (case.heads if part == "q" else case.groups) * case.dim
            for part in "qkv"
        },
    }.get(case.layout, {"self_attn.W_pack": 3 * case.hidden})
    found = {
        f"model.{words[0]}.weight": matrix(VOCABULARY, case.hidden),
        "model.norm.weight": vector(case.hidden, 1),
    }
    if not case.tied:
        found["output.weight" if two else "lm_head.weight"] = matrix(VOCABULARY, case.hidden)
    for number in range(case.layers):
        at = f"model.layers.{number}"
        for name, count in (rows | {words[3]: case.hidden}).items():
            found[f"{at}.{name}.weight"] = matrix(count, case.hidden)
            if case.bias:
                found[f"{at}.{name}.bias"] = vector(count, 0)
        found |= {f"{at}.{name}.weight": vector(case.hidden, 1) for name in words[1:3]}
        found |= {
            f"{at}.{gate}.weight": matrix(FFN, case.hidden),
            f"{at}.{up}.weight": matrix(FFN, case.hidden),
        }
        found[f"{at}.{down}.weight"] = matrix(case.hidden, FFN)
        if case.layout == "internlm3" and case.bias:
            found |= {
                f"{at}.{name}.bias": vector(size, 0)
                for name, size in ((gate, FFN), (up, FFN), (down, case.hidden))
            }
    if not two:
        found |= {
            f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.rand(case.dim // 2, generator=generator)
            for n in range(case.layers)
        }
    return {
        name: value if name.endswith("inv_freq") else value.to(case.dtype) for name, value in found.items()
    }


def part(case: Case, w: Mapping[str, Tensor], number: int, which: str, head: int, kind: str) -> Tensor:
    """The rows of one head's query, key or value, as its family's code finds them."""
    at, of = f"model.layers.{number}", "qkv".index(which)
    if case.layout == "internlm":
        name, start = f"self_attn.{which}_proj", head * case.dim
    elif case.layout == "internlm3":
        name, start = f"self_attn.{which}_proj", (head if which == "q" else head // case.each) * case.dim
    elif case.layout == "internlm2":
        group = head // case.each
        place = head % case.each if which == "q" else case.each + of - 1
        name, start = "attention.wqkv", (group * (case.each + 2) + place) * case.dim
    else:
        name, start = "self_attn.W_pack", of * case.hidden + head * case.dim
    return torch.stack([w[f"{at}.{name}.{kind}"][start + row] for row in range(case.dim)])


def turned(case: Case, x_ND: Tensor) -> Tensor:
    """Entry i and entry i + D/2 are a complex number, which turns by an angle that grows with its
    position.
    """
    base = 5e4 if case.layout.startswith("internlm") else 1e4
    kind, factor = case.rope or ("none", 1.0)
    if kind == "dynamic" and case.window < LENGTH:
        base *= (factor * LENGTH / case.window - (factor - 1)) ** (case.dim / (case.dim - 2))
    half = case.dim // 2
    out = x_ND.clone()
    for i in range(half):
        for n in range(LENGTH):
            angle = (n / factor if kind == "linear" else n) * base ** (-2 * i / case.dim)
            z = complex(x_ND[n, i], x_ND[n, i + half]) * complex(math.cos(angle), math.sin(angle))
            out[n, i], out[n, i + half] = z.real, z.imag
    return out


def slope(heads: int, head: int) -> float:
    """ALiBi's, by its closed form."""
    whole = 2 ** math.floor(math.log2(heads))
    return 2 ** (-8 * (head + 1) / whole) if head < whole else 2 ** (-4 * (2 * (head - whole) + 1) / whole)


def normed(x_NC: Tensor, weight_C: Tensor) -> Tensor:
    return x_NC / (x_NC.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight_C


def original_logits(case: Case, stored: Mapping[str, Tensor], ids: list[int]) -> Tensor:
    """What the original computes, in fp64: [N, V]."""
    w = {name: value.double() for name, value in stored.items()}
    two = case.layout == "internlm2"
    embedding = w["model.tok_embeddings.weight" if two else "model.embed_tokens.weight"]
    x_NC = torch.stack([embedding[i] for i in ids])
    for number in range(case.layers):
        at = f"model.layers.{number}."
        h_NC = normed(x_NC, w[at + ("attention_norm.weight" if two else "input_layernorm.weight")])
        out = at + ("attention.wo" if two else "self_attn.o_proj")
        for head in range(case.heads):
            q, k, v = (
                h_NC @ part(case, w, number, which, head, "weight").T
                + (part(case, w, number, which, head, "bias") if case.bias else 0)
                for which in "qkv"
            )
            if not case.layout.endswith("13b"):
                q, k = turned(case, q), turned(case, k)
            columns = w[f"{out}.weight"][:, head * case.dim : (head + 1) * case.dim]
            for n in range(LENGTH):
                scores = k[: n + 1] @ q[n] / case.dim**0.5
                if case.layout.endswith("13b"):
                    scores = scores + slope(case.heads, head) * (torch.arange(n + 1) - n)
                x_NC = x_NC.index_add(
                    0, torch.tensor([n]), (columns @ (scores.softmax(0) @ v[: n + 1]))[None]
                )
        if case.bias:
            x_NC = x_NC + w[f"{out}.bias"]
        h_NC = normed(x_NC, w[at + ("ffn_norm.weight" if two else "post_attention_layernorm.weight")])
        gate, up, down = (
            ("feed_forward.w1", "feed_forward.w3", "feed_forward.w2")
            if two
            else ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
        )
        gated, wide = (h_NC @ w[f"{at}{name}.weight"].T + w.get(f"{at}{name}.bias", 0) for name in (gate, up))
        x_NC = (
            x_NC + (gated * gated.sigmoid() * wide) @ w[f"{at}{down}.weight"].T + w.get(f"{at}{down}.bias", 0)
        )
    head = embedding if case.tied else w["output.weight" if two else "lm_head.weight"]
    if case.layout.startswith("baichuan2"):
        head = torch.stack([row / row.square().sum().sqrt() for row in head])
    return normed(x_NC, w["model.norm.weight"]) @ head.T


@settings(max_examples=55, deadline=None, derandomize=True)
@given(cases())
def test_any_geometry_computes_the_same_and_goes_back_to_the_same_bytes(case: Case) -> None:
    stored = tensors(case)
    ids = torch.randint(
        0, VOCABULARY, (1, LENGTH), generator=torch.Generator().manual_seed(case.seed)
    ).tolist()[0]
    with tempfile.TemporaryDirectory() as name:
        source, native, back = (Path(name) / part for part in ("source", "native", "back"))
        for path in (source, native, back):
            path.mkdir()
        save_file(stored, source / "model.safetensors")
        (source / "config.json").write_text(json.dumps(config(case)))
        write_native(checkpoint_files(source), case.layout, native, say=lambda _: None)

        with torch.no_grad():
            logits = load(native, "sdpa")(input_ids=torch.tensor([ids])).logits[0]
        # A head that is normalised in bf16 has its rounding, of 2 ** -9 a row; all else is exact, and
        # computed in fp32 here.
        rough = case.layout.startswith("baichuan2") and case.dtype == torch.bfloat16
        torch.testing.assert_close(
            logits.double(), original_logits(case, stored, ids), atol=3e-2 if rough else 1e-5, rtol=0
        )

        weights = Checkpoint([native / "model.safetensors"])
        write_original(weights.specs, weights.__getitem__, native / ORIGINAL, back)
        again = load_file(back / "model.safetensors")
        assert again.keys() == stored.keys()
        assert all(
            again[key].dtype == value.dtype and torch.equal(bits(again[key]), bits(value))
            for key, value in stored.items()
        )
        assert json.loads((back / "config.json").read_text()) == config(case)
