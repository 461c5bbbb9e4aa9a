"""Loss curves of tuner's training beside plain transformers + PEFT, on the same batches: scripts/bench train
--model DIR --tokens DIR [--plot FILE.svg]

The other side is in bench_plain.py. It runs with three seeds, which draw the adapters and the order of the
data. The first is tuner's own: the same adapter and the same batches, so that each step can be compared. What
should hold: the held-out losses at the end differ by no more than those of the seeds do.

DIR of --tokens is a run's `tokenize`; --random makes a model of InternLM2-1.8B's shape first. What is done is
in --out at once, and is not done again by the same command. --from FILE … reads such files, and shows their
tables and draws them without training.

--also zero-1,zero-2 … adds tuner's training on DeepSpeed, with the same batches.
"""

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from bench_plain import ALGOS, ALPHA, BETAS, CLIP, DECAY, EPS, RANK, WARMUP, Setting, median, plain, release
from transformers.utils import logging

from tuner.config.schema import Algo, Config, Data, Machine, Optim
from tuner.config.view import View
from tuner.pipeline.stage import Context, Input
from tuner.train import session
from tuner.train.training_data import MEASURED

SEEDS = (0, 1, 2)
TUNERS = {
    "tuner": {},
    "zero-1": {"zero": 1},
    "zero-2": {"zero": 2},
    "zero-3": {"zero": 3},
    "zero-2-offload": {"zero": 2, "offload": "optimizer"},
    "zero-3-offload": {"zero": 3, "offload": "all"},
}
"""machine fields of tuner's own sides: the first is in each comparison, the others where --also names them"""


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--model", type=Path)
    options.add_argument(
        "--random",
        action="store_true",
        help="write a random model of InternLM2-1.8B's shape to --model first",
    )
    options.add_argument("--tokens", type=Path)
    options.add_argument("--name", default="", help="what the figure calls the model and the data")
    options.add_argument("--algo", default="qlora,lora,full")
    options.add_argument("--also", default="", help=f"some of {','.join(list(TUNERS)[1:])}")
    options.add_argument("--steps", type=int, default=60)
    options.add_argument("--packs", type=int, default=4, help="of a step")
    options.add_argument(
        "--jobs", type=int, default=1, help="trainings at once; their speeds are then of a shared machine"
    )
    options.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    options.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    options.add_argument("--out", type=Path, default=Path("bench-train.json"))
    options.add_argument(
        "--from", dest="read", type=Path, nargs="+", default=[], metavar="FILE", help="show what --out wrote"
    )
    options.add_argument("--plot", type=Path, help="the curves as SVG, with matplotlib")
    wished = options.parse_args()
    also = [side for side in wished.also.split(",") if side]
    if strange := set(also) - TUNERS.keys():
        options.error(f"--also has {', '.join(sorted(strange))}: there are {', '.join(TUNERS)}")
    if wished.plot:
        from bench_curves import draw  # before the training: should matplotlib be missing, it is said now
    if not wished.read:
        # as in tuner's own processes, here for both sides
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
        logging.disable_progress_bar()
        if not wished.model or not wished.tokens:
            options.error("--model and --tokens, or --from")
        if wished.random and not (wished.model / "config.json").exists():
            random_model(wished.model, wished.device)
        setting = Setting(
            model=wished.model,
            tokens=wished.tokens,
            steps=wished.steps,
            packs=wished.packs,
            measured=MEASURED,
            precision=wished.precision,
            device=wished.device,
        )
        sides = ["tuner", *map(str, SEEDS), *also]
        compare(
            setting, wished.algo.split(","), sides, wished.name or wished.model.name, wished.out, wished.jobs
        )
    found = read(wished.read or [wished.out])
    for one in found:
        print(table(one))
    if wished.plot:
        wished.plot.write_text(draw(found), encoding="utf-8")


def compare(
    setting: Setting, algos: Sequence[str], sides: Sequence[str], name: str, out: Path, jobs: int
) -> None:
    """Do what `out` doesn't have yet, `jobs` trainings at once, and write it there."""
    if not setting.held_out():
        raise SystemExit(f"nothing is held out in {setting.tokens}: what is compared is that loss")
    about = {
        "name": name,
        "settings": {
            "steps": setting.steps,
            "packs": setting.packs,
            "length": setting.length(),
            "precision": setting.precision,
        },
    }
    about |= {
        "device": device_name(setting.device),
        "versions": versions(),
        "held_out_packs": len(setting.held_out()),
    }
    found: dict[str, Any] = (
        json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"about": about, "algos": {}}
    )
    if found["about"] != about:
        raise SystemExit(f"{out} is of another comparison ({found['about']}): name another --out")
    missing = [
        (algo, side) for algo in algos for side in sides if side not in found["algos"].setdefault(algo, {})
    ]
    # A process for each, as tuner has: DeepSpeed starts but once in one.
    with ProcessPoolExecutor(
        jobs, get_context("spawn"), initializer=logging.disable_progress_bar, max_tasks_per_child=1
    ) as pool:
        running = {pool.submit(train, algo, side, setting): (algo, side) for algo, side in missing}
        try:
            for done in as_completed(running):
                algo, side = running[done]
                end = found["algos"][algo][side] = done.result()
                out.write_text(json.dumps(found, indent=1), encoding="utf-8")
                print(
                    f"{algo} {side}: {end['loss'][0]:.4f} … {end['loss'][-1]:.4f}, held out "
                    f"{end['held_out']:.4f}, {end['speed']:,.0f} tokens/s",
                    flush=True,
                )
        finally:
            pool.shutdown(cancel_futures=True)  # the first that fails is the last


