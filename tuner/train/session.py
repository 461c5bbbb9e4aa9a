"""Sets a training up from a stage's context, runs the loop, and leaves the artifact: what each process of
a training does.
"""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tuner.config.view import View, identity_of
from tuner.data.packs import Pack, Packs
from tuner.data.sampler import AUTO_TOKENS, Order, plan_order
from tuner.errors import ConfigError, DataError
from tuner.models.checkpoint.config_files import chat_with_system
from tuner.models.checkpoint.files import weight_files
from tuner.models.full_finetune import count_trainable
from tuner.models.load import PRECISIONS, compute_dtype
from tuner.models.nonfinite import explain_nonfinite
from tuner.models.stateful_layers import carried_state
from tuner.pipeline.stage import Context
from tuner.report.page import tokens_measured
from tuner.train import auto_settings
from tuner.train.batch import SingleDocuments, count_targets
from tuner.train.checkpoints import resume, sharded, steps
from tuner.train.checkpoints.save import Saver
from tuner.train.determinism import deterministic
from tuner.train.distributed import World, from_environment
from tuner.train.held_out import HeldOut
from tuner.train.loop import Recipe, train
from tuner.train.monitor.anomalies import refuse_nothing_trained
from tuner.train.monitor.metrics import Journal
from tuner.train.monitor.samples import Sampler, why_no_samples
from tuner.train.monitor.trackers import open_trackers
from tuner.train.objectives import objective_of
from tuner.train.preflight.run import DOCUMENTS, preflight
from tuner.train.setup import (
    autocast_of,
    build_engine,
    build_model,
    choose_attention,
    step_flops,
    write_adapter_settings,
)
from tuner.train.stop_signal import Stop

MEASURED = 64
"""held-out packs at most that are measured while training; evaluation takes them all"""


def run(ctx: Context) -> dict[str, Any]:
    """Train, or go on from the newest whole step in ctx.out; returns the facts of the manifest."""
    machine = ctx.config.machine
    before = auto_settings.read_facts(ctx.out)
    device = auto_settings.device_of(machine, before)
    with (
        deterministic(machine.deterministic),
        Stop(ctx.out) as stop,
        from_environment(device, timeout=machine.timeout) as world,
    ):
        say = ctx.say if world.first else _silent
        facts = auto_settings.resolve_facts(
            ctx.config, world.device, before, processes=world.size, here=world.size // machine.nodes
        )
        torch.set_num_threads(facts["threads"])
        return _train(ctx, world, stop, facts, before, say)


