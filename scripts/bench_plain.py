"""A training by transformers and PEFT alone, as one writes it by hand: what scripts/bench train has beside
tuner's.

Nothing in it is tuner's but the file of packs and which of them a step sees. Documents are rows of their own,
padded on the right, under an attention mask; the labels, their shift and the sum are transformers', the
optimizer, the clip and the schedule torch's. Model and adapter begin as PEFT draws them after
torch.manual_seed.
"""

import gc
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from tuner.data.packs import Pack, Packs
from tuner.data.sampler import plan_order

ALGOS = {
    "qlora": {"adapter": "lora", "quant": "nf4", "lr": 2e-4},
    "lora": {"adapter": "lora", "quant": "none", "lr": 2e-4},
    "full": {"adapter": "none", "quant": "none", "lr": 2e-5},
}
WARMUP, CLIP, RANK, ALPHA, BETAS, EPS, DECAY = 0.1, 1.0, 16, 32, (0.9, 0.999), 1e-8, 0.0
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What both sides are given."""

    model: Path
    """a Hugging Face directory"""
    tokens: Path
    """a run's `tokenize`: train.arrow, held_out.arrow, ledger.json"""
    steps: int
    packs: int
    """of a step"""
    measured: int
    """held-out packs at most"""
    precision: str
    """"bf16" or "fp32\""""
    device: str
    """"cpu" or "cuda\""""

    def train(self) -> Packs:
        return Packs.open(self.tokens / "train.arrow")

    def held_out(self) -> list[Pack]:
        packs = Packs.open(self.tokens / "held_out.arrow")
        return [packs[i] for i in range(min(len(packs), self.measured))]

    def length(self) -> int:
        """Of the longest pack, in tokens."""
        packs = self.train()
        return max(len(packs[i].ids) for i in range(len(packs)))


def plain(algo: str, seed: int, setting: Setting) -> dict[str, Any]:
    """Train; returns the curves `loss` and `norm`, the held-out loss `before` and after (`held_out`), and
    `speed` in tokens/s.

    `seed` draws the adapter, and the order of the packs as tuner draws it.
    """
    packs, held, longest = setting.train(), setting.held_out(), setting.length()
    order = plan_order(
        len(packs), longest, seed=seed, epochs=1, steps=setting.steps, batch_tokens=setting.packs * longest
    )
    model = build(algo, seed, setting)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=ALGOS[algo]["lr"], betas=BETAS, eps=EPS, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step, setting.steps))
    before = measure(model, held, setting)
    losses, norms, speeds = [], [], []
    for step in range(setting.steps):
        began = time.perf_counter()
        chosen = [packs[i] for i in order.at(step)]
        targets = sum(int(pack.trained.sum()) for pack in chosen)
        parts = []
        for pack in chosen:
            for rows in batches(pack, 2 * longest):
                loss = share_of_loss(model, rows, targets, setting)
                loss.backward()
                parts.append(loss.detach())
        norms.append(torch.nn.utils.clip_grad_norm_(weights, CLIP).item())
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(torch.stack(parts).sum().item())
        speeds.append(sum(len(pack.ids) for pack in chosen) / (time.perf_counter() - began))
    found = {
        "loss": losses,
        "norm": norms,
        "before": before,
        "held_out": measure(model, held, setting),
        "speed": median(speeds),
    }
    del model, optimizer, schedule, weights
    release()
    return found


def factor(step: int, steps: int) -> float:
    """Of the learning rate: a straight rise over the warm-up, whose first step learns already, then half a
    cosine.
    """
    rising = math.ceil(Decimal(str(WARMUP)) * steps)
    return (
        (step + 1) / (rising + 1)
        if step < rising
        else (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2
    )


def build(algo: str, seed: int, setting: Setting) -> Any:
    """The model as a user of these libraries builds it, in train mode."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    compute, kind = DTYPES[setting.precision], ALGOS[algo]
    full, quantised = kind["adapter"] == "none", kind["quant"] == "nf4"
    bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    model = AutoModelForCausalLM.from_pretrained(
        setting.model,
        dtype=torch.float32 if full else compute,
        device_map={"": setting.device},
        attn_implementation="sdpa",
        quantization_config=bits if quantised else None,
    )
    model.config.use_cache = False
    if full:
        # transformers gives the row of the padding token no gradient in the embedding. In SmolLM2 that token
        # ends each answer; tuner trains it, and so does this.
        model.get_input_embeddings().padding_idx = None
        return model.train()
    torch.manual_seed(seed)
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config).train()


def share_of_loss(
    model: Any, rows: Sequence[tuple[Any, Any]], targets: int, setting: Setting
) -> torch.Tensor:
    """The loss of these documents, summed and divided by `targets`, as transformers computes it."""
    ids_BT, labels_BT, mask_BT = (tensor.to(setting.device) for tensor in padded(rows))
    with (
        torch.autocast(setting.device, dtype=torch.bfloat16) if setting.precision == "bf16" else nullcontext()
    ):
        loss: torch.Tensor = model(
            input_ids=ids_BT, attention_mask=mask_BT, labels=labels_BT, num_items_in_batch=targets
        ).loss
    return loss


@torch.no_grad()
def measure(model: Any, held: Sequence[Pack], setting: Setting) -> float:
    """The loss per target over the held-out packs together.

    In train mode, which changes nothing without dropout: in eval mode bitsandbytes would repack 4 bits on
    some processors, and gradients be wrong from then on.
    """
    targets, longest = sum(int(pack.trained.sum()) for pack in held), setting.length()
    return sum(
        share_of_loss(model, rows, targets, setting).item()
        for pack in held
        for rows in batches(pack, 2 * longest)
    )


def batches(pack: Pack, most: int) -> Iterator[list[tuple[Any, Any]]]:
    """A pack's documents, longest first, in rows that have up to `most` tokens with their padding: (ids,
    trained) each.
    """
    begins = [0, *pack.lengths.cumsum().tolist()]
    rows: list[tuple[Any, Any]] = []
    for begin, end in sorted(pairwise(begins), key=lambda border: border[0] - border[1]):
        if rows and (len(rows) + 1) * len(rows[0][0]) > most:
            yield rows
            rows = []
        rows.append((pack.ids[begin:end], pack.trained[begin:end]))
    yield rows


def padded(rows: Sequence[tuple[Any, Any]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, labels (-100 where nothing is trained) and attention mask, [B, T]."""
    ids_BT = torch.zeros(len(rows), max(len(ids) for ids, _ in rows), dtype=torch.int64)
    labels_BT, mask_BT = torch.full_like(ids_BT, -100), torch.zeros_like(ids_BT)
    for row, (ids, trained) in enumerate(rows):
        taken = torch.from_numpy(ids.astype("int64"))
        ids_BT[row, : len(ids)] = taken
        labels_BT[row, : len(ids)] = taken.where(torch.from_numpy(trained.astype(bool)), -100)
        mask_BT[row, : len(ids)] = 1
    return ids_BT, labels_BT, mask_BT


def release() -> None:
    """Give back the memory of what is no longer used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
