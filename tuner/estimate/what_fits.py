"""What would make a training run fit into a GPU's memory, by the estimate. Standard library only."""

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from tuner.config.schema import Algo, Optim
from tuner.estimate.memory import Workload, estimate_memory
from tuner.estimate.recompute import Recompute
from tuner.models.geometry import Geometry

GIB = 1 << 30
SHORTEST = 256
"""tokens of a pack below which none is proposed"""

Change = tuple[tuple[str, ...], Algo, Workload]
"""words of a command line, and what they make of the run"""


def ways_to_fit(
    geometry: Geometry, algo: Algo, work: Workload, room: float, *, length: int, micro: int
) -> list[str]:
    """Changes of the config under which the estimate is at most `room` bytes, each with its estimate; first
    those under which the same is computed.

    `work` is for micro batches of `micro` packs of up to `length` tokens. Raises DataError for a family whose
    shapes are not known.
    """
    found = []
    layers = geometry["num_hidden_layers"]
    for words, changed, other in cheaper_workloads(algo, work, length=length, micro=micro, layers=layers):
        needed = estimate_memory(geometry, changed, other).total
        if needed <= room:
            found.append(f"{' '.join(words)} (~{needed / GIB:.1f} GiB)")
    return found


def cheaper_workloads(
    algo: Algo, work: Workload, *, length: int, micro: int, layers: int
) -> Iterator[Change]:
    """Smaller micro batches and recomputation, one after the other; with both, each of what costs time, or
    gives another result.
    """
    words: tuple[str, ...] = ()
    if micro > 1:
        work = replace(
            work, tokens=-(-work.tokens // micro), targets=-(-work.targets // micro), accumulated=True
        )
        words = (*words, "machine.micro_batch=1")
        yield words, algo, work
    if work.recompute.blocks < layers:
        work = replace(work, recompute=Recompute(norms=work.compiled, blocks=layers))
        words = (*words, "machine.recompute=blocks")
        yield words, algo, work
    for word, changed, other in (
        *_offloaded(algo, work),
        *_lighter(algo, work),
        *_shorter(algo, work, length),
    ):
        yield (*words, word), changed, other


def _offloaded(algo: Algo, work: Workload) -> Iterator[tuple[str, Algo, Workload]]:
    if not algo.optim.kind.zero or work.offload == "all":
        return
    if work.offload == "none":
        yield (
            "machine.offload=optimizer",
            algo,
            replace(work, engine="deepspeed", zero=max(2, work.zero), offload="optimizer"),
        )
    if algo.quant != "int8" and not algo.dora:
        yield "machine.offload=all", algo, replace(work, engine="deepspeed", zero=3, offload="all")


def _lighter(algo: Algo, work: Workload) -> Iterator[tuple[str, Algo, Workload]]:
    if not algo.uses_adapter:
        if (lighter := algo.optim.kind.in_8_bits) and work.zero == 0 and work.offload == "none":
            yield (
                f"algo.optim.name={lighter}",
                replace(algo, optim=replace(algo.optim, name=lighter)),
                work,
            )
        yield "algo=lora", Algo(), work
        yield "algo=qlora", Algo(quant="nf4"), work
    elif algo.quant == "none":
        yield "algo.quant=nf4", replace(algo, quant="nf4"), work


def _shorter(algo: Algo, work: Workload, length: int) -> Iterator[tuple[str, Algo, Workload]]:
    half = length // 2
    while half >= SHORTEST:
        yield (
            f"data.length={half}",
            algo,
            replace(work, tokens=work.tokens * half // length, targets=work.targets * half // length),
        )
        half //= 2


def plain_algo(algo: Any) -> Algo:
    """The algo group as it stands in a config, from the view that a stage has of it."""
    optim = Optim(**{field.name: getattr(algo.optim, field.name) for field in fields(Optim)})
    return Algo(
        **{field.name: getattr(algo, field.name) for field in fields(Algo) if field.name != "optim"},
        optim=optim,
    )
