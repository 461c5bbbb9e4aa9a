"""Tokenising real conversations: the whole stage, beside the bare tokenizer and beside `datasets.map` with
packing by TRL.

All see the same rows, on the same cores, in turn, several rounds in one run. Needs the real rows and
tokenizers that lie beside the repository.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
FILES = (
    "alpaca/alpaca_en.json",
    "alpaca/alpaca_zh.json",
    "messages/openai_multiturn.jsonl",
    "sharegpt/vicuna_identity.json",
    "oasst/oasst_en_trees.jsonl",
)
LENGTH = 2048
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == "
    "'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% "
    "else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)
"""ChatML, with the marks from which transformers makes a mask"""


def conversations() -> list[list[dict[str, str]]]:
    """Real rows, as messages."""
    from tuner.data.files import row_files
    from tuner.data.formats import rows
    from tuner.data.formats.shape import RowShape

    shape = RowShape()
    return [
        [{"role": message.role, "content": message.content} for message in sample.messages]
        for name in FILES
        for chunk in row_files.chunks(SHARED / "data" / name)
        for _, row in row_files.parse_rows(chunk)
        for sample in rows.read_row(row, shape)
    ]


def bare(data: Path, tokenizer: str, _out: Path) -> int:
    """`encode_batch_fast` on the finished texts, which are made before the clock starts."""
    from tokenizers import Tokenizer

    fast = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")
    texts = [
        "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in json.loads(line)["messages"])
        for line in data.open(encoding="utf-8")
    ]
    began = time.perf_counter()
    tokens = 0
    for at in range(0, len(texts), 2000):
        tokens += sum(
            len(row) for row in fast.encode_batch_fast(texts[at : at + 2000], add_special_tokens=False)
        )
    tell(tokens, began)
    return tokens


def stage(data: Path, tokenizer: str, out: Path, workers: int | str = "auto") -> None:
    """Our stage: read, template, mask, pack, write."""
    import yaml

    from tuner.config.build import build_config
    from tuner.config.view import View
    from tuner.pipeline.stage import Context, Input
    from tuner.stages import tokenize

    chat = yaml.safe_load((ROOT / "conf/model/chat/chatml.yaml").read_text(encoding="utf-8"))
    described = {"path": str(data), "length": LENGTH, "held_out": 0.0}
    config = build_config(
        {"model": {"path": tokenizer, "chat": chat}, "data": described, "machine": {"workers": workers}}
    )
    inputs = {
        "fetch_data": Input(dir=data.parent, files={data.name: data}, facts={}),
        "fetch_model": Input(dir=Path(tokenizer), files={}, facts={}),
    }
    began = time.perf_counter()
    facts = tokenize.run(Context(config=View(config, "tokenize"), inputs=inputs, out=out, say=lambda _: None))
    tell(facts["tokens"], began, efficiency=facts["efficiency"])


def mapped(data: Path, tokenizer: str, out: Path, processes: int) -> None:
    """`datasets.map` with the chat template and its mask, then TRL's best-fit-decreasing packing, then a
    file.
    """
    import datasets
    from transformers import AutoTokenizer
    from trl import pack_dataset

    datasets.disable_progress_bars()
    fast = AutoTokenizer.from_pretrained(tokenizer)
    began = time.perf_counter()
    rows = datasets.load_dataset("json", data_files=str(data), split="train", cache_dir=str(out / "cache"))

    def encode(batch: dict[str, list[object]]) -> dict[str, list[object]]:
        made = fast.apply_chat_template(
            batch["messages"],
            chat_template=TEMPLATE,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            truncation=True,
            max_length=LENGTH,
        )
        return {"input_ids": made["input_ids"], "assistant_masks": made["assistant_masks"]}

    rows = rows.map(
        encode,
        batched=True,
        batch_size=1000,
        remove_columns=rows.column_names,
        num_proc=processes if processes > 1 else None,
    )
    packed = pack_dataset(rows, LENGTH, "bfd")
    packed.save_to_disk(str(out / "packed"))
    tokens = sum(map(len, packed["input_ids"]))
    tell(tokens, began, efficiency=tokens / (len(packed) * LENGTH))


def tell(tokens: int, began: float, **more: float) -> None:
    seconds = time.perf_counter() - began
    peak = resource_peak()
    print(json.dumps({"tokens": tokens, "seconds": seconds, "peak_mib": peak, **more}))


def resource_peak() -> float:
    """MiB at the highest, of this process and of the largest of its children."""
    import resource

    return (
        max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        / 1024
    )


WAYS = {
    "bare encode_batch_fast": bare,
    "tokenize stage": stage,
    "datasets.map 1 process + TRL bfd": lambda *a: mapped(*a, processes=1),
    "datasets.map 2 processes + TRL bfd": lambda *a: mapped(*a, processes=2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokenizer", default="qwen2_5")
    parser.add_argument("--memory", action="store_true", help="the stage alone, also on ten times the rows")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    args = parser.parse_args()
    tokenizer = str(SHARED / "tokenizers" / args.tokenizer)
    if args.way:
        with tempfile.TemporaryDirectory() as out:
            WAYS[args.way](Path(args.data), tokenizer, Path(out))
        return
    real = conversations()
    with tempfile.TemporaryDirectory() as directory:
        sizes = (args.rows, 10 * args.rows) if args.memory else (args.rows,)
        for size in sizes:
            data = Path(directory) / f"{size}.jsonl"
            with data.open("w", encoding="utf-8") as file:
                for i in range(size):
                    file.write(json.dumps({"messages": real[i % len(real)]}, ensure_ascii=False) + "\n")
            print(f"{size:,} rows of {len(real):,} real conversations, {data.stat().st_size / 1e6:.0f} MB")
            ways = ["tokenize stage"] if args.memory else list(WAYS)
            found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
            for _ in range(1 if args.memory else args.rounds):
                for way in ways:
                    command = [
                        sys.executable,
                        __file__,
                        "--way",
                        way,
                        "--data",
                        str(data),
                        "--tokenizer",
                        args.tokenizer,
                    ]
                    done = subprocess.run(
                        command,
                        capture_output=True,
                        text=True,
                        check=False,
                        env={**os.environ, "HF_HUB_OFFLINE": "1"},
                    )
                    if done.returncode:
                        sys.exit(done.stderr)
                    found[way].append(json.loads(done.stdout.splitlines()[-1]))
            base = statistics.median(run["tokens"] / run["seconds"] for run in found[ways[0]])
            for way, runs in found.items():
                speed = statistics.median(run["tokens"] / run["seconds"] for run in runs)
                full = f"  packs {runs[0]['efficiency']:.2%} full" if "efficiency" in runs[0] else ""
                print(
                    f"{way:36} {speed / 1e6:6.3f}M tokens/s  {speed / base:5.2f} of {ways[0]}  peak "
                    f"{max(run['peak_mib'] for run in runs):,.0f} MiB{full}"
                )
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
