"""Before step 0: what fits, what it takes, and proofs on the run's own model and rows. Once found, it is
remembered for this machine and config.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from tuner.config import lora_init
from tuner.config.view import View, identity_of
from tuner.data.chat.template import compile_template
from tuner.data.packs import Pack, Packs
from tuner.data.tokenizer.load import load_vocabulary
from tuner.estimate.recompute import Recompute
from tuner.models.checkpoint.config_files import chat_with_system
from tuner.models.checkpoint.files import weight_files
from tuner.pipeline.stage import Context
from tuner.progress import working
from tuner.train.batch import SingleDocuments
from tuner.train.distributed import World
from tuner.train.engine import Engine
from tuner.train.fixed_rows import FixedRows
from tuner.train.preflight.kernels import prove_kernels
from tuner.train.preflight.memory import probe_memory
from tuner.train.preflight.memory_estimate import memory_estimate
from tuner.train.preflight.memory_probe import MemoryProbe, ProbeRequest, available_gpu_memory
from tuner.train.preflight.numerics import proofs_line, prove
from tuner.train.preflight.verdict import Verdict, recall, remember, verdict_key
from tuner.train.recompute import layers_to_recompute, set_recompute
from tuner.train.setup import autocast_of

SINGLE_DOCUMENTS = "documents"
"""the fact `rows` of a run with one document a row; it is not there where rows are packs"""
SCRATCH = "preflight"
"""where the save is tried, in the training directory"""
MATTERS = (
    "engine",
    "zero",
    "offload",
    "processes",
    "sequence_parallel",
    "attention",
    "deterministic",
    "threads",
)
"""facts that decide what is found"""


def preflight(
    ctx: Context,
    engine: Engine,
    model: Any,
    packs: Packs,
    *,
    world: World,
    each: int,
    facts: dict[str, Any],
    began: dict[str, Any] | None,
    rows: FixedRows | None,
    compute: torch.dtype,
    where: Callable[[Pack], list[str]],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Settle micro_batch and recompute, and leave the model so; returns them, with what was measured. All
    processes call it, before a step is loaded.

    each    packs that a process takes in a step
    rows    where layers are to be compiled
    began   the facts of the run that is continued; it keeps what it has, and nothing is tried again

    Raises ConfigError when the run does not fit, and StageError when a proof or the save fails.
    """
    machine = ctx.config.machine
    micro = 1 if facts.get("rows") == SINGLE_DOCUMENTS else machine.micro_batch
    request = ProbeRequest(micro_batch=micro, recompute=machine.recompute, memory=machine.memory, packs=each)
    if began is not None or not machine.preflight:
        length = ctx.config.data.length
        probe = MemoryProbe(
            engine,
            model,
            packs,
            [(length, length)] * each,
            request,
            world,
            memory_estimate(ctx, facts),
            rows,
        )
        verdict = unchecked(probe, began or {})
    else:
        key = verdict_key(deciding_settings(ctx, facts, each), files_read(ctx), world.device)
        known = recall(key) if world.first else None
        told = world.gather(asdict(known) if known else None)[0]
        if told is not None and (told["reserved"] or 0) <= available_gpu_memory(world, machine.memory):
            say("preflight: as found before on this machine with this config")
            verdict = Verdict(**told)
        else:
            verdict = run_checks(
                ctx,
                engine,
                model,
                packs,
                request,
                world=world,
                facts=facts,
                rows=rows,
                compute=compute,
                where=where,
                say=say,
            )
            if world.first:
                remember(key, verdict)
    set_recompute(model, recompute_of(model, verdict.recompute, rows).blocks)
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(world.device)  # what was tried may have taken more than steps do
    return verdict_facts(verdict)


def recompute_of(model: Any, said: str | int, rows: FixedRows | None) -> Recompute:
    """What machine.recompute says of this model, whose layers are compiled or not."""
    return Recompute.read(said, len(layers_to_recompute(model)), compiled=rows is not None and rows.compiled)


def unchecked(probe: MemoryProbe, began: dict[str, Any]) -> Verdict:
    """What the config asks for, or what was settled when the run began; the estimate's choice where neither
    says.
    """
    request, guess = probe.request, probe.guess()
    micro, recompute = guess.micro, guess.recompute.said(probe.layers)
    return Verdict(
        micro_batch=began.get("micro_batch", micro) if request.micro_batch == "auto" else request.micro_batch,
        recompute=began.get("recompute", recompute) if request.recompute == "auto" else recompute,
    )


