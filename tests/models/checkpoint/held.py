"""Tiny checkpoints as publishers quantise them, and the weights that their numbers stand for."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GptOssConfig, GptOssForCausalLM

from tests.models.tiny import MINIMIND, write_tiny

Weights = dict[str, Tensor]
FP8 = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
    "modules_to_not_convert": ["lm_head"],
}
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def rewrite(directory: Path, said: Any, change: Any) -> Path:
    """The checkpoint in a directory with `said` as its quantization_config, and each projection as
    `change` (name, weight) gives it.
    """
    found = load_file(directory / "model.safetensors")
    tensors: Weights = {}
    for name, weight in found.items():
        tensors |= change(name, weight.float()) if name.endswith("_proj.weight") else {name: weight}
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )
    if said is not None:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        (directory / "config.json").write_text(
            json.dumps(config | {"quantization_config": said}), encoding="utf-8"
        )
    return directory


def blocks(weight: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A weight in FP8 with a scale for each block, the last of which may be smaller; written out block by
    block.
    """
    down, across = -(-weight.shape[0] // block[0]), -(-weight.shape[1] // block[1])
    held, scales = torch.zeros_like(weight), torch.zeros(down, across)
    for i in range(down):
        for j in range(across):
            part = (slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1]))
            scales[i, j] = weight[part].abs().max() / 448
            held[part] = weight[part] / scales[i, j]
    return held.to(torch.float8_e4m3fn), scales


def write_fp8(directory: Path, *, block: tuple[int, int] | None = (128, 128)) -> Path:
    """FP8 as DeepSeek and Qwen publish it: a scale for each block of a matrix; or, with block=None, one
    for each matrix, and one for its inputs.
    """

    def change(name: str, weight: Tensor) -> Weights:
        held, scales = blocks(weight, block or (weight.shape[0], weight.shape[1]))
        if block is None:
            return {
                name: held,
                f"{name}_scale_inv": scales.reshape(()),
                name.replace("weight", "activation_scale"): torch.tensor(0.5),
            }
        return {name: held, f"{name}_scale_inv": scales}

    said = (
        FP8
        | {"weight_block_size": list(block) if block else None}
        | ({} if block else {"activation_scheme": "static"})
    )
    return rewrite(write_tiny(directory), said, change)


def write_mxfp4(directory: Path) -> Path:
    """A tiny gpt-oss, its experts in MXFP4: 32 numbers of four bits and a byte for their exponent."""
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=6400,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=256,
        initial_context_length=128,
        sliding_window=32,
        bos_token_id=1,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=0.1,
        tie_word_embeddings=False,
        layer_types=["sliding_attention", "full_attention"],
    )
    GptOssForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    tensors: Weights = {}
    for name, weight in load_file(directory / "model.safetensors").items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inputs, rows = weight.shape
            codes = torch.randint(0, 256, (experts, rows, inputs // 32, 16), dtype=torch.uint8)
            exponents = torch.randint(119, 125, (experts, rows, inputs // 32), dtype=torch.uint8)
            tensors |= {f"{name}_blocks": codes, f"{name}_scales": exponents}
        else:
            tensors[name] = weight
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    said = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
    }
    settings = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(
        json.dumps(settings | {"quantization_config": said}), encoding="utf-8"
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(MINIMIND / name, directory / name)
    return directory
