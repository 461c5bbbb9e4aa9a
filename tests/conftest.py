"""A tiny real model, a tiny real data set, and the front door: `python -m tuner` in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[1]
SHARED = REPO.parent / "shared"

collect_ignore = ["killer"]

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"What is {a} plus {b}?"},
            {"role": "assistant", "content": f"{a} plus {b} is {a + b}."},
        ]
    }
    for a in range(6)
    for b in range(6)
] + [
    {
        "messages": [
            {"role": "user", "content": "你好"},
            {"role": "assistant", "content": "你好！"},
            {"role": "user", "content": "再见"},
            {"role": "assistant", "content": "再见。"},
        ]
    }
    for _ in range(4)
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What goes through the front door takes longest and comes first, so that no core waits at the end."""
    items.sort(key=lambda item: item.path.parent != REPO / "tests")


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str


Tuner = Callable[..., Done]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with a byte-level BPE tokenizer of its own, as a Hugging Face
    directory.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        [message["content"] for row in ROWS for message in row["messages"]], trainer
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 512,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Forty short conversations as JSONL."""
    path = tmp_path / "数据 (1).jsonl"
    write_rows(path, ROWS)
    return path


def write_rows(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """As a person's, with this checkout first on the path."""
    path = os.pathsep.join(
        p for p in ((extra or {}).get("PYTHONPATH"), str(REPO), os.environ.get("PYTHONPATH")) if p
    )
    return {**os.environ, **(extra or {}), "PYTHONPATH": path}


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is remembered of preflights is remembered for these tests only."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def tuner(tmp_path: Path) -> Tuner:
    """Run the command line in `tmp_path` and return what it did."""

    def call(
        *words: str, env: Mapping[str, str] | None = None, code: int | None = 0, timeout: float = 300
    ) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "tuner", *words],
            cwd=tmp_path,
            env=environment(env),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if code is not None:
            assert done.returncode == code, (
                f"{words} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return Done(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def tiny(tiny_model: Path, data: Path) -> list[str]:
    """The words of a tiny run that is bit-exact on a CPU: fp32, 6 steps, a checkpoint after each."""
    return tiny_words(tiny_model, data)


@pytest.fixture(scope="session")
def words(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The same words, with data that all tests share."""
    rows = tmp_path_factory.mktemp("rows") / "数据 (1).jsonl"
    write_rows(rows, ROWS)
    return tiny_words(tiny_model, rows)


@pytest.fixture(scope="session")
def finished(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output root of a run that nobody interrupted. Tests that change it copy it first."""
    root = tmp_path_factory.mktemp("finished") / "outputs"
    subprocess.run(
        [sys.executable, "-m", "tuner", f"root={root}", *words],
        cwd=root.parent,
        env=environment(),
        check=True,
        capture_output=True,
    )
    return root


def tiny_words(model: Path, data: Path) -> list[str]:
    return [
        "model=local",
        f"model.path={model}",
        "data=local",
        f"data.path={data}",
        "data.length=64",
        "data.held_out=0.1",
        "algo.precision=fp32",
        "algo.steps=6",
        "algo.r=4",
        "machine=cpu",
        "machine.save_every=1",
        "machine.threads=1",
        "machine.trackers=[]",
        "eval.prompts=[What is 1 plus 1?]",
        "eval.max_new_tokens=8",
    ]


def states(plan: Done) -> dict[str, str]:
    """Stage → state, of `plan --json`."""
    return {stage["name"]: stage["state"] for stage in json.loads(plan.out)["stages"]}


def reasons(plan: Done) -> dict[str, str]:
    """Stage → why, of `plan --json`."""
    return {stage["name"]: stage["why"] for stage in json.loads(plan.out)["stages"]}


def disk_usage(directory: Path) -> int:
    """Bytes on the disk, as `du` counts them."""
    return int(
        subprocess.run(["du", "-sB1", directory], capture_output=True, text=True, check=True).stdout.split()[
            0
        ]
    )


def linked(root: Path, stage: str) -> Path:
    """The artifact of the only run under `root`."""
    (run,) = (root / "runs").iterdir()
    return (run / stage).resolve()
