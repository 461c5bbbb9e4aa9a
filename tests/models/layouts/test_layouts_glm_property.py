"""ChatGLM, Qwen and MiniCPM of other geometries: the rewritten model computes what a reference computes on
the original tensors, and goes back byte by byte.

The reference is written here, in float64, head by head and layer by layer from the families' formulas; it
shares nothing with the rewriting.
"""

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import silu

from tests.models.fixtures import check_inverse, load
from tuner.models.layouts.rewrite import write_native

few = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
Weights = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A geometry."""

    layers: int
    groups: int
    ratio: int
    """query heads of a key/value head"""
    dim: int
    ffn: int
    extra: int
    """what the hidden size has beyond that of all heads together, where a family allows it"""
    seed: int

    @property
    def heads(self) -> int:
        return self.groups * self.ratio


shapes = st.builds(
    Shape,
    layers=st.integers(1, 3),
    groups=st.integers(1, 3),
    ratio=st.integers(1, 4),
    dim=st.sampled_from([4, 8, 12]),
    ffn=st.integers(3, 17),
    extra=st.sampled_from([0, 4, 10]),
    seed=st.integers(0, 99),
)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
VOCABULARY, LENGTH = 23, 11


def draw(seed: int, sizes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> Weights:
    """Random weights: matrices that keep the scale, norms about 1."""
    torch.manual_seed(seed)
    value = {1: lambda size: 0.3 * torch.randn(size), 2: lambda size: torch.randn(size) / size[-1] ** 0.5}
    made = {
        name: value[len(size)](size) + (1 if "norm" in name or ".ln_" in name else 0)
        for name, size in sizes.items()
    }
    return {name: tensor.to(dtype) for name, tensor in made.items()}


def norm(x_NC: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x_NC / (x_NC.square().mean(-1, keepdim=True) + eps).sqrt()


def half_split(base: float, divisor: float = 1) -> Callable[[Tensor, int], Tensor]:
    """Rope as in Llama: dimension i turns with i + D/2."""

    def turn(x_D: Tensor, position: int) -> Tensor:
        half, out = len(x_D) // 2, x_D.clone()
        for i in range(half):
            angle = position / divisor * base ** (-2 * i / len(x_D))
            out[i] = x_D[i] * math.cos(angle) - x_D[i + half] * math.sin(angle)
            out[i + half] = x_D[i + half] * math.cos(angle) + x_D[i] * math.sin(angle)
        return out

    return turn


def pairs(base: float, divisor: float = 1) -> Callable[[Tensor, int], Tensor]:
    """Rope as in ChatGLM: in the first half of a head, dimension 2i turns with 2i + 1."""

    def turn(x_D: Tensor, position: int) -> Tensor:
        half, out = len(x_D) // 2, x_D.clone()
        for i in range(0, half, 2):
            angle = position / divisor * base ** (-i / half)
            out[i] = x_D[i] * math.cos(angle) - x_D[i + 1] * math.sin(angle)
            out[i + 1] = x_D[i + 1] * math.cos(angle) + x_D[i] * math.sin(angle)
        return out

    return turn


def attend(heads: list[tuple[Tensor, Tensor, Tensor]], turn: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Causal attention, for each head its own q, k, v of (N, D) → all heads beside each other."""
    out = []
    for query, key, value in heads:
        query, key = (torch.stack([turn(x, n) for n, x in enumerate(rows)]) for rows in (query, key))
        scores = query @ key.T / query.shape[1] ** 0.5
        future = torch.ones_like(scores).triu(1).bool()
        out.append(scores.masked_fill(future, -math.inf).softmax(-1) @ value)
    return torch.cat(out, dim=1)


