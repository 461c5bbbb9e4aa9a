"""The training loop: every step from its packs to its row of metrics, in the order in which it happens.

Every process of a training runs it. What decides how it goes on (losses, a wish to stop) is told to all of
them once a step, so all decide alike.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tuner.data.packs import Pack, Packs
from tuner.data.sampler import Order
from tuner.errors import Interrupted, Stopped
from tuner.train.batch import SingleDocuments, count_targets
from tuner.train.checkpoints import steps
from tuner.train.checkpoints.save import Saver
from tuner.train.distributed import World
from tuner.train.engine import Engine
from tuner.train.held_out import HeldOut, measure_batches
from tuner.train.micro_batches import micro_batch_origins, micro_batches
from tuner.train.monitor.anomalies import AnomalyWatch, refuse_not_finite
from tuner.train.monitor.metrics import Journal, device_usage
from tuner.train.monitor.progress import Progress
from tuner.train.schedule import lr_at, patience_exhausted
from tuner.train.stop_signal import Stop


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """The numbers that the loop reads."""

    seed: int
    """of all randomness inside a step"""
    lr: float
    schedule: str
    horizon: int
    """the steps over which the learning rate runs its course"""
    warmup: float
    decay: float
    clip: float | None
    micro_batch: int
    """packs in one forward pass"""
    alone: bool
    """whether each document is a row of its own, since the model carries a state from token to token; the
    micro batch is one of them then
    """
    sequence_parallel: int
    """processes that share each pack"""
    save_every: int
    """steps between checkpoints"""
    measure_every: int | None
    """steps between measurements of the held-out loss, beside those at checkpoints"""
    patience: int | None
    """measurements without a new lowest loss after which the training ends; each `patience_every` steps
    one counts
    """
    patience_every: int
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
    world: World,
    begin: int,
    tokens: int,
    held_out: HeldOut,
    journal: Journal,
    saver: Saver,
    stop: Stop,
    say: Callable[[str], None],
    where: Callable[[Pack], list[str]],
    flops: Callable[[Sequence[Pack]], float],
    peak: float | None,
    sample: Callable[[int], None],
    why: Callable[[Callable[[], object]], str] = lambda _: "",
) -> int:
    """Do the steps from `begin` on; returns the last one's number, which is order.steps unless the training
    ended early.

    tokens   seen before `begin`
    where    the `file:line` of a pack's documents
    flops    the floating-point operations of a step on these packs
    peak     the most that one device does a second, where that is known
    sample   called with the step's number where the held-out loss was measured
    why      what a loss that is not finite comes from, for a function that computes it again; all processes
             ask together

    Raises Interrupted after the step at hand is saved when `stop` was requested, StageError at a loss or
    gradient that is not finite.
    """
    shared = recipe.sequence_parallel
    watcher = AnomalyWatch(horizon=recipe.horizon, rows=journal.recent)
    with Progress(start=begin, steps=order.steps, say=say, shown=world.first) as progress:
        for step in range(begin, order.steps):
            if recipe.patience and patience_exhausted(
                journal.measured, recipe.patience, recipe.patience_every
            ):
                return step  # it had ended here before it was killed
            started = time.monotonic()
            torch.manual_seed(step_seed(recipe.seed, step))
            chosen = [packs[i] for i in order.at(step)]
            targets = count_targets(chosen)
            rows = list(SingleDocuments(chosen)) if recipe.alone else chosen
            places = micro_batch_origins(rows, recipe.micro_batch, world.size, where, shared)

            batches = micro_batches(rows, recipe.micro_batch, world, step, shared)
            losses = engine.forward_backward(batches, targets)
            losses = [loss for own in world.gather(losses) for loss in own]
            refuse_not_finite(
                "loss",
                losses,
                step + 1,
                places,
                lambda batches=batches: why(lambda: measure_batches(engine, batches, held_out.loss)),  # type: ignore[misc]
            )
            lr = lr_at(
                step,
                recipe.horizon,
                lr=recipe.lr,
                schedule=recipe.schedule,
                warmup=recipe.warmup,
                decay=recipe.decay,
            )
            norm = engine.step(lr, recipe.clip)
            refuse_not_finite("gradient", [norm] * len(places), step + 1, places)

            spent, seen = time.monotonic() - started, sum(len(pack.ids) for pack in chosen)
            tokens += seen
            row = {
                "step": step + 1,
                "loss": sum(losses) / max(1, targets),
                "lr": lr,
                "grad_norm": norm,
                "tokens": tokens,
                "targets": targets,
            }
            row |= {"seconds": round(journal.seconds + spent, 3), "tokens_per_second": round(seen / spent, 1)}
            row |= device_usage(
                world.device, flops=flops(chosen), seconds=spent, peak=peak, processes=world.size
            )
            done, last = step + 1, step + 1 == order.steps
            # once: a wish that comes after this line is for the next step
            wishes = world.gather([stop.requested, stop.by_hand])
            stopping = any(wish for wish, _ in wishes) and not last
            saving = last or stopping or done == recipe.pinned or done % recipe.save_every == 0
            measuring = saving or done % (recipe.measure_every or recipe.save_every) == 0
            if held_out.rows and (measuring or (recipe.patience and done % recipe.patience_every == 0)):
                row["held_out"] = held_out.measure(engine, world, shared)
                sample(done)
            journal.write(row)
            progress.show(row)
            for sentence in watcher.observe(
                row,
                lambda places=places: [name for place in places for name in place.rows()],  # type: ignore[misc]
            ):
                say(sentence)
            if recipe.patience and patience_exhausted(
                journal.measured, recipe.patience, recipe.patience_every
            ):
                last = saving = True
            if saving:
                journal.sync()
                scores: dict[str, float] = {name: row[name] for name in steps.SCORES if name in row}
                saver.save(
                    engine.state(),
                    step=done,
                    tokens=tokens,
                    scores=scores,
                    optimizer=not last or recipe.resumable,
                )
            saver.poll()
            if stopping and not last:
                saver.wait()
                stop.answered()
                kind, who = (
                    (Stopped, "by hand ") if any(by_hand for _, by_hand in wishes) else (Interrupted, "")
                )
                raise kind(
                    f"Training was stopped {who}after step {done} of {order.steps}, which is saved; the same "
                    "command continues."
                )
            if last:
                watcher.close()
                return done
    return order.steps


def step_seed(seed: int, step: int) -> int:
    """The seed of all randomness inside a step: known from its number, so no generator's state is ever
    saved.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}".encode()).digest()[:8]) >> 1
