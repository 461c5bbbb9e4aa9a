"""Before the first step, on the run's own model and rows: what must change nothing changes nothing.

packed       documents together in a pack give the logits that each gives alone; of a model that carries a
             state from token to token, each is a row of its own, and gives its logits whatever rows came
             before
attention    the attention that trains gives the logits that transformers' plain one gives
adapter      an adapter that begins as nothing leaves the base's logits as they are
accumulated  documents in one micro batch give the gradient that they give one by one, spread over all
             processes
mask         trained is what the assistant says
kernels      fused ops and compiled layers give the gradient that PyTorch's and PEFT's own modules give
             (tuner.train.preflight.kernels)

Differences are relative 2-norms. In exact arithmetic all are 0; what is left is rounding. A logit is the end
of some hundred roundings, of a relative size of 2^-24 (fp32) or 2^-9 (bf16) each, which mostly cancel.
SmolLM2-135M, on a CPU, has 1e-6 (fp32) and 0.03 (bf16, also on a base in 4 bits) in `attention`, and
3e-7 and 0.001 in `accumulated`; documents that see each other give 0.8. The tolerances leave room for deeper
models and for kernels that add up otherwise. In 8 bits the columns that count as outliers depend on the whole
row, so there packing does change something.

Not covered: sequence parallelism, under which no process has a whole row.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tuner.data.chat.template import Template
from tuner.data.packs import Pack, Packs
from tuner.data.sampler import micro_batches_of_rank
from tuner.errors import StageError
from tuner.models.nonfinite import explain_nonfinite, is_finite
from tuner.train.batch import collate, count_targets, empty_batch
from tuner.train.distributed import World, raise_together
from tuner.train.engine import Engine
from tuner.train.preflight.documents import document_logits, plain_attention, sample_documents
from tuner.train.preflight.gradients import gradient_difference, sampled_gradient
from tuner.train.preflight.mask import MASKED, check_mask
from tuner.train.preflight.tolerance import GRADIENT, LOGITS, LOGITS_INT8, agree, relative_difference

ROOM = {"cpu": 256, "cuda": 4096}
"""tokens of these documents together: some seconds"""


def prove(
    engine: Engine,
    model: Any,
    packs: Sequence[Pack] | Packs,
    world: World,
    *,
    where: Callable[[Pack], list[str]],
    template: Template | None,
    whole: bool,
    compute: torch.dtype,
    autocast: torch.dtype | None,
    quant: str,
    zero_adapter: bool,
    apart: bool = False,
    files: Sequence[Path] = (),
) -> dict[str, float]:
    """The measured differences by name, and under `mask` the number of trained texts that were looked at. All
    processes call it together, before a saved step is loaded: it leaves the model in train mode and the
    engine without gradients and moments.

    where         the `file:line` of a pack's documents
    template      what wrote the rows; None where that is not known, and then the mask is not looked at
    whole         whether everything is trained (data.loss=all)
    compute       the dtype of matmuls; `autocast`: the same where the model's weights have another
    quant         how the frozen base is held
    zero_adapter  whether the model has an adapter of PEFT's that is nothing yet: B is 0
    apart         whether each document is a row of its own
    files         the checkpoint of the base: looked through where a logit is not finite

    Raises StageError in all processes when a proof fails in one.
    """
    documents = sample_documents(packs, ROOM[world.device.type])
    found: dict[str, float] = {}
    if template is not None and not whole:
        found["mask"] = check_mask([packs[i] for i in range(min(MASKED, len(packs)))], template, where, world)
    if not documents:
        return found
    logits = LOGITS[compute] if quant != "int8" else LOGITS_INT8
    try:
        model.eval()
        with (
            torch.no_grad(),
            torch.autocast(world.device.type, dtype=autocast) if autocast else nullcontext(),
        ):
            alone = [document_logits(model, [document], world.device) for document in documents]
            refuse_not_finite(model, alone, documents, where, world, files)
            packed = (
                _in_rows(model, documents, world.device)
                if apart
                else _apart(document_logits(model, documents, world.device), alone)
            )
            found["packed"] = check_logits(
                "packed", zip(packed, alone, strict=True), logits, documents, where, world
            )
            with plain_attention(model):
                plain = [document_logits(model, [document], world.device) for document in documents]
            found["attention"] = check_logits(
                "attention", zip(plain, alone, strict=True), logits, documents, where, world
            )
            if zero_adapter:
                with model.disable_adapter():
                    base = [document_logits(model, [document], world.device) for document in documents]
                # PEFT adds 0 to each number, which changes none; DoRA divides weights by their norms and
                # multiplies them again.
                rounds = model.peft_config["default"].use_dora
                found["adapter"] = check_logits(
                    "adapter",
                    zip(base, alone, strict=True),
                    logits if rounds else 0.0,
                    documents,
                    where,
                    world,
                )
        model.train()
        found["accumulated"] = check_accumulation(
            engine, documents, GRADIENT[compute], where, world, apart=apart
        )
    finally:
        model.train()
        engine.reset()
    return found


def proofs_line(found: Mapping[str, float]) -> str:
    """The measured differences in one line.

    >>> proofs_line({"mask": 12, "packed": 2e-06, "adapter": 0.0})
    'proved on these rows: packed 2e-06, adapter 0e+00, mask right in 12 places'
    """
    parts = [f"{name} {value:.0e}" for name, value in found.items() if name != "mask"]
    parts += [f"mask right in {found['mask']:.0f} places"] if "mask" in found else []
    return f"proved on these rows: {', '.join(parts)}"


def check_logits(
    name: str,
    pairs: Iterator[tuple[Tensor, Tensor]],
    tolerance: float,
    documents: Sequence[Pack],
    where: Callable[[Pack], list[str]],
    world: World,
) -> float:
    """The largest relative difference of pairs of logits, one pair a document. Raises StageError in all
    processes where it is above the tolerance in one.
    """
    differences = [relative_difference(one, other) for one, other in pairs]
    worst = max(range(len(differences)), key=differences.__getitem__)
    agree(name, differences[worst], tolerance, lambda: ", ".join(where(documents[worst])), world)
    return differences[worst]


def check_accumulation(
    engine: Engine,
    documents: Sequence[Pack],
    tolerance: float,
    where: Callable[[Pack], list[str]],
    world: World,
    *,
    apart: bool = False,
) -> float:
    """The relative difference between the gradients of `documents` in one micro batch (or one process),
    and one by one over all processes.
    """
    targets, everything = count_targets(documents), range(len(documents))
    rows = [[i] for i in everything] if apart else [everything]
    together = [
        collate([documents[i] for i in row], indices=row) if world.first else empty_batch() for row in rows
    ]
    parts = micro_batches_of_rank(everything, 1, world.rank, world.size)
    singly = [
        collate([documents[i] for i in part], indices=part) if part else empty_batch() for part in parts
    ]
    expected = sampled_gradient(engine, together, targets)
    difference, worst = gradient_difference(expected, sampled_gradient(engine, singly, targets))
    odd = next((name for name, values in expected.items() if not is_finite(values)), None)
    rows_of = ", ".join(row for document in documents for row in where(document))
    raise_together(
        world,
        f"The gradient of {odd} on the rows {rows_of} is not finite, and the loss is: values grow beyond "
        "what floats hold on the way back. Set algo.precision=fp32, or lower algo.alpha, or take "
        "another model."
        if odd
        else "",
    )

    def place() -> str:
        return f"{rows_of}, most of it in {worst}"

    agree("accumulated", difference, tolerance, place, world)
    return difference


def refuse_not_finite(
    model: Any,
    logits: Sequence[Tensor],
    documents: Sequence[Pack],
    where: Callable[[Pack], list[str]],
    world: World,
    files: Sequence[Path],
) -> None:
    """Raise StageError in all processes where a logit of the documents is not finite in one: with what
    holds the value that it comes from.
    """
    broken = next((number for number, found in enumerate(logits) if not is_finite(found)), None)
    told = world.gather(broken)
    number = next((said for said in told if said is not None), None)
    if number is None:
        return
    why = explain_nonfinite(
        model,
        files,
        lambda: document_logits(model, [documents[number]], world.device),
        first=world.first,
        share=world.gather,
    )
    raise StageError(
        f"The model computes what is not finite on the rows {', '.join(where(documents[number]))}, before it "
        f"has learnt anything. {why}"
    )


def _in_rows(model: Any, documents: Sequence[Pack], device: torch.device) -> list[Tensor]:
    """The logits of each document in a row of its own, the last one first: what came before is another
    than in their order.
    """
    return [document_logits(model, [document], device) for document in reversed(documents)][::-1]


def _apart(logits_KV: Tensor, alone: Sequence[Tensor]) -> Sequence[Tensor]:
    """The logits of each document, as many as it has alone."""
    return torch.split(logits_KV, [len(one) for one in alone])
