"""DeepSpeed from the config's fields: which engine and which ZeRO stage, and which combinations are legal.

ZeRO (arXiv:1910.02054) shards what training holds over its processes, each stage with what the stages before
it shard: 1 the optimizer's state, 2 the gradients, 3 the weights. `RULES` is the table of what can't be
together, and why; what no rule names is legal.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal

from tuner.config.schema import Algo, Machine
from tuner.config.schema.optim import OPTIMIZERS, OptimizerName

Engine = Literal["torch", "deepspeed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Combination:
    """What decides whether a combination is legal; `auto` is settled."""

    engine: Engine
    processes: int
    zero: int
    offload: Literal["none", "optimizer", "all"]
    offload_path: str | None
    sequence_parallel: int
    own_json: bool
    """whether machine.deepspeed is set"""
    quant: str
    optimizer: OptimizerName
    dora: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """Combinations that are refused."""

    why: str
    """ends before `: set FIELD=VALUE`"""
    refused: Callable[[Combination], bool]
    mended: Callable[[Combination], Combination]
    """the same, with what this rule asks for; other rules may refuse that"""


RULES = (
    Rule(
        why=(
            "machine.engine=torch computes in one process, which shards and offloads nothing; DeepSpeed does "
            "all of that"
        ),
        refused=lambda c: (
            c.engine == "torch"
            and (c.processes > 1 or c.zero > 0 or c.sequence_parallel > 1 or c.own_json or _offloads(c))
        ),
        mended=lambda c: replace(c, engine="deepspeed"),
    ),
    Rule(
        why=(
            "ZeRO gives each process a slice of the flattened state: AdamW works element by element, but "
            "other optimizers need blocks, rows or whole matrices. Take algo.optim.name=adamw, or, to keep "
            "the optimizer"
        ),
        refused=lambda c: not OPTIMIZERS[c.optimizer].zero and (c.zero > 0 or _offloads(c)),
        mended=lambda c: replace(c, zero=0, offload="none", offload_path=None),
    ),
    Rule(
        why=(
            "ZeRO 3, which machine.offload=all and machine.offload_path need, shards frozen weights too: of "
            "int8 weights bitsandbytes keeps another, whole copy, so that nothing would be gained "
            "(algo.quant), and DoRA reads quantised weights where they are not gathered (algo.dora)"
        ),
        refused=lambda c: _unsharded(c) and (c.zero == 3 or c.offload == "all" or c.offload_path is not None),
        mended=lambda c: replace(
            c, zero=min(c.zero, 2), offload="none" if c.offload == "none" else "optimizer", offload_path=None
        ),
    ),
    Rule(
        why=(
            "machine.offload_path says where offloaded tensors lie, and machine.offload=none offloads nothing"
        ),
        refused=lambda c: c.offload_path is not None and c.offload == "none",
        mended=lambda c: replace(c, offload="optimizer"),
    ),
    Rule(
        why=(
            "only ZeRO 3, which gathers weights layer by layer, moves them out of memory "
            "(machine.offload=all) or anything to a disk (machine.offload_path)"
        ),
        refused=lambda c: c.zero < 3 and (c.offload == "all" or c.offload_path is not None),
        mended=lambda c: replace(c, zero=3),
    ),
    Rule(
        why="what is offloaded is a shard of the optimizer state, and ZeRO 0 makes none",
        refused=lambda c: c.offload == "optimizer" and c.zero == 0,
        mended=lambda c: replace(c, zero=2),
    ),
    Rule(
        why=(
            "each pack is shared by machine.sequence_parallel processes, which must divide all of them into "
            "equal groups"
        ),
        refused=lambda c: c.processes % c.sequence_parallel != 0,
        mended=lambda c: replace(
            c, sequence_parallel=max(n for n in range(1, c.sequence_parallel + 1) if c.processes % n == 0)
        ),
    ),
)


def _offloads(combination: Combination) -> bool:
    return combination.offload != "none" or combination.offload_path is not None


def _unsharded(combination: Combination) -> bool:
    return combination.quant == "int8" or (combination.dora and combination.quant != "none")


def process_count(machine: Machine) -> int:
    """How many processes train together, as far as the config alone says it."""
    gpus = (
        len(machine.gpus)
        if isinstance(machine.gpus, tuple)
        else machine.gpus
        if isinstance(machine.gpus, int)
        else 1
    )
    here = machine.processes if isinstance(machine.processes, int) else 1 if machine.device == "cpu" else gpus
    return here * machine.nodes


def combination_of(machine: Machine, algo: Algo, *, processes: int) -> Combination:
    """The combination that the fields mean for so many processes: `auto` becomes the engine and the stage
    that suit it best.
    """
    combination = Combination(
        engine="torch" if machine.engine == "auto" else machine.engine,
        processes=max(1, processes),
        zero=0 if machine.zero == "auto" else machine.zero,
        offload=machine.offload,
        offload_path=machine.offload_path,
        sequence_parallel=max(1, machine.sequence_parallel),
        own_json=machine.deepspeed is not None,
        quant=algo.quant,
        optimizer=algo.optim.name,
        dora=algo.dora,
    )
    if (
        machine.zero == "auto"
        and OPTIMIZERS[combination.optimizer].zero
        and (processes > 1 or _offloads(combination))
    ):
        stage_3 = (combination.offload == "all" or combination.offload_path is not None) and not _unsharded(
            combination
        )
        combination = replace(combination, zero=3 if stage_3 else 2)
    if machine.engine == "auto" and RULES[0].refused(combination):
        combination = RULES[0].mended(combination)
    return combination


def nearest_legal(combination: Combination) -> Combination:
    """The combination itself, or the legal one that is nearest: the rules' wishes, one after the other."""
    for _ in RULES:  # each wish is met once at most
        broken = next((rule for rule in RULES if rule.refused(combination)), None)
        if broken is None:
            return combination
        combination = broken.mended(combination)
    raise AssertionError(f"the rules don't come to rest at {combination}")


def why_refused(combination: Combination) -> str | None:
    """Why a combination is refused, and which fields make the nearest legal one; None where it is legal."""
    broken = next((rule for rule in RULES if rule.refused(combination)), None)
    if broken is None:
        return None
    legal = nearest_legal(combination)
    changed = [f.name for f in fields(combination) if getattr(combination, f.name) != getattr(legal, f.name)]
    words = [
        f"machine.{name}={'null' if getattr(legal, name) is None else getattr(legal, name)}"
        for name in changed
    ]
    return f"{broken.why}: set {' '.join(words)}."
