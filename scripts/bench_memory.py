"""The memory estimate beside what PyTorch reserves, on configurations drawn by a seed:

    scripts/bench memory --seed N [--count 16]

Needs an NVIDIA GPU. Each configuration trains three steps in a process of its own, on a random model of a
known shape and packs of random lengths, the longest at the beginning and at the end: through tuner's own
loading, adapters and engine. Several processes share the card; what one reserves does not depend on the
others.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tuner.config.schema import Algo, Config, Data, Machine, Optim
from tuner.config.view import View
from tuner.data.packs import Pack
from tuner.estimate.memory import Memory, Workload, estimate_memory
from tuner.estimate.recompute import Recompute

LLAMA = {"model_type": "llama", "max_position_embeddings": 32768, "rms_norm_eps": 1e-5}
GEOMETRIES: dict[str, dict[str, Any]] = {
    "smollm2-135m": LLAMA
    | {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    | {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
    "qwen2.5-0.5b": LLAMA
    | {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
    }
    | {"num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "internlm2-1.8b": LLAMA
    | {"vocab_size": 92544, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24}
    | {"num_attention_heads": 16, "num_key_value_heads": 8, "tie_word_embeddings": False},
    "llama3.2-3b": LLAMA
    | {"vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28}
    | {"num_attention_heads": 24, "num_key_value_heads": 8, "tie_word_embeddings": True},
}
LARGEST = 24e9
"""bytes of one configuration: three share a card"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One configuration."""

    model: str
    algo: str
    length: int
    micro: int
    accumulate: int
    recompute: bool
    r: int = 16
    dropout: float = 0.0
    optimizer: str = "adamw"
    share: float = 0.5
    """of the tokens that are targets"""

    def algorithm(self) -> Algo:
        adapter, quant = (
            ("none", "none")
            if self.algo == "full"
            else ("lora", {"qlora": "nf4", "lora8": "int8"}.get(self.algo, "none"))
        )
        return Algo(
            adapter=adapter, quant=quant, r=self.r, dropout=self.dropout, optim=Optim(name=self.optimizer)
        )  # type: ignore[arg-type]

    def work(self) -> Workload:
        tokens = self.length * self.micro
        return Workload(
            tokens=tokens,
            targets=int(tokens * self.share),
            accumulated=self.accumulate > 1,
            recompute=Recompute(blocks=GEOMETRIES[self.model]["num_hidden_layers"] * self.recompute),
        )

    def memory(self) -> Memory:
        return estimate_memory(GEOMETRIES[self.model], self.algorithm(), self.work())


def draw(seed: int) -> Iterator[Case]:
    """Configurations without end, none larger than LARGEST."""
    dice = random.Random(seed)
    while True:
        algo = dice.choice(["lora", "qlora", "full"])
        case = Case(
            model=dice.choice([*GEOMETRIES]),
            algo=algo,
            length=dice.choice([512, 1024, 2048, 4096]),
            micro=dice.choice([1, 1, 2, 4]),
            accumulate=dice.choice([1, 2, 3]),
            recompute=dice.random() < 0.5,
            r=dice.choice([8, 16, 64]),
            dropout=dice.choice([0.0, 0.0, 0.1]),
            optimizer=dice.choice(["adamw", "adamw", "adamw", "adamw_8bit"]),
            share=dice.choice([0.1, 0.3, 0.6, 0.9]),
        )
        if algo == "full":
            case = replace(case, r=16, dropout=0.0)
        if case.memory().total < LARGEST:
            yield case


def measure(case: Case, directory: Path) -> dict[str, Any]:
    """Train three steps in this process, and what PyTorch's books say then."""
    import torch

    from tuner.models.load import compute_dtype
    from tuner.train.batch import collate
    from tuner.train.distributed import single_process
    from tuner.train.recompute import set_recompute
    from tuner.train.setup import build_engine, build_model, choose_attention

    torch.manual_seed(0)
    world = single_process(torch.device("cuda"))
    config = View(Config(algo=case.algorithm(), data=Data(length=case.length), machine=Machine()), "train")
    compute = compute_dtype("bf16", world.device)
    with tempfile.TemporaryDirectory() as out:
        model = build_model(config, directory, Path(out), world.device, compute, zero_stage=0)
        loaded = torch.cuda.memory_allocated()
        kernel, _ = choose_attention("auto", model, world.device, compute)
        set_recompute(model, case.work().recompute.blocks)
        engine = build_engine(config, model, world, compute, {"engine": "torch"})
        dice = np.random.default_rng(0)
        for step in range(3):
            batches = [
                collate(packs(case, dice, full=step == 2 or step + at == 0), step=step)
                for at in range(case.accumulate)
            ]
            engine.forward_backward(batches, sum(len(batch.targets_M) for batch in batches))
            engine.step(1e-5, 1.0)
    books = {
        "loaded": loaded,
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
    }
    return books | {
        "kernel": kernel,
        "retries": torch.cuda.memory_stats()["num_alloc_retries"],
        "gpu": torch.cuda.get_device_name(),
    }


