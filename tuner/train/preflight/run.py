"""Before step 0: what fits, what it takes, and proofs on the run's own model and rows. Once found, it is
remembered for this machine and config.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tuner.config import lora_init
from tuner.config.schema import Algo
from tuner.config.view import identity_of
from tuner.data.chat.template import compile_template
from tuner.data.packs import Pack, Packs
from tuner.data.tokenizer.load import load_vocabulary
from tuner.errors import DataError
from tuner.estimate.memory import CONTEXT, Workload, estimate_memory
from tuner.estimate.what_fits import plain_algo, ways_to_fit
from tuner.files import read_json
from tuner.models.checkpoint.config_files import chat_with_system
from tuner.models.checkpoint.files import weight_files
from tuner.models.geometry import Geometry
from tuner.pipeline.stage import Context
from tuner.train.batch import SingleDocuments
from tuner.train.distributed import World
from tuner.train.engine import Engine
from tuner.train.preflight.memory import probe_memory
from tuner.train.preflight.memory_probe import MemoryEstimate, ProbeRequest, available_gpu_memory
from tuner.train.preflight.numerics import proofs_line, prove
from tuner.train.preflight.verdict import Verdict, recall, remember, verdict_key
from tuner.train.recompute import set_recompute
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


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeEstimate:
    """What tuner.estimate.memory says of this training."""

    geometry: Geometry
    algo: Algo
    work: Workload
    """with the processes that share it"""
    length: int

    def at(self, tokens: int, targets: int, *, accumulated: bool, recompute: bool) -> Workload:
        return replace(
            self.work, tokens=tokens, targets=targets, accumulated=accumulated, recompute=recompute
        )

    def reserved(self, tokens: int, targets: int, *, accumulated: bool, recompute: bool) -> float:
        return estimate_memory(
            self.geometry, self.algo, self.at(tokens, targets, accumulated=accumulated, recompute=recompute)
        ).reserved

    def ways(
        self, tokens: int, targets: int, *, accumulated: bool, recompute: bool, micro: int, room: float
    ) -> list[str]:
        work = self.at(tokens, targets, accumulated=accumulated, recompute=recompute)
        return ways_to_fit(self.geometry, self.algo, work, room + CONTEXT, length=self.length, micro=micro)


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
    compute: torch.dtype,
    where: Callable[[Pack], list[str]],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Settle micro_batch and recompute, and leave the model so; returns them, with what was measured. All
    processes call it, before a step is loaded.

    each    packs that a process takes in a step
    began   the facts of the run that is continued; it keeps what it has, and nothing is tried again

    Raises ConfigError when the run does not fit, and StageError when a proof or the save fails.
    """
    machine = ctx.config.machine
    micro = 1 if facts.get("rows") == SINGLE_DOCUMENTS else machine.micro_batch
    request = ProbeRequest(micro_batch=micro, recompute=machine.recompute, packs=each)
    if began is not None or not machine.preflight:
        verdict = skip_checks(request, began or {})
    else:
        key = verdict_key(deciding_settings(ctx, facts, each), files_read(ctx), world.device)
        known = recall(key) if world.first else None
        told = world.gather(asdict(known) if known else None)[0]
        if told is not None and (told["reserved"] or 0) <= available_gpu_memory(world):
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
                compute=compute,
                where=where,
                say=say,
            )
            if world.first:
                remember(key, verdict)
    set_recompute(model, verdict.recompute == "blocks")
    return verdict_facts(verdict)


def skip_checks(request: ProbeRequest, began: dict[str, Any]) -> Verdict:
    """What the config asks for, or what was settled when the run began; the least where neither says."""
    return Verdict(
        micro_batch=began.get("micro_batch", 1) if request.micro_batch == "auto" else request.micro_batch,
        recompute=began.get("recompute", "none") if request.recompute == "auto" else request.recompute,
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
    compute: torch.dtype,
    where: Callable[[Pack], list[str]],
    say: Callable[[str], None],
) -> Verdict:
    """Probe the memory and prove the numerics. Raises what these do."""
    apart = facts.get("rows") == SINGLE_DOCUMENTS
    rows = SingleDocuments(packs) if apart else packs
    request = replace(request, packs=max(2, request.packs)) if apart else request  # a pack has several rows
    probe = probe_memory(
        engine,
        model,
        rows,
        request,
        world=world,
        scratch=ctx.out / SCRATCH,
        timeout=ctx.config.machine.timeout,
        estimate=memory_estimate(ctx, facts),
        say=say,
    )
    say(probe.sentence)
    proofs = run_proofs(ctx, engine, model, packs, world, compute, where, apart=apart)
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
    fresh = (
        algo.uses_adapter
        and algo.init != "continue"
        and not lora_init.changes_base(algo.lora_init)
        and algo.lora_init != "orthogonal"
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
        zero_adapter=fresh,
        apart=apart,
        files=weight_files(ctx.inputs["fetch_model"].dir),
    )


def memory_estimate(ctx: Context, facts: dict[str, Any]) -> MemoryEstimate | None:
    """What estimates can tell; None for a family whose shapes are not known."""
    geometry = read_json(ctx.inputs["fetch_model"].dir / "config.json") or {}
    work = Workload(
        tokens=2,
        targets=1,
        new_tokens=len(ctx.config.model.new_tokens),
        engine=facts["engine"],
        zero=facts["zero"],
        processes=facts["processes"],
        offload=facts["offload"],
        sequence_parallel=facts["sequence_parallel"],
        fused_layers="adapter_linear" in facts.get("kernels", {}),
        fused_head="linear_cross_entropy" in facts.get("kernels", {}),
    )
    found = ShapeEstimate(
        geometry=geometry, algo=plain_algo(ctx.config.algo), work=work, length=ctx.config.data.length
    )
    try:
        found.reserved(2, 1, accumulated=True, recompute=False)
    except DataError:
        return None
    return found


def deciding_settings(ctx: Context, facts: dict[str, Any], each: int) -> dict[str, Any]:
    """Of config and facts, what decides what is found."""
    machine = ctx.config.machine
    own = {
        "micro_batch": machine.micro_batch,
        "recompute": machine.recompute,
        "deepspeed": machine.deepspeed,
        "packs": each,
    }
    fused = {"kernels": facts["kernels"]} if "kernels" in facts else {}
    return identity_of(ctx.config) | own | {name: facts[name] for name in MATTERS} | fused


def files_read(ctx: Context) -> list[Path]:
    """The files of the model, and the packs."""
    return [*sorted(ctx.inputs["fetch_model"].dir.glob("*.*")), ctx.inputs["tokenize"].dir / "train.arrow"]