def chatglm(
    w: Weights, ids: list[int], shape: Shape, turn: Callable[[Tensor, int], Tensor], eps: float, by_head: bool
) -> Tensor:
    dim, x = shape.dim, w["transformer.embedding.word_embeddings.weight"][ids]
    for layer in range(shape.layers):
        at = f"transformer.encoder.layers.{layer}"
        y = (
            norm(x, w[f"{at}.input_layernorm.weight"], eps)
            @ w[f"{at}.self_attention.query_key_value.weight"].T
        )
        if (bias := f"{at}.self_attention.query_key_value.bias") in w:
            y = y + w[bias]
        heads = []
        for head in range(shape.heads):
            group = head if by_head else head // shape.ratio
            if by_head:
                starts = [(3 * head + kind) * dim for kind in range(3)]
            else:
                starts = [head * dim, (shape.heads + group) * dim, (shape.heads + shape.groups + group) * dim]
            query, key, value = (y[:, start : start + dim] for start in starts)
            heads.append((query, key, value))
        x = x + attend(heads, turn) @ w[f"{at}.self_attention.dense.weight"].T
        y = norm(x, w[f"{at}.post_attention_layernorm.weight"], eps) @ w[f"{at}.mlp.dense_h_to_4h.weight"].T
        x = x + (silu(y[:, : shape.ffn]) * y[:, shape.ffn :]) @ w[f"{at}.mlp.dense_4h_to_h.weight"].T
    return (
        norm(x, w["transformer.encoder.final_layernorm.weight"], eps) @ w["transformer.output_layer.weight"].T
    )


def qwen(
    w: Weights, ids: list[int], shape: Shape, turn: Callable[[Tensor, int], Tensor], eps: float
) -> Tensor:
    dim, hidden, x = shape.dim, shape.heads * shape.dim, w["transformer.wte.weight"][ids]
    for layer in range(shape.layers):
        at = f"transformer.h.{layer}"
        y = (
            norm(x, w[f"{at}.ln_1.weight"], eps) @ w[f"{at}.attn.c_attn.weight"].T
            + w[f"{at}.attn.c_attn.bias"]
        )
        heads = []
        for head in range(shape.heads):
            query, key, value = (
                y[:, kind * hidden + head * dim : kind * hidden + (head + 1) * dim] for kind in range(3)
            )
            heads.append((query, key, value))
        x = x + attend(heads, turn) @ w[f"{at}.attn.c_proj.weight"].T
        y = norm(x, w[f"{at}.ln_2.weight"], eps)
        x = (
            x
            + (y @ w[f"{at}.mlp.w1.weight"].T * silu(y @ w[f"{at}.mlp.w2.weight"].T))
            @ w[f"{at}.mlp.c_proj.weight"].T
        )
    return norm(x, w["transformer.ln_f.weight"], eps) @ w["lm_head.weight"].T


