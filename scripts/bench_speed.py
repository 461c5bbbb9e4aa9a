"""Training speed and memory on one GPU, beside Unsloth and transformers with Liger: scripts/bench speed CASE…

Each side is a process of its own. tuner's is the run that a person starts, `python -m tuner … until=train`;
its numbers are read from the run's journal, from the end of a step to the end of a later one, so saving,
journal and progress are in them. The peers do the same step in a plain loop: forward, backward, AdamW. All
see random tokens of the same number, and random weights of the model's shape. Tokens are counted without
what only fills a row up; memory is the most that was allocated after the first steps.

With --write FILE the table in that file, between the lines `<!-- speed -->` and `<!-- /speed -->`, gets these
rows in place of older ones of the same cases.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SHAPES = {
    "1.8B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "vocab_size": 92544,
        "tie_word_embeddings": False,
    },
    "135M": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "7B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 92544,
        "tie_word_embeddings": False,
    },
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "tie_word_embeddings": False,
    },
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WARMUP, STEPS = 5, 20


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained, and how much of it in a step."""

    shape: str = "1.8B"
    algo: str = "qlora"
    r: int = 64
    length: int = 4096
    rows: int = 4
    """of `length`, in one micro batch"""
    micro_batches: int = 1
    """in a step"""
    documents: bool = False
    """of various lengths in each row, as of conversations, instead of one; peers get whole rows"""
    fields: tuple[str, ...] = ()
    """more of tuner's config"""
    peers: tuple[str, ...] = ("unsloth",)
    memory: float | None = None
    """GiB of the GPU that are left to each side, with what CUDA itself takes"""