def _train(
    ctx: Context,
    world: World,
    stop: Stop,
    facts: dict[str, Any],
    before: dict[str, Any],
    say: Callable[[str], None],
) -> dict[str, Any]:
    algo, machine, out = ctx.config.algo, ctx.config.machine, ctx.out
    base, tokens = ctx.inputs["fetch_model"].dir, ctx.inputs["tokenize"].dir
    packs, where = open_packs(tokens), source_lines(tokens / "ledger.json")
    whole = plan_order(
        len(packs),
        ctx.config.data.length,
        seed=ctx.config.seed,
        epochs=algo.epochs,
        steps=algo.steps,
        batch_tokens=algo.batch_tokens,
    )
    horizon = schedule_horizon(algo, whole)
    order = whole.until(algo.stop_step)
    each = -(-order.per_step * machine.sequence_parallel // world.size)
    found = resume.find_step(out, order, world, say)

    compute = compute_dtype(algo.precision, world.device)
    model = build_model(ctx.config, base, out, world.device, compute, zero_stage=facts["zero"])
    facts["attention"], why = choose_attention(machine.attention, model, world.device, compute)
    state = carried_state(model)
    facts |= {} if state is None else {"rows": DOCUMENTS}
    if world.first:
        write_adapter_settings(ctx.config, model, out)
    facts["trainable"] = count_trainable(model)
    engine = build_engine(ctx.config, model, world, compute, facts)
    facts |= preflight(
        ctx,
        engine,
        model,
        packs,
        world=world,
        each=each,
        facts=facts,
        began=before if found else None,
        compute=compute,
        where=where,
        say=say,
    )
    if world.first:
        auto_settings.write_facts(out, facts, before, say)
    if found:
        engine.load(sharded.open_step(found))
        say(f"continuing after step {found.step} of {order.steps}")
    recipe = recipe_of(
        ctx.config,
        min(facts["micro_batch"], each),
        horizon,
        alone=state is not None,
        ends_early=order.steps < whole.steps,
    )
    for line in describe_run(
        ctx.config, order, world, recipe.micro_batch, each, dtype_name(compute), facts, why
    ):
        say(line)
    if state is not None:
        say(
            f"{state} carry a state from token to token, which knows no documents: each document trains as a "
            "row of its own, one at a time"
        )
    held = packs_to_measure(tokens)
    if held:
        say(
            f"held-out loss while training: {len(held)} pack{'s' * (len(held) > 1)}, "
            f"{tokens_measured(count_targets(held))}"
        )

    start, seen = (found.step, found.tokens) if found else (0, 0)
    journal = open_journal(ctx, world, start, say)
    sample = open_sampler(ctx, model, journal, world, facts, autocast_of(algo, compute), say)
    count_flops, peak = step_flops(ctx.config, base, world.device)
    failed = True
    try:
        with Saver(
            out,
            rank=world.rank,
            of=world.size,
            timeout=machine.timeout,
            prune=lambda: prune_steps(out, recipe, resumable=2),
        ) as saver:
            done = train(
                engine,
                packs,
                order,
                recipe,
                world=world,
                begin=start,
                tokens=seen,
                held_out=HeldOut(
                    rows=held if state is None else SingleDocuments(held),
                    loss=objective_of(algo).held_out,
                ),
                journal=journal,
                saver=saver,
                stop=stop,
                say=say,
                where=where,
                flops=count_flops,
                peak=peak,
                sample=sample,
                why=lambda run: explain_nonfinite(
                    model, weight_files(base), run, first=world.first, share=world.gather
                ),
            )
        failed = False
    finally:
        journal.close(failed=failed)
    world.barrier()
    if world.first:
        prune_steps(out, recipe, resumable=int(recipe.resumable))
        (out / steps.FACTS).unlink()
    row = journal.last or {}
    return facts | {
        "step": done,
        "steps": order.steps,
        "loss": row["loss"],
        "tokens": row["tokens"],
        "seconds": row["seconds"],
        "tokens_per_second": round(row["tokens"] / max(row["seconds"], 1e-3), 1),
        "dtype": algo.precision,
        "compute": dtype_name(compute),
        "packs_per_step": order.per_step,
    }


def open_packs(tokens: Path) -> Packs:
    """The training set. Raises DataError when there is nothing in it that could be trained."""
    packs = Packs.open(tokens / "train.arrow")
    if not len(packs):
        raise DataError(
            "There is nothing to train on: the tokenized training set is empty. The rows' fate is in "
            "ledger.json in the run's tokenize directory"
        )
    refuse_nothing_trained(packs)
    return packs


def packs_to_measure(tokens: Path) -> list[Pack]:
    """The packs that are measured while training, the same however often: algo.early_stop and
    convert.step=best decide by them.

    The first of the file are a fair draw of all: tuner.data.tokenize.packing has put them into an order drawn
    from data.seed, whatever is in them.
    """
    packs = Packs.open(tokens / "held_out.arrow")
    return [packs[i] for i in range(min(len(packs), MEASURED))]


def recipe_of(config: View, micro: int, horizon: int, *, alone: bool, ends_early: bool) -> Recipe:
    """The numbers of the loop."""
    algo, machine, pinned, keep = config.algo, config.machine, config.convert.step, config.train.keep
    return Recipe(
        seed=config.seed,
        lr=algo.optim.lr,
        schedule=algo.schedule,
        horizon=horizon,
        warmup=algo.warmup,
        decay=algo.decay,
        clip=algo.clip,
        micro_batch=micro,
        alone=alone,
        sequence_parallel=machine.sequence_parallel,
        save_every=machine.save_every,
        measure_every=machine.measure_every,
        patience=algo.early_stop,
        patience_every=algo.early_stop_every,
        keep=machine.keep,
        best_by=config.convert.best_by,
        pinned=pinned if isinstance(pinned, int) else None,
        resumable=keep == "resume" or (keep == "auto" and ends_early),
    )


def open_journal(ctx: Context, world: World, step: int, say: Callable[[str], None]) -> Journal:
    """Goes on after `step` steps; the first process writes it, and tells the trackers."""
    machine, trackers = ctx.config.machine, None
    if world.first:
        name = ctx.out.name.removesuffix(".partial")
        trackers = open_trackers(
            machine.trackers,
            ctx.out,
            project=machine.project,
            name=name,
            config=identity_of(ctx.config),
            step=step,
            say=say,
        )
    return Journal(ctx.out, step=step, trackers=trackers, writes=world.first)


def prune_steps(out: Path, recipe: Recipe, *, resumable: int) -> None:
    """Two can be gone on from, should one be damaged; the others are there to be handed on."""
    steps.prune(out, keep=recipe.keep, by=recipe.best_by, pinned=recipe.pinned, resumable=resumable)


def open_sampler(
    ctx: Context,
    model: Any,
    journal: Journal,
    world: World,
    facts: dict[str, Any],
    autocast: torch.dtype | None,
    say: Callable[[str], None],
) -> Callable[[int], None]:
    """What answers eval.prompts after a step, where machine.samples asks for it and this process is the
    one that does.
    """
    machine, ask = ctx.config.machine, ctx.config.eval
    if not machine.samples or not ask.prompts or not world.first:
        return lambda _: None
    if why := why_no_samples(facts["zero"]):
        say(why)
        return lambda _: None
    chat = chat_with_system(ctx.config.model.chat, ctx.config.data.system)
    base = ctx.inputs["fetch_model"].dir
    return Sampler(
        model, base, chat, ask.prompts, ask.max_new_tokens, ctx.out, journal, autocast=autocast
    ).write


def describe_run(
    config: View,
    order: Order,
    world: World,
    micro: int,
    each: int,
    compute: str,
    facts: dict[str, Any],
    why: str,
) -> Sequence[str]:
    """What follows from the config, before the first step."""
    shared = f" on {world.size} processes, {each} each" if world.size > 1 else ""
    parts = "1 pack" if order.per_step == 1 else f"{order.per_step} packs{shared}, {micro} at once"
    if facts.get("rows") == DOCUMENTS:
        parts = parts.removesuffix(f", {micro} at once")
    small = ""
    if config.algo.batch_tokens == "auto" and order.per_step < AUTO_TOKENS // config.data.length:
        whole = plan_order(
            order.packs,
            config.data.length,
            seed=order.seed,
            epochs=config.algo.epochs,
            steps=None,
            batch_tokens="auto",
        )
        small = f", not {AUTO_TOKENS:,}, so that algo.epochs={config.algo.epochs:g} makes {whole.steps} steps"
    engine = "PyTorch" if facts["engine"] == "torch" else f"DeepSpeed, ZeRO {facts['zero']}"
    return [
        (
            f"{order.steps} step{'s' * (order.steps != 1)} of {parts}, up to "
            f"{order.per_step * config.data.length:,} tokens a step{small}"
        ),
        (
            f"{facts['trainable']:,} trainable parameters; {config.algo.precision} weights, {compute} "
            f"arithmetic; {world.device.type}, {facts['threads']} threads; {engine}"
        ),
        f"attention: {why}",
    ]


def schedule_horizon(algo: View, whole: Order) -> int:
    """The steps over which the learning rate runs its course. Raises ConfigError where the training would
    go on behind its end.
    """
    end, horizon = algo.stop_step or whole.steps, algo.schedule_steps or whole.steps
    if end > whole.steps:
        raise ConfigError(
            f"algo.stop_step={end} lies behind the end of the training, which has {whole.steps} steps. Train "
            "longer with algo.epochs or algo.steps."
        )
    if end > horizon and algo.schedule != "constant":
        raise ConfigError(
            f"algo.schedule_steps={horizon} ends before the training does (step {end}): the learning rate "
            "would be 0 from there. Raise it, end earlier with algo.stop_step, or set "
            "algo.schedule=constant."
        )
    return horizon


def source_lines(ledger: Path) -> Callable[[Pack], list[str]]:
    """A function from a pack to the `file:line` of its documents."""

    @cache
    def sources() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(ledger.read_text(encoding="utf-8"))["sources"]
        return found

    def where(pack: Pack) -> list[str]:
        return [
            f"{sources()[file]['file']}:{line}" for file, line in zip(pack.files, pack.lines, strict=True)
        ]

    return where


def dtype_name(dtype: torch.dtype) -> str:
    return next(key for key, value in PRECISIONS.items() if value == dtype)


def _silent(_line: str) -> None:
    pass