def train(algo: str, side: str, setting: Setting) -> dict[str, Any]:
    return (
        tuners(algo, SEEDS[0], setting, TUNERS[side]) if side in TUNERS else plain(algo, int(side), setting)
    )


def read(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """What was found; files of one comparison, of which each has some of the algos, are one."""
    found: list[dict[str, Any]] = []
    for path in paths:
        one = json.loads(path.read_text(encoding="utf-8"))
        if same := next((other for other in found if other["about"] == one["about"]), None):
            same["algos"] |= one["algos"]
        else:
            found.append(one)
    return found


def tuners(algo: str, seed: int, setting: Setting, machine: Mapping[str, Any] = {}) -> dict[str, Any]:
    """The training as the stage does it: the curves `loss` and `norm`, the loss `held_out` at the end, and
    `speed` in tokens/s. `machine`: more of its fields.
    """
    kind, longest = ALGOS[algo], setting.length()
    config = Config(
        seed=seed,
        algo=Algo(
            adapter=kind["adapter"],
            quant=kind["quant"],
            r=RANK,
            alpha=float(ALPHA),
            precision=setting.precision,
            steps=setting.steps,
            warmup=WARMUP,
            clip=CLIP,
            batch_tokens=setting.packs * longest,
            optim=Optim(lr=kind["lr"], betas=BETAS, eps=EPS, weight_decay=DECAY),
        ),
        data=Data(length=longest),
        machine=Machine(
            device=setting.device,
            threads=torch.get_num_threads(),
            save_every=10**6,
            trackers=(),
            preflight=False,
            micro_batch=1,
            **machine,
        ),
    )
    inputs = {
        name: Input(dir=path, files={}, facts={})
        for name, path in (("fetch_model", setting.model), ("tokenize", setting.tokens))
    }
    with tempfile.TemporaryDirectory() as out:
        session.run(Context(config=View(config, "train"), inputs=inputs, out=Path(out), say=lambda _: None))
        rows = [
            json.loads(line)
            for line in (Path(out) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
    release()
    curves = {"loss": [row["loss"] for row in rows], "norm": [row["grad_norm"] for row in rows]}
    return curves | {
        "held_out": rows[-1]["held_out"],
        "speed": median([row["tokens_per_second"] for row in rows]),
    }


def random_model(directory: Path, device: str) -> None:
    from bench_models import SIZES
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=92544,
        max_position_embeddings=32768,
        rms_norm_eps=1e-5,
        rope_theta=1e6,
        tie_word_embeddings=False,
        **SIZES["1.8B"],
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(directory)
    del model
    release()


def table(found: dict[str, Any]) -> str:
    """What a comparison found, as Markdown. `apart` is the largest difference of a step's training loss,
    to the plain seed that saw the same batches.
    """
    about = found["about"]
    settings = about["settings"]
    lines = [
        (
            f"{about['name']}: {settings['steps']} steps of {settings['packs']} packs of "
            f"{settings['length']}, {settings['precision']}; held out {about['held_out_packs']} packs; "
            f"{about['device']}; {about['versions']}"
        ),
        "",
        (
            "| algo | held out before | tuner | transformers + PEFT, seeds 0 to 2 | difference | spread | "
            "apart | tokens/s, tuner | plain |"
        ),
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for algo, one in found["algos"].items():
        if not {"tuner", *map(str, SEEDS)} <= one.keys():
            continue  # not finished
        others = [one[str(seed)] for seed in SEEDS]
        ends = [other["held_out"] for other in others]
        for side in (side for side in TUNERS if side in one):
            own = one[side]
            apart = max(abs(a - b) for a, b in zip(own["loss"], others[0]["loss"], strict=True))
            cells = [
                algo if side == "tuner" else f"{algo}, {side}",
                f"{others[0]['before']:.4f}",
                f"{own['held_out']:.4f}",
                " ".join(f"{end:.4f}" for end in ends),
                f"{abs(own['held_out'] - ends[0]):.4f}",
                f"{max(ends) - min(ends):.4f}",
                f"{apart:.4f}",
                f"{own['speed']:,.0f}",
                f"{others[0]['speed']:,.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def device_name(device: str) -> str:
    return (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"CPU ({platform.machine()}), {torch.get_num_threads()} threads"
    )


def versions() -> str:
    def of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "none"

    return ", ".join(
        f"{package} {of(package)}" for package in ("torch", "transformers", "peft", "bitsandbytes")
    )


if __name__ == "__main__":
    main()
