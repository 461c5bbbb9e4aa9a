"""Loss curves of tuner's training beside plain transformers + PEFT, on the same batches: scripts/bench train --model DIR --tokens DIR [--algo qlora,lora,full]

The other side is written here with nothing of tuner's but the packs and their order: documents are rows of their own, padded, under an attention mask; the
labels are shifted as transformers does; the optimizer is torch's. It runs with three seeds, which draw the adapters and the order of the data; the first is
tuner's own. What should hold: the held-out losses at the end differ by no more than those seeds do. DIR of --tokens is a run's `tokenize`; --random makes a
model of InternLM2-1.8B's shape first.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from tuner.data.tokens import Pack, Packs
from tuner.schema import Algo, Config, Data, Machine, Optim
from tuner.stage import Context, Input, View
from tuner.train.order import plan_order
from tuner.train.schedule import lr_at

SEEDS = (0, 1, 2)
ALGOS = {
    "qlora": {"adapter": "lora", "quant": "nf4", "lr": 2e-4},
    "lora": {"adapter": "lora", "quant": "none", "lr": 2e-4},
    "full": {"adapter": "none", "quant": "none", "lr": 2e-5},
}
WARMUP, CLIP, RANK, ALPHA = 0.1, 1.0, 16, 32


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", type=Path, required=True)
    options.add_argument("--random", action="store_true", help="write a random model of InternLM2-1.8B's shape to --model first")
    options.add_argument("--tokens", type=Path, required=True)
    options.add_argument("--length", type=int, default=1024)
    options.add_argument("--algo", default="qlora,lora,full")
    options.add_argument("--steps", type=int, default=60)
    options.add_argument("--packs", type=int, default=4, help="of a step")
    options.add_argument("--held-out", type=int, default=16, help="packs measured")
    options.add_argument("--out", type=Path, default=Path("bench-train.json"))
    wished = options.parse_args()
    if wished.random:
        random_model(wished.model)
    found: dict[str, Any] = {}
    print(
        "| algo | tuner | transformers + PEFT, seeds 0 to 2 | difference | spread | tokens/s, tuner | plain |\n| --- | --- | --- | --- | --- | --- | --- |",
        flush=True,
    )
    for algo in wished.algo.split(","):
        own = tuners(algo, wished)
        others = [plain(algo, seed, wished) for seed in SEEDS]
        found[algo] = {"tuner": own, "plain": others}
        ends = [other["held_out"] for other in others]
        cells = [
            f"{own['held_out']:.4f}",
            " ".join(f"{end:.4f}" for end in ends),
            f"{abs(own['held_out'] - ends[0]):.4f}",
            f"{max(ends) - min(ends):.4f}",
        ]
        print(f"| {algo} | {' | '.join(cells)} | {own['speed']:,.0f} | {others[0]['speed']:,.0f} |", flush=True)
        wished.out.write_text(json.dumps(found), encoding="utf-8")


def random_model(directory: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=92544, hidden_size=2048, intermediate_size=8192, num_hidden_layers=24, num_attention_heads=16, num_key_value_heads=8,
        max_position_embeddings=32768, rms_norm_eps=1e-5, rope_theta=1e6, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device()):
        model = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(directory)


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def tuners(algo: str, wished: argparse.Namespace) -> dict[str, Any]:
    """The training as the stage does it."""
    from tuner.train import worker

    kind = ALGOS[algo]
    config = Config(
        algo=Algo(
            adapter=kind["adapter"], quant=kind["quant"], r=RANK, alpha=float(ALPHA), precision="bf16", steps=wished.steps, warmup=WARMUP, clip=CLIP,
            batch_tokens=wished.packs * wished.length, optim=Optim(lr=kind["lr"]),
        ),
        data=Data(length=wished.length),
        machine=Machine(save_every=10**6, trackers=(), preflight=False, micro_batch=1),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        inputs = {"fetch_model": Input(dir=wished.model, files={}, facts={}), "tokenize": Input(dir=wished.tokens, files={}, facts={})}
        worker.run(Context(config=View(replace(config, seed=SEEDS[0]), "train"), inputs=inputs, out=out, say=lambda _: None))
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        torch.cuda.empty_cache()
        return {"loss": [row["loss"] for row in rows], "held_out": rows[-1]["held_out"], "speed": median([row["tokens_per_second"] for row in rows])}


def plain(algo: str, seed: int, wished: argparse.Namespace) -> dict[str, Any]:
    """The same by transformers and PEFT alone."""
    packs, held = (Packs.open(wished.tokens / f"{name}.arrow") for name in ("train", "held_out"))
    order = plan_order(len(packs), wished.length, seed=seed, epochs=1, steps=wished.steps, batch_tokens=wished.packs * wished.length)
    model = built(algo, seed, wished.model)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    losses, speeds = [], []
    for step in range(wished.steps):
        began = time.perf_counter()
        chosen = [packs[i] for i in order.at(step)]
        targets = sum(int(pack.trained.sum()) for pack in chosen)
        total = 0.0
        for pack in chosen:
            loss = summed(model, pack)
            (loss / targets).backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(weights, CLIP)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, wished.steps, lr=ALGOS[algo]["lr"], schedule="cosine", warmup=WARMUP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total / targets)
        speeds.append(sum(len(pack.ids) for pack in chosen) / (time.perf_counter() - began))
    model.eval()
    # as many as the training measures, see tuner.train.worker
    with torch.no_grad():
        measured = [held[i] for i in range(min(len(held), 64))]
        end = sum(summed(model, pack).item() for pack in measured) / sum(int(pack.trained.sum()) for pack in measured)
    del model, optimizer, weights
    torch.cuda.empty_cache()
    return {"loss": losses, "held_out": end, "speed": median(speeds)}


def built(algo: str, seed: int, directory: Path) -> Any:
    """The model as a user of these libraries builds it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantised = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )  # fmt: skip
    full = ALGOS[algo]["adapter"] == "none"
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32 if full else torch.bfloat16, device_map={"": device()}, attn_implementation="sdpa",
        quantization_config=quantised if ALGOS[algo]["quant"] == "nf4" else None,
    )  # fmt: skip
    model.config.use_cache = False
    if full:
        return model.train()
    torch.manual_seed(seed)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config).train()


