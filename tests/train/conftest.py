"""A tiny Llama checkpoint and tiny packs: real files, as the stages before train leave them."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tuner.config.schema import Algo, Config, Data, Machine, Optim
from tuner.config.view import View
from tuner.data.packs import Pack, Packs, write_packs
from tuner.pipeline.stage import Context, Input

VOCABULARY, LENGTH = 6400, 48


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Matrices this small gain nothing from a second thread, and waiting for one on a busy machine takes
    seconds.
    """
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny-llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return directory


def make_pack(draw: random.Random, index: int) -> Pack:
    """About 48 tokens in two to four documents; the second half of each is trained."""
    lengths = [draw.randrange(6, 14) for _ in range(draw.randrange(2, 5))]
    trained = np.concatenate([np.arange(n) >= n // 2 for n in lengths])
    ids = np.array([draw.randrange(VOCABULARY) for _ in range(sum(lengths))], dtype=np.int32)
    lines = np.arange(len(lengths), dtype=np.int32) + 10 * index + 1
    return Pack(
        ids=ids,
        trained=trained,
        lengths=np.array(lengths, dtype=np.int32),
        files=np.zeros(len(lengths), dtype=np.int32),
        lines=lines,
    )


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokens")
    draw = random.Random(7)
    write_packs(directory / "train.arrow", [make_pack(draw, index) for index in range(7)])
    write_packs(directory / "held_out.arrow", [make_pack(draw, 7)])
    (directory / "ledger.json").write_text(
        json.dumps({"sources": [{"file": "rows.jsonl"}]}), encoding="utf-8"
    )
    return directory


@pytest.fixture(scope="session")
def packs(tokens: Path) -> Packs:
    return Packs.open(tokens / "train.arrow")


@pytest.fixture
def config() -> Config:
    return Config(
        algo=Algo(
            precision="fp32",
            epochs=2,
            batch_tokens=2 * LENGTH,
            warmup=0.2,
            optim=Optim(lr=1e-3, weight_decay=0.01),
        ),
        data=Data(length=LENGTH),
        machine=Machine(device="cpu", threads=1, save_every=2, trackers=(), preflight=False),
    )


@pytest.fixture
def full(config: Config) -> Config:
    return replace(config, algo=replace(config.algo, adapter="none"))


@pytest.fixture
def context(tiny: Path, tokens: Path) -> Callable[..., Context]:
    def make(
        config: Config, out: Path, said: list[str] | None = None, data: Path = tokens, model: Path = tiny
    ) -> Context:
        out.mkdir(exist_ok=True)
        inputs = {
            name: Input(dir=path, files={}, facts={})
            for name, path in (("fetch_model", model), ("tokenize", data))
        }
        return Context(
            config=View(config, "train"),
            inputs=inputs,
            out=out,
            say=(said if said is not None else []).append,
        )

    return make
