"""Tiny models to talk with: one whose answers depend on all that was said, and one that says what a test
wants.
"""

from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM


def moody(tokenizer: Tokenizer, *, positions: int = 4096) -> LlamaForCausalLM:
    """Random weights, so wide at the start that greedy answers differ from conversation to conversation."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def parrot(
    tokenizer: Tokenizer,
    said: bytes,
    *,
    after: str = "\n",
    then: str | int = "<|im_end|>",
    positions: int = 4096,
) -> LlamaForCausalLM:
    """After the token `after` it says `said`, one token a byte, and `then`: a token, or the index in `said`
    where it starts over, for ever.

    What comes next depends on the last token alone (embeddings are unit vectors, both blocks add nothing), so
    the bytes are all different.
    """
    assert len(set(said)) == len(said)
    bytes_ = [tokenizer.token_to_id(sign(byte)) for byte in said]
    chain = [
        tokenizer.encode(after, add_special_tokens=False).ids[-1],
        *bytes_,
        tokenizer.token_to_id(then) if isinstance(then, str) else bytes_[then],
    ]
    size = tokenizer.get_vocab_size()
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        for token, following in pairwise(chain):
            model.lm_head.weight[following, token] = 1
    return model


def sign(byte: int) -> str:
    """How a byte-level vocabulary writes a byte: itself where it can be seen in Latin-1, else a character
    from 256 on.
    """
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return chr(byte if byte in seen else 256 + [b for b in range(256) if b not in seen].index(byte))


def put(model: LlamaForCausalLM, directory: Path) -> None:
    """Make it the model in a directory that has the rest: tokenizer, chat template, generation settings."""
    for old in directory.glob("*.safetensors"):
        old.unlink()
    settings = (directory / "generation_config.json").read_bytes()
    model.save_pretrained(directory)
    (directory / "generation_config.json").write_bytes(settings)