def summed(model: Any, pack: Pack) -> torch.Tensor:
    """The summed loss of a pack's documents, each a row of its own, padded on the right."""
    begins = [0, *pack.lengths.cumsum().tolist()]
    documents = [(pack.ids[a:b], pack.trained[a:b]) for a, b in pairwise(begins)]
    longest = max(len(ids) for ids, _ in documents)
    ids_BT, labels_BT, mask_BT = padded(documents, longest)
    with torch.autocast(device(), dtype=torch.bfloat16):
        logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT).logits
    return cross_entropy(logits_BTV[:, :-1].float().flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=-100, reduction="sum")


def padded(documents: Sequence[tuple[Any, Any]], longest: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids_BT = torch.zeros(len(documents), longest, dtype=torch.int64)
    labels_BT, mask_BT = torch.full_like(ids_BT, -100), torch.zeros_like(ids_BT)
    for row, (ids, trained) in enumerate(documents):
        taken = torch.from_numpy(ids.astype("int64"))
        ids_BT[row, : len(ids)] = taken
        labels_BT[row, : len(ids)] = torch.where(torch.from_numpy(trained.astype(bool)), taken, torch.full_like(taken, -100))
        mask_BT[row, : len(ids)] = 1
    return ids_BT.to(device()), labels_BT.to(device()), mask_BT.to(device())


def median(values: Sequence[float]) -> float:
    ordered = sorted(value for value in values if math.isfinite(value))
    return ordered[len(ordered) // 2]


if __name__ == "__main__":
    main()