def minicpm(
    w: Weights, ids: list[int], shape: Shape, turn: Callable[[Tensor, int], Tensor], config: dict[str, Any]
) -> Tensor:
    dim, eps, x = shape.dim, config["rms_norm_eps"], w["model.embed_tokens.weight"][ids] * config["scale_emb"]
    depth = config["scale_depth"] / math.sqrt(shape.layers)
    for layer in range(shape.layers):
        at = f"model.layers.{layer}"
        y = norm(x, w[f"{at}.input_layernorm.weight"], eps)
        query, key, value = (
            y @ w[f"{at}.self_attn.{one}_proj.weight"].T + w.get(f"{at}.self_attn.{one}_proj.bias", 0)
            for one in "qkv"
        )
        heads = []
        for head in range(shape.heads):
            mine, group = (
                slice(head * dim, (head + 1) * dim),
                slice(head // shape.ratio * dim, (head // shape.ratio + 1) * dim),
            )
            heads.append((query[:, mine], key[:, group], value[:, group]))
        y = attend(heads, turn) @ w[f"{at}.self_attn.o_proj.weight"].T + w.get(
            f"{at}.self_attn.o_proj.bias", 0
        )
        x = x + y * depth
        y = norm(x, w[f"{at}.post_attention_layernorm.weight"], eps)
        y = silu(y @ w[f"{at}.mlp.gate_proj.weight"].T) * (y @ w[f"{at}.mlp.up_proj.weight"].T)
        x = x + y @ w[f"{at}.mlp.down_proj.weight"].T * depth
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return (
        norm(x, w["model.norm.weight"], eps) / (config["hidden_size"] / config["dim_model_base"])
    ) @ head.T


def holds(
    config: dict[str, Any], weights: Weights, layout: str, expected: Callable[[Weights, list[int]], Tensor]
) -> None:
    """Write the checkpoint, rewrite it, compare logits with the reference on one text, and go back."""
    ids = torch.randint(0, VOCABULARY, (1, LENGTH))
    with tempfile.TemporaryDirectory() as path:
        original, native = Path(path) / "original", Path(path) / "native"
        original.mkdir()
        native.mkdir()
        (original / "config.json").write_text(json.dumps(config))
        save_file(weights, original / "model.safetensors", metadata={"format": "pt"})
        files = {name: original / name for name in ("config.json", "model.safetensors")}
        write_native(files, layout, native, say=lambda _: None)
        with torch.no_grad():
            logits = load(native, "eager")(input_ids=ids).logits[0]
        wanted = expected({name: tensor.double() for name, tensor in weights.items()}, ids[0].tolist())
        torch.testing.assert_close(
            logits.double(), wanted, atol=1e-5 * max(1.0, float(wanted.abs().max())), rtol=0
        )
        check_inverse(original, native, Path(path) / "back")


@pytest.mark.parametrize(
    ("layout", "ratio"),
    [("chatglm2", 1), ("chatglm2", 4), ("chatglm2", 50), ("chatglm3", 1), ("chatglm3", 50), ("glm4", 500)],
)
@settings(few, max_examples=4)
@given(shape=shapes, dtype=dtypes, by_head=st.booleans(), bias=st.booleans())
def test_chatglm(
    layout: str, ratio: int, shape: Shape, dtype: torch.dtype, by_head: bool, bias: bool
) -> None:
    hidden, width = shape.heads * shape.dim + shape.extra, shape.heads * shape.dim
    rows = 3 * width if by_head else width + 2 * shape.groups * shape.dim
    sizes: dict[str, tuple[int, ...]] = {
        "transformer.embedding.word_embeddings.weight": (VOCABULARY, hidden),
        "transformer.encoder.final_layernorm.weight": (hidden,),
        "transformer.output_layer.weight": (VOCABULARY, hidden),
        "transformer.rotary_pos_emb.inv_freq": (shape.dim // 4,),
    }
    for layer in range(shape.layers):
        at = f"transformer.encoder.layers.{layer}"
        sizes |= {
            f"{at}.input_layernorm.weight": (hidden,),
            f"{at}.self_attention.query_key_value.weight": (rows, hidden),
            f"{at}.self_attention.dense.weight": (hidden, width),
            f"{at}.post_attention_layernorm.weight": (hidden,),
            f"{at}.mlp.dense_h_to_4h.weight": (2 * shape.ffn, hidden),
            f"{at}.mlp.dense_4h_to_h.weight": (hidden, shape.ffn),
        } | ({f"{at}.self_attention.query_key_value.bias": (rows,)} if bias else {})
    eps = 1.5625e-7 if layout == "glm4" else 1e-5
    config = {
        "model_type": "chatglm",
        "num_layers": shape.layers,
        "hidden_size": hidden,
        "num_attention_heads": shape.heads,
        "kv_channels": shape.dim,
        "ffn_hidden_size": shape.ffn,
        "padded_vocab_size": VOCABULARY,
        "seq_length": 32,
        "layernorm_epsilon": eps,
        "multi_query_attention": not by_head,
        "multi_query_group_num": shape.groups,
        "add_qkv_bias": bias,
        "rope_ratio": ratio,
        "eos_token_id": 2,
    }
    turn = pairs(10000, divisor=ratio) if layout == "chatglm2" else pairs(10000 * ratio)
    holds(
        config,
        draw(shape.seed, sizes, dtype),
        layout,
        lambda w, ids: chatglm(w, ids, shape, turn, eps, by_head),
    )


@few
@given(shape=shapes, dtype=dtypes, base=st.sampled_from([10000, 1000000]))
def test_qwen(shape: Shape, dtype: torch.dtype, base: int) -> None:
    hidden = shape.heads * shape.dim
    sizes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (VOCABULARY, hidden),
        "transformer.ln_f.weight": (hidden,),
        "lm_head.weight": (VOCABULARY, hidden),
    }
    for layer in range(shape.layers):
        at = f"transformer.h.{layer}"
        sizes |= {
            f"{at}.ln_1.weight": (hidden,),
            f"{at}.ln_2.weight": (hidden,),
            f"{at}.attn.c_attn.weight": (3 * hidden, hidden),
            f"{at}.attn.c_attn.bias": (3 * hidden,),
            f"{at}.attn.c_proj.weight": (hidden, hidden),
            f"{at}.mlp.w1.weight": (shape.ffn, hidden),
            f"{at}.mlp.w2.weight": (shape.ffn, hidden),
            f"{at}.mlp.c_proj.weight": (hidden, shape.ffn),
        }
    config = {
        "model_type": "qwen",
        "num_hidden_layers": shape.layers,
        "hidden_size": hidden,
        "num_attention_heads": shape.heads,
        "kv_channels": shape.dim,
        "intermediate_size": 2 * shape.ffn,
        "vocab_size": VOCABULARY,
        "seq_length": 16,
        "layer_norm_epsilon": 1e-5,
        "rotary_emb_base": base,
    }
    holds(
        config,
        draw(shape.seed, sizes, dtype),
        "qwen",
        lambda w, ids: qwen(w, ids, shape, half_split(base), 1e-5),
    )


@few
@given(
    shape=shapes,
    dtype=dtypes,
    head=st.sampled_from(["tied", "tied and there", "own"]),
    bias=st.booleans(),
    factor=st.sampled_from([None, 4]),
)
def test_minicpm(shape: Shape, dtype: torch.dtype, head: str, bias: bool, factor: int | None) -> None:
    hidden, rows = shape.heads * shape.dim, shape.groups * shape.dim
    sizes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, hidden),
        "model.norm.weight": (hidden,),
    }
    sizes |= {"lm_head.weight": (VOCABULARY, hidden)} if head == "own" else {}
    for layer in range(shape.layers):
        at = f"model.layers.{layer}"
        outputs = {"q": hidden, "k": rows, "v": rows, "o": hidden}
        sizes |= {f"{at}.self_attn.{one}_proj.weight": (out, hidden) for one, out in outputs.items()}
        sizes |= {f"{at}.self_attn.{one}_proj.bias": (out,) for one, out in outputs.items()} if bias else {}
        sizes |= {
            f"{at}.input_layernorm.weight": (hidden,),
            f"{at}.post_attention_layernorm.weight": (hidden,),
        }
        sizes |= {f"{at}.mlp.{one}_proj.weight": (shape.ffn, hidden) for one in ("gate", "up")} | {
            f"{at}.mlp.down_proj.weight": (hidden, shape.ffn)
        }
    config = {
        "model_type": "minicpm",
        "num_hidden_layers": shape.layers,
        "hidden_size": hidden,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.groups,
        "intermediate_size": shape.ffn,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5,
        "scale_emb": 3,
        "scale_depth": 1.4,
        "dim_model_base": 8,
        "attention_bias": bias,
    }
    config |= {"tie_word_embeddings": False} if head == "own" else {}
    config |= {"rope_scaling": {"type": "linear", "factor": factor}} if factor else {}
    weights = draw(shape.seed, sizes, dtype)
    if head == "tied and there":
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    holds(
        config,
        weights,
        "minicpm",
        lambda w, ids: minicpm(w, ids, shape, half_split(10000, divisor=factor or 1), config),
    )


@pytest.mark.parametrize("by_head", [True, False])
def test_the_reference_tells_the_two_ways_to_fuse_apart(by_head: bool) -> None:
    shape = Shape(layers=1, groups=2, ratio=1, dim=4, ffn=5, extra=0, seed=0)
    at = "transformer.encoder.layers.0"
    sizes: dict[str, tuple[int, ...]] = {
        "transformer.embedding.word_embeddings.weight": (VOCABULARY, 8),
        "transformer.encoder.final_layernorm.weight": (8,),
        "transformer.output_layer.weight": (VOCABULARY, 8),
        f"{at}.input_layernorm.weight": (8,),
        f"{at}.self_attention.query_key_value.weight": (24, 8),
        f"{at}.self_attention.dense.weight": (8, 8),
        f"{at}.post_attention_layernorm.weight": (8,),
        f"{at}.mlp.dense_h_to_4h.weight": (10, 8),
        f"{at}.mlp.dense_4h_to_h.weight": (8, 5),
    }
    weights = draw(0, sizes, torch.float64)
    found = [chatglm(weights, [1, 2, 3, 4], shape, pairs(10000), 1e-5, way) for way in (by_head, not by_head)]
    assert float((found[0] - found[1]).abs().max()) > 0.01
