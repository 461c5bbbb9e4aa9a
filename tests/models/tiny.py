"""A tiny Llama with a real tokenizer, and a tiny adapter for it: what tests of models and stages start
from.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from tuner.config.schema import Chat

SHARED = Path(__file__).parents[2] / ".." / "shared"
MINIMIND = SHARED / "tokenizers" / "minimind"

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""of a model that is smaller still, without a tokenizer"""

CHATML = Chat(
    special=("<|im_start|>", "<|im_end|>"),
    system="<|im_start|>system\n{text}<|im_end|>\n",
    user="<|im_start|>user\n{text}<|im_end|>\n",
    assistant="<|im_start|>assistant\n{text}<|im_end|>\n",
    end="<|im_end|>",
)


def tiny_model(*, tied: bool = True) -> LlamaForCausalLM:
    """Two layers, hidden size 64, the same weights every time; wide enough at the start that greedy
    answers differ from prompt to prompt.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=6400,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def write_tiny(directory: Path, *, dtype: torch.dtype = torch.bfloat16, tied: bool = True) -> Path:
    """The model in the Hugging Face layout, with the tokenizer of minimind (6,400 tokens); skips the test
    where that is absent.
    """
    if not MINIMIND.is_dir():
        pytest.skip("the shared tokenizers are not here")
    tiny_model(tied=tied).to(dtype).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(MINIMIND / name, directory / name)
    return directory


def tiny_adapter(
    base: Path, *, dtype: torch.dtype = torch.float32, use_rslora: bool = False, use_dora: bool = False
) -> PeftModel:
    """A LoRA of rank 4 on every linear layer of the model in `base`, with B (and magnitudes) away from
    where they begin.
    """
    model = LlamaForCausalLM.from_pretrained(base, dtype=dtype)
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        use_rslora=use_rslora,
        use_dora=use_dora,
    )
    peft = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in peft.named_parameters():
        if "lora_magnitude" in name:
            parameter.data *= 1 + torch.randn(parameter.shape, generator=generator) * 0.1
        elif "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return peft
