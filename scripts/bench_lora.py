"""Which rank, scale and rate of adapters learns best: the options of conf/algo on one data set, three seeds
each: scripts/bench lora --data FILE …

Fetched and tokenized once, as a run does; each training is the stage's own, with the composed option's
numbers, but for steps and batch. Before and after stands the loss on all packs that are held out, which are
the same for every training; --held-out says how many rows that is.

Seeds draw the adapters and the order of the data. Two options differ where their means lie further apart than
their seeds do. What is done is in --out at once, and is not done again by the same command.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from bench_plain import release
from bench_train import SEEDS, device_name, versions
from transformers.utils import logging

from tuner.api import run
from tuner.config.compose import compose
from tuner.config.view import View
from tuner.data.packs import Packs
from tuner.kernels import attention
from tuner.models.attention_needs import attention_needs
from tuner.models.load import load_model
from tuner.pipeline.stage import Context, Input
from tuner.train import session
from tuner.train.held_out import held_out_loss
from tuner.train.training_data import MEASURED

SIDES: dict[str, tuple[str, ...]] = {
    "r 16, alpha auto": ("algo=lora",),
    "r 64, alpha 16": ("algo=lora", "algo.r=64", "algo.alpha=16"),
    "lora_plus, 2.5e-5": ("algo=lora_plus", "algo.optim.lr=2.5e-5"),
    "lora_plus, 5e-5": ("algo=lora_plus", "algo.optim.lr=5e-5"),
    "lora_plus, 1e-4": ("algo=lora_plus", "algo.optim.lr=1e-4"),
    "lora_plus, 2e-4": ("algo=lora_plus", "algo.optim.lr=2e-4"),
}
"""what is compared, and the words that say it"""
ENOUGH = 10_000
"""held-out tokens, below which no option is called better"""


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--data", nargs="+", required=True, metavar="FILE")
    options.add_argument(
        "--model", default="smollm2_135m_q4", help="an option of conf/model, or a directory or GGUF file"
    )
    options.add_argument("--only", default="", help="the sides that begin so, such as lora_plus")
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--length", type=int, default=1024)
    options.add_argument("--packs", type=int, default=2, help="of a step")
    options.add_argument("--held-out", type=float, default=0.2)
    options.add_argument(
        "--jobs", type=int, default=1, help="trainings at once; their seconds are then of a shared machine"
    )
    options.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    options.add_argument("--root", default="outputs", help="where the tokens lie")
    options.add_argument("--out", type=Path, default=Path("bench-lora.json"))
    wished = options.parse_args()
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # as in tuner's own processes
    logging.disable_progress_bar()
    print(table(compare(wished)))


def compare(wished: argparse.Namespace) -> dict[str, Any]:
    """Do what --out doesn't have yet, and write it there."""
    local = Path(wished.model).exists()
    model = (
        ["model=local", f"model.path={Path(wished.model).absolute()}"] if local else [f"model={wished.model}"]
    )
    data = [
        "data=local",
        f"data.path=[{','.join(str(Path(file).absolute()) for file in wished.data)}]",
        f"data.length={wished.length}",
    ]
    base = [*model, *data, f"data.held_out={wished.held_out}", f"root={wished.root}", "eval=none"]
    base += [
        f"machine.device={wished.device}",
        "machine.trackers=[]",
        "machine.preflight=false",
        "machine.save_every=1000000",
        f"machine.micro_batch={wished.packs}",
    ]
    base += [
        f"machine.threads={torch.get_num_threads()}",
        f"algo.steps={wished.steps}",
        f"algo.batch_tokens={wished.packs * wished.length}",
    ]
    made = run([*base, "until=tokenize"])
    inputs = {name: (made.dir / name).resolve() for name in ("fetch_model", "tokenize")}
    packs = Packs.open(inputs["tokenize"] / "held_out.arrow")
    if len(packs) > MEASURED:
        raise SystemExit(
            f"{len(packs)} packs are held out, and {MEASURED} of them are measured in a training: "
            "lower --held-out."
        )

    settings = {name: getattr(wished, name) for name in ("steps", "length", "packs", "held_out", "device")}
    files = [Path(file).name for file in wished.data]
    about = {
        "model": Path(wished.model).name,
        "data": files,
        "settings": settings,
        "device": device_name(wished.device),
        "versions": versions(),
    }
    found: dict[str, Any] = (
        json.loads(wished.out.read_text(encoding="utf-8"))
        if wished.out.exists()
        else {"about": about, "sides": {}}
    )
    if found["about"] != about:
        raise SystemExit(f"{wished.out} is of another comparison ({found['about']}): name another --out")
    if "before" not in found:
        found["before"], found["tokens"] = before(inputs["fetch_model"], packs, wished.device)
    names = [name for name in SIDES if name.startswith(wished.only)]
    missing = [
        (name, seed)
        for name in names
        for seed in SEEDS
        if str(seed) not in found["sides"].setdefault(name, {})
    ]
    with ProcessPoolExecutor(
        wished.jobs, get_context("spawn"), initializer=logging.disable_progress_bar, max_tasks_per_child=1
    ) as pool:
        running = {
            pool.submit(train, [*base, *SIDES[name], f"seed={seed}"], inputs): (name, seed)
            for name, seed in missing
        }
        try:
            for done in as_completed(running):
                name, seed = running[done]
                end = found["sides"][name][str(seed)] = done.result()
                wished.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
                print(
                    f"{name}, seed {seed}: held out {end['held_out']:.4f}, {end['seconds']:.0f} s", flush=True
                )
        finally:
            pool.shutdown(cancel_futures=True)  # the first that fails is the last
    return found