def run_checks(
    ctx: Context,
    engine: Engine,
    model: Any,
    packs: Packs,
    request: ProbeRequest,
    *,
    world: World,
    facts: dict[str, Any],
    rows: FixedRows | None,
    compute: torch.dtype,
    where: Callable[[Pack], list[str]],
    say: Callable[[str], None],
) -> Verdict:
    """Probe the memory and prove the numerics. Raises what these do."""
    apart = facts.get("rows") == SINGLE_DOCUMENTS
    found = SingleDocuments(packs) if apart else packs
    request = replace(request, packs=max(2, request.packs)) if apart else request  # a pack has several rows
    with working("rehearsing a step on the longest rows", say):
        probe = probe_memory(
            engine,
            model,
            found,
            request,
            world=world,
            scratch=ctx.out / SCRATCH,
            timeout=ctx.config.machine.timeout,
            estimate=memory_estimate(ctx, facts),
            rows=rows,
            say=say,
        )
    say(probe.sentence)
    proofs: dict[str, float] = {}
    with working("proving the numerics on these rows", say), ExitStack() as stack:
        if (facts.get("kernels") or (rows and rows.compiled)) and world.size == 1:
            proofs = prove_kernels(
                engine,
                model,
                found,
                world,
                micro_batch=probe.micro_batch,
                rows=rows,
                new_adapter=new_adapter(ctx.config),
                compute=compute,
                where=where,
            )
        if rows and rows.compiled:
            set_recompute(model, len(layers_to_recompute(model)))  # as they were, layers take more memory
            stack.enter_context(rows.aside())
        proofs = run_proofs(ctx, engine, model, packs, world, compute, where, apart=apart) | proofs
    if proofs:
        say(proofs_line(proofs))
    return Verdict(
        micro_batch=probe.micro_batch,
        recompute=probe.recompute,
        reserved=probe.reserved,
        expected=None if probe.expected is None else round(probe.expected),
        tokens_per_second=probe.tokens_per_second,
        proofs=proofs,
    )


def verdict_facts(verdict: Verdict) -> dict[str, Any]:
    """As facts of the manifest."""
    measured = {"proofs": dict(verdict.proofs)} if verdict.proofs else {}
    memory = (
        {}
        if verdict.reserved is None
        else {"preflight_reserved": verdict.reserved, "preflight_expected": verdict.expected}
    )
    return {"micro_batch": verdict.micro_batch, "recompute": verdict.recompute} | measured | memory


def run_proofs(
    ctx: Context,
    engine: Engine,
    model: Any,
    packs: Packs,
    world: World,
    compute: torch.dtype,
    where: Callable[[Pack], list[str]],
    *,
    apart: bool,
) -> dict[str, float]:
    """The proofs' differences by name; none where processes share packs, since each then sees slices only."""
    config, algo = ctx.config, ctx.config.algo
    if config.machine.sequence_parallel > 1:
        return {}
    template = compile_template(
        chat_with_system(config.model.chat, config.data.system),
        load_vocabulary(ctx.inputs["fetch_model"].dir),
    )
    return prove(
        engine,
        model,
        packs,
        world,
        where=where,
        template=template,
        whole=config.data.loss == "all",
        compute=compute,
        autocast=autocast_of(algo, compute),
        quant=algo.quant,
        zero_adapter=new_adapter(config),
        apart=apart,
        files=weight_files(ctx.inputs["fetch_model"].dir),
    )


def new_adapter(config: View) -> bool:
    """Whether the model has an adapter that is nothing yet: B is 0."""
    algo = config.algo
    return bool(
        algo.uses_adapter
        and algo.init != "continue"
        and not lora_init.changes_base(algo.lora_init)
        and algo.lora_init != "orthogonal"
    )


def deciding_settings(ctx: Context, facts: dict[str, Any], each: int) -> dict[str, Any]:
    """Of config and facts, what decides what is found."""
    machine = ctx.config.machine
    own = {
        "micro_batch": machine.micro_batch,
        "recompute": machine.recompute,
        "memory": machine.memory,
        "deepspeed": machine.deepspeed,
        "packs": each,
    }
    fused = {name: facts[name] for name in ("kernels", "compiled") if name in facts}
    return identity_of(ctx.config) | own | {name: facts[name] for name in MATTERS} | fused


def files_read(ctx: Context) -> list[Path]:
    """The files of the model, and the packs."""
    return [*sorted(ctx.inputs["fetch_model"].dir.glob("*.*")), ctx.inputs["tokenize"].dir / "train.arrow"]
