"""Sets a run up from a stage's context, goes through the loop, and leaves the artifact: what each process of
the run does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tuner.data.packs import Pack, Packs
from tuner.data.sampler import Order, plan_order
from tuner.models.checkpoint.files import weight_files
from tuner.models.full_finetune import count_trainable
from tuner.models.load import compute_dtype, dtype_name
from tuner.models.nonfinite import explain_nonfinite
from tuner.models.stateful_layers import carried_state
from tuner.pipeline.stage import Context
from tuner.progress import working
from tuner.train import auto_settings, kernels, summary
from tuner.train.batch import SingleDocuments
from tuner.train.batch_shape import BatchShape
from tuner.train.checkpoints import removal, resume, sharded, steps
from tuner.train.checkpoints.save import Saver
from tuner.train.checkpoints.steps import SavedStep
from tuner.train.determinism import deterministic
from tuner.train.distributed import World, from_environment
from tuner.train.engine import Engine
from tuner.train.held_out import HeldOut
from tuner.train.loop import TrainingLoop
from tuner.train.monitor.metrics import device_usage, open_journal
from tuner.train.monitor.samples import open_sampler
from tuner.train.objectives import objective_of
from tuner.train.preflight.run import SINGLE_DOCUMENTS, preflight
from tuner.train.schedule import schedule_horizon
from tuner.train.setup import (
    autocast_of,
    build_engine,
    build_model,
    choose_attention,
    step_flops,
    write_adapter_settings,
)
from tuner.train.stop_signal import Stop
from tuner.train.training_data import open_packs, packs_to_measure, source_lines


def run(ctx: Context) -> dict[str, Any]:
    """Train, or go on from the newest whole step in ctx.out; returns the facts of the manifest."""
    machine = ctx.config.machine
    before = auto_settings.read_facts(ctx.out)
    device = auto_settings.device_of(machine, before)
    with (
        deterministic(machine.deterministic),
        from_environment(device, timeout=machine.timeout) as world,
    ):
        auto_settings.limit_memory(machine.memory, world.device)
        facts = auto_settings.resolve_facts(
            ctx.config, world.device, before, processes=world.size, here=world.size // machine.nodes
        )
        torch.set_num_threads(facts["threads"])
        say = ctx.say if world.first else lambda _: None
        session = Session(ctx=ctx, world=world, stop=Stop(ctx.out), facts=facts, before=before, say=say)
        return session.train()


@dataclass(frozen=True, kw_only=True)
class Session:
    """One process of a run."""

    ctx: Context
    world: World
    stop: Stop
    facts: dict[str, Any]
    """of the manifest; what is settled on the way is added"""
    before: dict[str, Any]
    """the facts of the run that this one continues, if it does"""
    say: Callable[[str], None]

    def train(self) -> dict[str, Any]:
        """From the stage's inputs to its artifact; returns the facts of the manifest."""
        config, out, world = self.ctx.config, self.ctx.out, self.world
        tokens = self.ctx.inputs["tokenize"].dir
        packs, lines_of = open_packs(tokens), source_lines(tokens / "ledger.json")
        planned = plan_order(
            len(packs),
            config.data.length,
            seed=config.seed,
            epochs=config.algo.epochs,
            steps=config.algo.steps,
            batch_tokens=config.algo.batch_tokens,
        )
        horizon = schedule_horizon(config.algo, planned)
        order = planned.until(config.algo.stop_step)
        found = resume.find_step(out, order, world, self.say)
        model, engine, attention = self._build()
        shape = self._settle(model, engine, packs, order, found, lines_of)
        held_out = packs_to_measure(tokens)
        for line in summary.describe(
            config,
            order,
            self.facts,
            micro_batch=self._micro_batch(order),
            packs_each=self._packs_each(order),
            compute=dtype_name(self._compute),
            attention=attention,
            state=carried_state(model),
            held_out=held_out,
        ):
            self.say(line)

        start, seen = (found.step, found.tokens) if found else (0, 0)
        journal = open_journal(self.ctx, world, step=start, say=self.say)
        sample = open_sampler(
            config,
            model,
            self._base,
            out,
            journal,
            world,
            autocast=autocast_of(config.algo, self._compute),
            zero_stage=self.facts["zero"],
            say=self.say,
        )
        keep = config.train.keep
        resumable = keep == "resume" or (keep == "auto" and order.steps < planned.steps)
        failed = True
        try:
            with (
                self.stop,
                Saver(
                    out,
                    rank=world.rank,
                    of=world.size,
                    timeout=config.machine.timeout,
                    prune=lambda: self._prune(resumable=2),  # two, should one be damaged
                ) as saver,
            ):
                done = TrainingLoop(
                    config=config,
                    engine=engine,
                    world=world,
                    packs=packs,
                    order=order,
                    horizon=horizon,
                    micro_batch=self._micro_batch(order),
                    single_documents=self._single_documents,
                    held_out=HeldOut(
                        rows=SingleDocuments(held_out) if self._single_documents else held_out,
                        loss=objective_of(config.algo).held_out,
                    ),
                    pinned=self._pinned,
                    resumable=resumable,
                    saver=saver,
                    stop=self.stop,
                    journal=journal,
                    say=self.say,
                    source_lines=lines_of,
                    usage=self._device_usage(),
                    sample=sample,
                    explain=partial(
                        explain_nonfinite,
                        model,
                        weight_files(self._base),
                        first=world.first,
                        share=world.gather,
                    ),
                    shape=shape,
                ).run(start, seen)
            failed = False
        finally:
            journal.close(failed=failed)
        world.barrier()
        if world.first:
            self._prune(resumable=int(resumable))
            (out / steps.FACTS).unlink()
        last, compute = journal.last or {}, dtype_name(self._compute)
        return self.facts | summary.outcome(config.algo, order, last, done, compute)

    def _build(self) -> tuple[Any, Engine, str]:
        """The model, the engine around it, and why attention is computed as it is."""
        config, world, facts = self.ctx.config, self.world, self.facts
        with working("loading the model", self.say):
            model = build_model(
                config, self._base, self.ctx.out, world.device, self._compute, zero_stage=facts["zero"]
            )
        backend, attention = choose_attention(config.machine.attention, model, world.device, self._compute)
        facts |= auto_settings.attention_facts(backend)
        if carried_state(model) is not None:
            facts["rows"] = SINGLE_DOCUMENTS
        if world.first:
            write_adapter_settings(config, model, self.ctx.out)
        facts["trainable"] = count_trainable(model)
        engine = build_engine(config, model, world, self._compute, facts)
        facts |= kernels.fuse(config.machine, model, world.device, self.say)
        return model, engine, attention

    def _settle(
        self,
        model: Any,
        engine: Engine,
        packs: Packs,
        order: Order,
        found: SavedStep | None,
        lines_of: Callable[[Pack], list[str]],
    ) -> BatchShape | None:
        """Settle what is `auto`, run the preflight, load the saved step; returns what rows are filled to."""
        config, facts = self.ctx.config, self.facts
        began, done = (self.before, found.step) if found else (None, 0)
        rows = kernels.fixed_rows(
            config,
            model,
            packs,
            order,
            world=self.world,
            done=done,
            began=began or {},
            facts=facts,
            flops=step_flops(config, self._base, self.world.device),
            say=self.say,
        )
        facts |= preflight(
            self.ctx,
            engine,
            model,
            packs,
            world=self.world,
            each=self._packs_each(order),
            facts=facts,
            began=began,
            rows=rows,
            compute=self._compute,
            where=lines_of,
            say=self.say,
        )
        shape = kernels.prepare_rows(
            rows,
            engine,
            packs,
            order,
            world=self.world,
            micro_batch=self._micro_batch(order),
            done=done,
            began=began or {},
            facts=facts,
            say=self.say,
        )
        if self.world.first:
            auto_settings.write_facts(self.ctx.out, self.facts, self.before, self.say)
        if found:
            engine.load(sharded.open_step(found))
            self.say(f"continuing after step {found.step} of {order.steps}")
        return shape

    def _prune(self, *, resumable: int) -> None:
        config = self.ctx.config
        removal.prune(
            self.ctx.out,
            keep=config.machine.keep,
            by=config.convert.best_by,
            pinned=self._pinned,
            resumable=resumable,
        )

    def _device_usage(self) -> Callable[[Sequence[Pack], float], dict[str, Any]]:
        """Of packs and seconds: what a step on these takes of the device."""
        device, processes = self.world.device, self.world.size
        flops, peak = step_flops(self.ctx.config, self._base, device)
        return lambda packs, seconds: device_usage(
            device, flops=flops(packs), seconds=seconds, peak=peak, processes=processes
        )

    @property
    def _base(self) -> Path:
        """Where the model is that training starts from."""
        return self.ctx.inputs["fetch_model"].dir

    @property
    def _compute(self) -> torch.dtype:
        return compute_dtype(self.ctx.config.algo.precision, self.world.device)

    @property
    def _single_documents(self) -> bool:
        return self.facts.get("rows") == SINGLE_DOCUMENTS

    @property
    def _pinned(self) -> int | None:
        """The step that convert.step names by its number."""
        wish = self.ctx.config.convert.step
        return wish if isinstance(wish, int) else None

    def _packs_each(self, order: Order) -> int:
        """Packs that a process takes in a step, at most."""
        shared: int = self.ctx.config.machine.sequence_parallel
        return -(-order.per_step * shared // self.world.size)

    def _micro_batch(self, order: Order) -> int:
        return min(int(self.facts["micro_batch"]), self._packs_each(order))
