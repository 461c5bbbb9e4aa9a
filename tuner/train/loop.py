"""The training loop: every step from its packs to its row of metrics, in the order in which it happens.

Every process of a run goes through it. What decides how it goes on (losses, a request to stop) is gathered
from all of them once a step, so all decide alike.

A process that is alone with its GPU reads what came of a step only when it has launched the next one, so that
the GPU computes while the host writes rows and collates. A step after which weights or held-out loss are
needed is read before the next one is launched. On a CPU, and of several processes, every step is.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
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
from tuner.train.monitor.step_clock import StepClock
from tuner.train.read_later import read_later
from tuner.train.schedule import lr_at, patience_exhausted
from tuner.train.stop_signal import Stop


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchedStep:
    """A step that the device computes, and whose losses and norm the host may not have read yet."""

    number: int
    """1 for the first"""
    packs: Sequence[Pack]
    origins: Sequence[MicroBatchOrigin]
    """where its micro batches come from"""
    targets: int
    tokens: int
    """of all steps so far"""
    lr: float
    losses: Callable[[], list[float]]
    """waits for the device: the summed loss, in nats, of each micro batch of all processes; raises StageError
    where one is not finite
    """
    norm: Callable[[], float]
    """waits for the device: of the gradient, before clipping; raises StageError where it is not finite"""
    ended: Callable[[], float]
    """waits for the device: the moment, of time.monotonic(), at which its weights were there"""


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
    """of packs that a row's step took so many seconds for: its part of the row about the device"""
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
        late = self.engine.asynchronous and self.world.size == 1 and not self.config.algo.early_stop
        watch = AnomalyWatch(horizon=self.horizon, rows=self.journal.recent)
        clock = StepClock(self.engine.device)
        with Progress(start=begin, steps=steps_, say=self.say, shown=self.world.first) as progress:
            finish = partial(self._finish, clock, progress, watch)
            with finishing(finish) as unread:
                for step in range(begin, steps_):
                    if self._patience_exhausted():
                        return step  # it had ended here before it was killed
                    launched = self._launch(step, tokens, clock, late=late)
                    if unread:
                        finish(unread.pop())  # the step before, while the device computes this one
                    done, tokens, last = launched.number, launched.tokens, launched.number == steps_
                    # once: a request that comes after this line is for the next step
                    requests = self.world.gather([self.stop.requested, self.stop.by_hand])
                    stopping = any(requested for requested, _ in requests) and not last
                    saving = last or stopping or done == self.pinned or done % machine.save_every == 0
                    measuring = bool(self.held_out.rows) and (saving or self._measures(done))
                    if late and not saving and not measuring:
                        unread.append(launched)
                        self.saver.poll()
                        continue
                    row = finish(launched, measuring=measuring)
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

    def _launch(self, step: int, tokens: int, clock: StepClock, *, late: bool) -> LaunchedStep:
        """Let the device compute gradients and apply them, of the step after `step` others, which saw
        `tokens`. Unless its losses and norm are read late, they are read here, each as soon as it is there.
        """
        algo = self.config.algo
        torch.manual_seed(step_seed(self.config.seed, step))
        packs = [self.packs[i] for i in self.order.at(step)]
        rows = list(SingleDocuments(packs)) if self.single_documents else packs
        targets, shared = count_targets(packs), self.config.machine.sequence_parallel
        origins = micro_batch_origins(rows, self.micro_batch, self.world.size, self.source_lines, shared)
        batches = micro_batches(rows, self.micro_batch, self.world, step, shared)
        if self.shape is not None:
            batches = [self.shape.fill(batch) for batch in batches]

        own = read_later(self.engine.forward_backward(batches, targets))

        def explain() -> str:
            return self.explain(lambda: measure_batches(self.engine, batches, self.held_out.loss))

        @cache
        def losses() -> list[float]:
            found = [loss for part in self.world.gather(own().tolist()) for loss in part]
            refuse_not_finite("loss", found, step + 1, origins, explain)
            return found

        if not late:
            losses()  # before the weights change
        lr = lr_at(
            step,
            self.horizon,
            lr=algo.optim.lr,
            schedule=algo.schedule,
            warmup=algo.warmup,
            decay=algo.decay,
        )
        gradient_norm = read_later(self.engine.step(lr, algo.clip))
        ended = clock.mark()

        @cache
        def norm() -> float:
            found = gradient_norm().item()
            refuse_not_finite("gradient", [found] * len(origins), step + 1, origins)
            return found

        if not late:
            norm()
        return LaunchedStep(
            number=step + 1,
            packs=packs,
            origins=origins,
            targets=targets,
            tokens=tokens + sum(len(pack.ids) for pack in packs),
            lr=lr,
            losses=losses,
            norm=norm,
            ended=ended,
        )

    def _finish(
        self,
        clock: StepClock,
        progress: Progress,
        watch: AnomalyWatch,
        launched: LaunchedStep,
        *,
        measuring: bool = False,
    ) -> dict[str, Any]:
        """Read what came of a step, measure the held-out loss where it is due, and tell of both; the step's
        row of metrics.
        """
        losses, norm = launched.losses(), launched.norm()
        spent, seen = clock.lap(launched.ended()), sum(len(pack.ids) for pack in launched.packs)
        row = {
            "step": launched.number,
            "loss": sum(losses) / max(1, launched.targets),
            "lr": launched.lr,
            "grad_norm": norm,
            "tokens": launched.tokens,
            "targets": launched.targets,
            "seconds": round(self.journal.seconds + spent, 3),
            "tokens_per_second": round(seen / max(spent, 1e-6), 1),
            **self.usage(launched.packs, spent),
        }
        if measuring:
            with clock.stopped():
                shared = self.config.machine.sequence_parallel
                row["held_out"] = self.held_out.measure(self.engine, self.world, shared)
                self.sample(launched.number)
        self.journal.write(row)
        progress.show(row)
        for sentence in watch.observe(row, partial(rows_of, launched.origins)):
            self.say(sentence)
        return row

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


@contextmanager
def finishing(finish: Callable[[LaunchedStep], object]) -> Iterator[list[LaunchedStep]]:
    """A list for the step that is launched and not finished. Where an error ends the loop, the step is
    finished first: its row is written, or what was wrong with it already is raised.
    """
    unread: list[LaunchedStep] = []
    try:
        yield unread
    except (Exception, Interrupted):
        while unread:
            finish(unread.pop())
        raise


def step_seed(seed: int, step: int) -> int:
    """The seed of all randomness inside a step: known from its number, so no generator's state is ever
    saved.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}".encode()).digest()[:8]) >> 1