CHOOSES = ("machine.micro_batch=auto", "machine.recompute=auto")
CASES = {
    "qlora": Case(),
    "qlora-r16": Case(r=16),
    "lora": Case(algo="lora"),
    "lora-r16": Case(algo="lora", r=16),
    "documents": Case(documents=True),
    "card": Case(r=16, length=2048, rows=4, micro_batches=4),
    "smallest": Case(fields=("machine.recompute=blocks",), peers=("unsloth:gc",)),
    "one-row": Case(rows=1),
    "small-data": Case(r=16, length=2048, rows=1, documents=True),
    "135M": Case(shape="135M", algo="lora", r=16, length=1024, rows=16),
    "full": Case(algo="full", peers=("liger",)),
    "qlora-kept": Case(fields=("machine.recompute=none",)),
    "8B": Case(shape="8B", rows=1, peers=("unsloth",)),
    "24GB": Case(shape="7B", rows=1, micro_batches=4, memory=23.5, fields=CHOOSES, peers=("unsloth:gc",)),
    "11GiB": Case(length=2048, rows=1, micro_batches=8, memory=11.0, fields=CHOOSES, peers=("unsloth:gc",)),
    "tiny": Case(shape="tiny", algo="lora", r=4, length=128, rows=2, peers=()),
}


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One side of a case."""

    side: str
    tokens_per_second: float
    allocated: float
    """GiB, the most after the first steps"""
    reserved: float
    facts: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    options.add_argument("--write", type=Path, help="a Markdown file whose table gets the rows")
    options.add_argument("--sides", help="only these, such as tuner,unsloth")
    options.add_argument("--peers", type=Path, help="a directory with the peers' packages, for them alone")
    options.add_argument("--own", default="", help="directories (a:b) with more packages for tuner alone")
    options.add_argument("--set", action="append", default=[], help="a field of tuner's config")
    options.add_argument("--make", nargs=2, metavar=("SHAPE", "DIR"), help=argparse.SUPPRESS)
    options.add_argument("--peer", nargs=3, metavar=("CASE", "SIDE", "MODEL"), help=argparse.SUPPRESS)
    wished = options.parse_args()
    if wished.make:  # in a process of its own too, since tuner takes idle GPUs only
        make_model(Path(wished.make[1]), wished.make[0])
        return
    if wished.peer:
        case, side, model = wished.peer
        print(json.dumps(asdict(peer(CASES[case], side, Path(model)))))
        return
    rows = []
    with tempfile.TemporaryDirectory(prefix="speed-") as scratch:
        for name in wished.cases or ["qlora"]:
            case = CASES[name]
            model = Path(scratch) / case.shape
            if not model.exists():
                subprocess.run([sys.executable, __file__, "--make", case.shape, str(model)], check=True)
            found = []
            for side in ("tuner", *case.peers):
                if wished.sides and side.partition(":")[0] not in wished.sides.split(","):
                    continue
                try:
                    found.append(
                        ours(case, model, Path(scratch) / "runs" / name, wished.set, wished.own)
                        if side == "tuner"
                        else asked(name, side, model, wished.peers)
                    )
                except (subprocess.CalledProcessError, OSError, ValueError, KeyError) as error:
                    print(
                        f"{name} {side} failed: {getattr(error, 'stderr', '') or error}"[-3000:], flush=True
                    )
                    continue
                print(json.dumps({"case": name} | asdict(found[-1])), flush=True)
            rows.append((name, found))
    for name, found in rows:
        print(row(name, found))
    if wished.write:
        write(wished.write, {name: row(name, found) for name, found in rows if found})


def make_model(directory: Path, shape: str) -> None:
    """A Llama of random weights with a tokenizer of one token a byte."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        **SHAPES[shape], max_position_embeddings=32768, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(directory)
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {letter: 3 + i for i, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(directory)


def make_data(file: Path, case: Case) -> None:
    """Texts of random letters: as long as a row, or of lengths that are drawn as those of conversations are
    (log-normal, half of them under 300 tokens).
    """
    dice = random.Random(0)
    wanted = (WARMUP + STEPS + 1) * case.micro_batches * case.rows * case.length
    with file.open("w", encoding="utf-8") as out:
        while wanted > 0:
            drawn = min(case.length - 2, max(16, int(dice.lognormvariate(5.7, 1.0))))
            letters = drawn if case.documents else case.length - 2
            text = "".join(dice.choices("abcdefghijklmnopqrstuvwxyz ", k=letters - 1)) + "."
            out.write(json.dumps({"text": text}) + "\n")
            wanted -= letters


def ours(case: Case, model: Path, root: Path, more: list[str], packages: str) -> Speed:
    """A run of tuner, until it has trained."""
    root.mkdir(parents=True)
    data = root / "texts.jsonl"
    make_data(data, case)
    words = [
        f"root={root}",
        "model=local",
        f"model.path={model}",
        "model/chat=neutral",
        "data=local",
        f"data.path={data}",
        "data.format=text",
        f"data.length={case.length}",
        "data.held_out=0",
        f"algo={case.algo}",
        f"algo.steps={WARMUP + STEPS}",
        f"algo.batch_tokens={case.rows * case.micro_batches * case.length}",
        *([f"algo.r={case.r}"] if case.algo != "full" else []),
        f"machine.micro_batch={case.rows}",
        "machine.recompute=norms",
        "machine.trackers=[]",
        "machine.kernels=compiled",  # as a run of more steps than this one would be
        "until=train",
        *([f"machine.memory={case.memory}"] if case.memory else []),
        *case.fields,
        *more,
    ]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "tuner", *words],
        capture_output=True,
        text=True,
        check=False,
        env=with_packages(packages),
    )
    if done.returncode:
        raise ValueError(f"tuner ended with {done.returncode}:\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
    (directory,) = (root / "store").glob("train-*")
    journal = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in journal]
    first, last = steps[WARMUP - 1], steps[-1]
    facts = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))["facts"]
    # what graphs compute with is PyTorch's to keep, and nowhere counted as allocated
    memory = "memory" if facts.get("captured") else "allocated"
    return Speed(
        side="tuner",
        tokens_per_second=round((last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"])),
        allocated=round(last.get(memory, 0.0) / 2**30, 2),
        reserved=round(last.get("memory", 0.0) / 2**30, 2),
        facts={
            "attention": facts.get("attention"),
            "kernels": facts.get("kernels"),
            "compiled": facts.get("compiled"),
            "micro_batch": facts.get("micro_batch"),
            "recompute": facts.get("recompute"),
            "preflight": [facts.get(f"preflight_{name}") for name in ("reserved", "expected")],
            "captured": facts.get("captured"),
            "until first step": round(time.monotonic() - began - last["seconds"], 1),
            "loss": last["loss"],
        },
    )


def asked(name: str, side: str, model: Path, packages: Path | None) -> Speed:
    """A peer, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--peer", name, side, str(model)],
        capture_output=True,
        text=True,
        check=True,
        env=with_packages(str(packages.absolute()) if packages else "")
        | {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1"},
    )
    return Speed(**json.loads(done.stdout.splitlines()[-1]))


def with_packages(paths: str) -> dict[str, str]:
    """This environment, with directories (a:b) of packages before the others."""
    return os.environ | {"PYTHONPATH": ":".join(filter(None, [paths, os.environ.get("PYTHONPATH", "")]))}


def peer(case: Case, side: str, model_path: Path) -> Speed:
    """The step as the peer's own documentation sets it up, with dropout 0 as tuner has it."""
    name, *options = side.split(":")
    recompute = "gc" in options
    if name == "unsloth":
        from unsloth import FastLanguageModel  # isort: skip  before transformers, as it asks
        import torch

        model, _ = FastLanguageModel.from_pretrained(
            str(model_path),
            max_seq_length=case.length,
            dtype=torch.bfloat16,
            load_in_4bit=case.algo == "qlora",
            full_finetuning=case.algo == "full",
        )
        if case.algo != "full":
            model = FastLanguageModel.get_peft_model(
                model,
                r=case.r,
                lora_alpha=16,
                lora_dropout=0,
                bias="none",
                target_modules=TARGETS,
                use_gradient_checkpointing="unsloth" if recompute else False,
                random_state=0,
            )
        FastLanguageModel.for_training(model)
    else:
        import torch
        from liger_kernel.transformers import apply_liger_kernel_to_llama
        from transformers import AutoModelForCausalLM

        apply_liger_kernel_to_llama()
        model = AutoModelForCausalLM.from_pretrained(
            model_path, dtype=torch.bfloat16, attn_implementation="sdpa", device_map={"": 0}
        )
        model.config.use_cache = False
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
    if case.memory:
        _, total = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction((case.memory - 0.5) * 2**30 / total)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    generator = torch.Generator(device="cuda").manual_seed(0)
    words = SHAPES[case.shape]["vocab_size"]

    def step() -> None:
        for _ in range(case.micro_batches):
            ids = torch.randint(3, words, (case.rows, case.length), device="cuda", generator=generator)
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = model(input_ids=ids, labels=ids).loss
            (loss / case.micro_batches).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(WARMUP):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    torch.cuda.synchronize()
    spent = time.perf_counter() - began
    return Speed(
        side=side,
        tokens_per_second=round(STEPS * case.micro_batches * case.rows * case.length / spent),
        allocated=round(torch.cuda.max_memory_allocated() / 2**30, 2),
        reserved=round(torch.cuda.max_memory_reserved() / 2**30, 2),
    )


def row(name: str, found: list[Speed]) -> str:
    """A line of the table: tuner's speed and memory, each peer's, and the ratio to the first of them."""
    own = next((one for one in found if one.side == "tuner"), None)
    others = [one for one in found if one.side != "tuner"]
    cells = [name]
    cells.append(f"{own.tokens_per_second:,.0f}, {own.allocated:.1f} GiB" if own else "–")
    cells.append(
        "; ".join(f"{o.side} {o.tokens_per_second:,.0f}, {o.allocated:.1f} GiB" for o in others) or "–"
    )
    ratio = own.tokens_per_second / others[0].tokens_per_second if own and others else None
    cells.append(f"{ratio:.2f}×" if ratio else "–")
    return f"| {' | '.join(cells)} |"


def write(file: Path, rows: dict[str, str]) -> None:
    """Put the rows into the table between its two marks."""
    text = file.read_text(encoding="utf-8")
    begin, end = text.index("<!-- speed -->"), text.index("<!-- /speed -->")
    lines = text[begin:end].splitlines()
    for name, line in rows.items():
        place = next((i for i, old in enumerate(lines) if re.match(rf"\| {re.escape(name)} \|", old)), None)
        if place is None:
            lines.append(line)
        else:
            lines[place] = line
    file.write_text("\n".join([text[:begin] + "\n".join(lines).strip(), text[end:]]), encoding="utf-8")


if __name__ == "__main__":
    main()
