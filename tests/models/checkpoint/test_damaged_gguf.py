"""GGUF files with changed bytes, and beginnings of them: rewritten or refused, each in a paragraph."""

import os
import random
import resource
import warnings
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from tuner.errors import DataError
from tuner.models.checkpoint.gguf import convert_gguf
from tuner.models.checkpoint.headers import read_header

TRIED = 500 if os.environ.get("TUNER_TEST_ALL") else 10
SEED = int(os.environ.get("TUNER_TEST_SEED") or random.SystemRandom().randrange(10**6))
WIDTH, WORDS = 32, 64


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A Llama of one layer with a vocabulary of its own."""
    path = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // 2)
    writer.add_vocab_size(WORDS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(["a", "b", "ab", *(f"t{i}" for i in range(3, WORDS))])
    writer.add_token_types([1] * WORDS)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    draw = np.random.default_rng(0)
    shapes = {"token_embd.weight": (WORDS, WIDTH), "output_norm.weight": (WIDTH,)}
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        shapes[f"blk.0.{name}.weight"] = (WIDTH, WIDTH)
    for name in ("attn_norm", "ffn_norm"):
        shapes[f"blk.0.{name}.weight"] = (WIDTH,)
    for name, shape in shapes.items():
        writer.add_tensor(name, draw.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def refused_or_written(path: Path, out: Path, told: str) -> bool:
    out.mkdir()
    try:
        convert_gguf(path, out)
    except DataError as error:
        said = str(error)
    else:
        return False
    assert len(said) < 1000, told
    assert path.name in said, told
    return True


def test_the_whole_one_is_rewritten(whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(whole)
    assert not refused_or_written(tmp_path / "m.gguf", tmp_path / "out", "")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_weights_that_are_not_there_are_not_drawn_at_random(whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(whole.replace(b"blk.0.attn_norm", b"blk.0.attn_morn"))
    with pytest.raises(DataError, match=r"no weights for 1 .*input_layernorm.weight"):
        convert_gguf(tmp_path / "m.gguf", tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_damaged_ones_are_explained(whole: bytes, tmp_path: Path) -> None:
    print("seed", SEED)
    dice = random.Random(SEED)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = tmp_path / "m.gguf"
    refused = 0
    for number in range(TRIED):
        text = bytearray(whole)
        if number % 3:
            for _ in range(dice.randint(1, 4)):
                text[dice.randrange(min(len(text), 4000))] = dice.randrange(256)
        else:
            del text[dice.randrange(len(text)) :]
        path.write_bytes(text)
        read_header(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            refused += refused_or_written(path, tmp_path / str(number), f"seed {SEED}, file {number}")
    assert refused
    print(refused, "of", TRIED, "were refused")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4 << 20  # KiB
