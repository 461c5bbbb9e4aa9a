"""The training loop: every step from its packs to its row of metrics, in the order in which it happens."""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tuner.data.tokens import Pack, Packs
from tuner.errors import Interrupted, StageError, Stopped
from tuner.train import checkpoint, steps
from tuner.train.batch import collate, count_targets
from tuner.train.engine import Engine
from tuner.train.journal import Journal
from tuner.train.order import Order
from tuner.train.progress import Progress
from tuner.train.schedule import lr_at
from tuner.train.stop import Stop

ROWS_NAMED = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """The numbers that the loop reads."""

    seed: int
    """of dropout"""
    lr: float
    schedule: str
    horizon: int
    """the steps over which the learning rate runs its course"""
    warmup: float
    clip: float | None
    micro_batch: int
    """packs in one forward pass"""
    save_every: int
    """steps between checkpoints"""
    keep: int
    """newest checkpoints that stay"""
    best_by: str
    """the score whose lowest step stays too"""
    pinned: int | None
    """a step that is saved and stays whatever comes"""
    resumable: bool
    """whether the last step keeps the optimizer's state"""


def train(
    engine: Engine,
    packs: Packs,
    order: Order,
    recipe: Recipe,
    *,
    out: Path,
    device: torch.device,
    begin: int,
    tokens: int,
    held_out: Sequence[Pack],
    journal: Journal,
    stop: Stop,
    say: Callable[[str], None],
    where: Callable[[Pack], list[str]],
) -> None:
    """Do the steps from `begin` on and save into `out`; `tokens` were seen before, and `where` names the rows of a pack.

    Whenever a step is saved, the loss on the packs `held_out` is measured: it says which step is best.
    Raises Interrupted after the step at hand is saved when `stop` was requested, StageError at a loss or gradient that is not finite.
    """
    with Progress(start=begin, steps=order.steps, say=say) as progress:
        for step in range(begin, order.steps):
            started = time.monotonic()
            torch.manual_seed(step_seed(recipe.seed, step))
            chosen = [packs[i] for i in order.at(step)]
            targets = count_targets(chosen)
            micro = [chosen[i : i + recipe.micro_batch] for i in range(0, len(chosen), recipe.micro_batch)]

            losses = engine.forward_backward((collate(part, device) for part in micro), targets)
            refuse_not_finite("loss", losses, step, micro, where)
            norm = engine.clip(recipe.clip)
            refuse_not_finite("gradient", [norm] * len(micro), step, micro, where)
            lr = lr_at(step, recipe.horizon, lr=recipe.lr, schedule=recipe.schedule, warmup=recipe.warmup)
            engine.step(lr)

            spent, seen = time.monotonic() - started, sum(len(pack.ids) for pack in chosen)
            tokens += seen
            row = {"step": step + 1, "loss": sum(losses) / max(1, targets), "lr": lr, "grad_norm": norm, "tokens": tokens}
            row |= {"seconds": round(journal.seconds + spent, 3), "tokens_per_second": round(seen / spent, 1)}
            last = step + 1 == order.steps
            stopping = stop.requested and not last  # read once: a wish that comes after this line is for the next step
            saving = last or stopping or step + 1 == recipe.pinned or (step + 1) % recipe.save_every == 0
            if saving and held_out:
                row["held_out"] = engine.measure(collate([pack], device) for pack in held_out)
            journal.write(row)
            progress.show(row)
            if saving:
                journal.sync()
                scores: dict[str, float] = {name: row[name] for name in steps.SCORES if name in row}
                checkpoint.save(out, engine.state(), step=step + 1, tokens=tokens, scores=scores, optimizer=not last or recipe.resumable)
                # Two can be gone on from, should one be damaged; the others are there to be handed on.
                steps.prune(out, keep=recipe.keep, by=recipe.best_by, pinned=recipe.pinned, resumable=2)
            if stopping:
                by_hand = stop.by_hand
                stop.answered()
                kind, who = (Stopped, "by hand ") if by_hand else (Interrupted, "")
                raise kind(f"Training was stopped {who}after step {step + 1} of {order.steps}, which is saved; the same command continues.")


def step_seed(seed: int, step: int) -> int:
    """The seed of all randomness inside a step: known from its number, so no generator's state is ever saved."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}".encode()).digest()[:8]) >> 1


def refuse_not_finite(what: str, values: Sequence[float], step: int, micro: Sequence[Sequence[Pack]], where: Callable[[Pack], list[str]]) -> None:
    """Raise StageError that names the step and the rows of the micro batches whose value is not finite."""
    bad = [part for part, value in zip(micro, values, strict=True) if not math.isfinite(value)]
    if not bad:
        return
    value = next(value for value in values if not math.isfinite(value))
    rows = [row for part in bad for pack in part for row in where(pack)]
    more = f" and {len(rows) - ROWS_NAMED} more" if len(rows) > ROWS_NAMED else ""
    raise StageError(
        f"The {what} of step {step + 1} is {value}. It comes from the rows {', '.join(rows[:ROWS_NAMED])}{more}. "
        "Look at these rows; if they are sound, lower algo.optim.lr or set algo.precision=fp32. Earlier steps are kept."
    )
