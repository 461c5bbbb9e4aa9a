"""The training loop: every step from its packs to its row of metrics, in the order in which it happens.

Every process of a run goes through it. What decides how it goes on (losses, a request to stop) is gathered
from all of them once a step, so all decide alike.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from tuner.config.view import View
from tuner.data.packs import Pack, Packs
from tuner.data.sampler import Order
from tuner.errors import Interrupted, Stopped
from tuner.train.batch import SingleDocuments, count_targets, micro_batches
from tuner.train.batch_shape import BatchShape
from tuner.train.checkpoints import steps
from tuner.train.checkpoints.save import Saver
from tuner.train.distributed import World
from tuner.train.engine import Engine
from tuner.train.held_out import HeldOut, measure_batches
from tuner.train.monitor.anomalies import (
    AnomalyWatch,
    MicroBatchOrigin,
    micro_batch_origins,
    refuse_not_finite,
    rows_of,
)
from tuner.train.monitor.metrics import Journal
from tuner.train.monitor.progress import Progress
from tuner.train.schedule import lr_at, patience_exhausted
from tuner.train.stop_signal import Stop


@dataclass(frozen=True, kw_only=True)
class TrainingLoop:
    """What a run is made of, and the loop over its steps."""

    config: View
    engine: Engine
    world: World
    packs: Packs
    order: Order
    """which packs each step takes"""
    horizon: int
    """the steps over which the learning rate runs its course"""
    micro_batch: int
    """rows in one forward pass"""
    single_documents: bool
    """whether each document is a row of its own, since the model carries a state from token to token"""
    held_out: HeldOut
    pinned: int | None
    """a step that is saved whatever comes"""
    resumable: bool
    """whether the last step keeps the optimizer's state"""
    saver: Saver
    stop: Stop
    journal: Journal
    say: Callable[[str], None]
    source_lines: Callable[[Pack], list[str]]
    """the `file:line` of a pack's documents"""
    usage: Callable[[Sequence[Pack], float], dict[str, Any]]
    """of packs that a step took so many seconds for: its part of the row about the device"""
    sample: Callable[[int], None]
    """called with the step's number where the held-out loss was measured"""
    explain: Callable[[Callable[[], object]], str]
    """what a loss that is not finite comes from, for a function that computes it again; all processes ask
    together
    """
    shape: BatchShape | None = None
    """what rows are filled to, where layers are compiled"""

    def run(self, begin: int, tokens: int) -> int:
        """Do the steps from `begin` on, before which `tokens` were seen; returns the last one's number, which
        is order.steps unless early stopping ended the run.

        Raises Interrupted after the step at hand is saved when `stop` was requested, StageError at a loss or
        gradient that is not finite.
        """
        machine, steps_ = self.config.machine, self.order.steps
        watch = AnomalyWatch(horizon=self.horizon, rows=self.journal.recent)
        with Progress(start=begin, steps=steps_, say=self.say, shown=self.world.first) as progress:
            for step in range(begin, steps_):
                if self._patience_exhausted():
                    return step  # it had ended here before it was killed
                row, origins = self._step(step, tokens)
                done, tokens, last = step + 1, row["tokens"], step + 1 == steps_
                # once: a request that comes after this line is for the next step
                requests = self.world.gather([self.stop.requested, self.stop.by_hand])
                stopping = any(requested for requested, _ in requests) and not last
                saving = last or stopping or done == self.pinned or done % machine.save_every == 0
                if self.held_out.rows and (saving or self._measures(done)):
                    row["held_out"] = self.held_out.measure(
                        self.engine, self.world, machine.sequence_parallel
                    )
                    self.sample(done)
                self.journal.write(row)
                progress.show(row)
                for sentence in watch.observe(row, partial(rows_of, origins)):
                    self.say(sentence)
                if self._patience_exhausted():
                    last = saving = True
                if saving:
                    self._save(row, optimizer=not last or self.resumable)
                self.saver.poll()
                if stopping and not last:
                    self._interrupt(done, by_hand=any(by_hand for _, by_hand in requests))
                if last:
                    watch.close()
                    return done
        return steps_

    def _step(self, step: int, tokens: int) -> tuple[dict[str, Any], list[MicroBatchOrigin]]:
        """Compute gradients and apply them; the step's row of metrics, and where its micro batches come
        from.
        """
        started, algo = time.monotonic(), self.config.algo
        torch.manual_seed(step_seed(self.config.seed, step))
        packs = [self.packs[i] for i in self.order.at(step)]
        rows = list(SingleDocuments(packs)) if self.single_documents else packs
        targets, shared = count_targets(packs), self.config.machine.sequence_parallel
        origins = micro_batch_origins(rows, self.micro_batch, self.world.size, self.source_lines, shared)
        batches = micro_batches(rows, self.micro_batch, self.world, step, shared)
        if self.shape is not None:
            batches = [self.shape.fill(batch) for batch in batches]

        losses = self.engine.forward_backward(batches, targets)
        losses = [loss for own in self.world.gather(losses) for loss in own]

        def explain() -> str:
            return self.explain(lambda: measure_batches(self.engine, batches, self.held_out.loss))

        refuse_not_finite("loss", losses, step + 1, origins, explain)
        lr = lr_at(
            step,
            self.horizon,
            lr=algo.optim.lr,
            schedule=algo.schedule,
            warmup=algo.warmup,
            decay=algo.decay,
        )
        norm = self.engine.step(lr, algo.clip)
        refuse_not_finite("gradient", [norm] * len(origins), step + 1, origins)

        spent, seen = time.monotonic() - started, sum(len(pack.ids) for pack in packs)
        return {
            "step": step + 1,
            "loss": sum(losses) / max(1, targets),
            "lr": lr,
            "grad_norm": norm,
            "tokens": tokens + seen,
            "targets": targets,
            "seconds": round(self.journal.seconds + spent, 3),
            "tokens_per_second": round(seen / spent, 1),
            **self.usage(packs, spent),
        }, origins

    def _measures(self, done: int) -> bool:
        """Whether the held-out loss is due after so many steps, beside those that are saved."""
        algo, machine = self.config.algo, self.config.machine
        if algo.early_stop and done % algo.early_stop_every == 0:
            return True
        every: int = machine.measure_every or machine.save_every
        return done % every == 0

    def _patience_exhausted(self) -> bool:
        algo = self.config.algo
        if not algo.early_stop:
            return False
        return patience_exhausted(self.journal.measured, algo.early_stop, algo.early_stop_every)

    def _save(self, row: dict[str, Any], *, optimizer: bool) -> None:
        self.journal.sync()
        scores: dict[str, float] = {name: row[name] for name in steps.SCORES if name in row}
        self.saver.save(
            self.engine.state(), step=row["step"], tokens=row["tokens"], scores=scores, optimizer=optimizer
        )

    def _interrupt(self, done: int, *, by_hand: bool) -> None:
        """Raise Interrupted when the step is on the disk."""
        self.saver.wait()
        self.stop.answered()
        kind, who = (Stopped, "by hand ") if by_hand else (Interrupted, "")
        raise kind(
            f"Training was stopped {who}after step {done} of {self.order.steps}, which is saved; the same "
            "command continues."
        )


def step_seed(seed: int, step: int) -> int:
    """The seed of all randomness inside a step: known from its number, so no generator's state is ever
    saved.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}".encode()).digest()[:8]) >> 1