def packs(case: Case, dice: np.random.Generator, *, full: bool) -> list[Pack]:
    """A micro batch: full packs with as many targets as the estimate was told, or shorter ones with fewer."""
    found = []
    for _ in range(case.micro):
        length = case.length if full else int(case.length * dice.uniform(0.85, 1))
        cuts = np.sort(dice.choice(np.arange(2, length - 1), size=3, replace=False))
        lengths = np.diff([0, *cuts, length]).astype(np.int32)
        trained = np.zeros(length, dtype=np.bool_)
        free = np.setdiff1d(np.arange(length), [0, *cuts])
        share = case.share if full else case.share * dice.uniform(0.6, 1)
        trained[dice.choice(free, size=min(len(free), int(length * share)), replace=False)] = True
        zeros = np.zeros(len(lengths), dtype=np.int32)
        found.append(
            Pack(
                ids=dice.integers(0, 32000, length).astype(np.int32),
                trained=trained,
                lengths=lengths,
                files=zeros,
                lines=zeros,
            )
        )
    return found


def write_models(root: Path, names: Mapping[str, Any]) -> None:
    """Random weights in the shapes of these models; their values play no part."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    for name in names:
        shape = GEOMETRIES[name]
        settings = {key: value for key, value in shape.items() if key != "model_type"}
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(shape["model_type"], **settings))
        model.save_pretrained(root / name)
        del model
        torch.cuda.empty_cache()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--count", type=int, default=16)
    options.add_argument("--at-once", type=int, default=3)
    options.add_argument(
        "--allocators",
        default="expandable_segments:True",
        help="what PYTORCH_ALLOC_CONF is, apart by blanks; `-` for nothing",
    )
    options.add_argument("--out", type=Path, default=Path("memory.jsonl"))
    options.add_argument("--one", help=argparse.SUPPRESS)
    options.add_argument("--models", type=Path, help=argparse.SUPPRESS)
    wished = options.parse_args()
    if wished.one == "models":
        write_models(wished.models, GEOMETRIES)
        return
    if wished.one:
        case = Case(**json.loads(wished.one))
        print(json.dumps(measure(case, wished.models / case.model)))
        return
    source = draw(wished.seed)
    cases = [next(source) for _ in range(wished.count)]
    space = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with (
        tempfile.TemporaryDirectory(dir=space) as root,
        ThreadPoolExecutor(wished.at_once) as pool,
        wished.out.open("w") as file,
    ):
        child(["--one", "models", "--models", root], "")
        todo = [(case, conf) for case in cases for conf in wished.allocators.split()]
        for (case, conf), found in zip(
            todo, pool.map(lambda pair: tried(pair[0], pair[1], root), todo), strict=True
        ):
            memory = case.memory()
            parts = {
                name: round(getattr(memory, name))
                for name in ("allocated", "reserved", "weights", "activations", "logits", "buffers")
            }
            row = {name: getattr(case, name) for name in Case.__slots__} | {
                "allocator": conf,
                "estimate": parts,
                "measured": found,
            }
            file.write(json.dumps(row) + "\n")
            file.flush()
            off = f"{memory.reserved / found['reserved'] - 1:+.1%}" if "reserved" in found else found["error"]
            in_use = f"{memory.allocated / found['allocated'] - 1:+.1%}" if "reserved" in found else ""
            held = f"{found['reserved'] / 1e9:6.2f}" if "reserved" in found else ""
            print(
                f"{case.model:15} {case.algo:6} {case.length:5} × {case.micro}, {case.accumulate} a step, r "
                f"{case.r:2}, dropout {case.dropout}, {case.optimizer:10} targets {case.share}, recompute "
                f"{case.recompute!s:5} {conf[:10]:10} | {memory.reserved / 1e9:6.2f} {held} | {off} "
                f"(allocated {in_use})",
                flush=True,
            )


def tried(case: Case, conf: str, root: str) -> dict[str, Any]:
    """What a process of its own measured, or the last line that it said."""
    words = ["--one", json.dumps({name: getattr(case, name) for name in Case.__slots__}), "--models", root]
    done = child(words, conf)
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError):
        return {"error": (done.stderr or done.stdout).strip()[-600:]}


def child(words: list[str], conf: str) -> subprocess.CompletedProcess[str]:
    environ = os.environ | (
        {} if conf in ("", "-") else {"PYTORCH_ALLOC_CONF": conf, "PYTORCH_CUDA_ALLOC_CONF": conf}
    )
    return subprocess.run(
        [sys.executable, __file__, *words], capture_output=True, text=True, env=environ, check=False
    )


if __name__ == "__main__":
    main()