def before(directory: Path, packs: Packs, device: str) -> tuple[float | None, int]:
    """The base's loss on the held-out packs, and how many tokens that is over."""
    model = load_model(directory, dtype=torch.bfloat16 if device == "cuda" else torch.float32, device=device)
    backend, _ = attention.choose_backend(
        "auto", attention_needs(model, dtype=model.dtype, device=torch.device(device))
    )
    with attention.using_backend(backend):
        found = held_out_loss(model, packs, device)
    del model
    release()
    return found


def train(words: Sequence[str], inputs: Mapping[str, Path]) -> dict[str, Any]:
    """The training as the stage does it: the losses of its steps, the held-out loss at the end, what
    trains and how long it took.
    """
    config = compose(list(words))
    given = {name: Input(dir=path, files={}, facts={}) for name, path in inputs.items()}
    with tempfile.TemporaryDirectory() as out:
        began = time.monotonic()
        facts = session.run(
            Context(config=View(config, "train"), inputs=given, out=Path(out), say=lambda _: None)
        )
        seconds = time.monotonic() - began
        rows = [
            json.loads(line)
            for line in (Path(out) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
    losses = [row["loss"] for row in rows]
    return {
        "held_out": rows[-1]["held_out"],
        "trainable": facts["trainable"],
        "seconds": seconds,
        "loss": losses,
    }


def table(found: dict[str, Any]) -> str:
    """What a comparison found, as Markdown."""
    about, settings = found["about"], found["about"]["settings"]
    lines = [
        (
            f"{about['model']} on {', '.join(about['data'])}: {settings['steps']} steps of "
            f"{settings['packs']} packs of {settings['length']}; held-out loss before: "
            f"{found['before']:.4f}, over {found['tokens']:,} tokens; {about['device']}; "
            f"{about['versions']}"
        ),
        "",
        "| | held-out loss, mean | seeds 0 to 2 | spread | trainable parameters | seconds |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for name, seeds in found["sides"].items():
        if len(seeds) < len(SEEDS):
            continue  # not finished
        ends = [seeds[str(seed)]["held_out"] for seed in SEEDS]
        spent = statistics.mean(seeds[str(seed)]["seconds"] for seed in SEEDS)
        cells = [
            name,
            f"{statistics.mean(ends):.4f}",
            " ".join(f"{end:.4f}" for end in ends),
            f"{max(ends) - min(ends):.4f}",
        ]
        cells += [f"{seeds['0']['trainable']:,}", f"{spent:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    if found["tokens"] < ENOUGH:
        lines += ["", f"Fewer than {ENOUGH:,} held-out tokens: no option is better by this."]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
