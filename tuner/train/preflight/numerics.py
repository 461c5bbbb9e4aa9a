"""Before the first step, on the run's own model and rows: what must change nothing changes nothing.

packed       documents together in a pack give the logits that each gives alone; of a model that carries a
             state from token to token, each is a row of its own, and gives its logits whatever rows came
             before
attention    the attention that trains gives the logits that transformers' plain one gives
adapter      an adapter that begins as nothing leaves the base's logits as they are
accumulated  documents in one micro batch give the gradient that they give one by one, spread over all
             processes
mask         trained is what the assistant says

Differences are relative 2-norms. In exact arithmetic all are 0; what is left is rounding. A logit is the end
of some hundred roundings, of a relative size of 2^-24 (fp32) or 2^-9 (bf16) each, which mostly cancel.
SmolLM2-135M, on a processor, has 1e-6 (fp32) and 0.03 (bf16, also on a base in 4 bits) in `attention`, and
3e-7 and 0.001 in `accumulated`; documents that see each other give 0.8. The tolerances leave room for deeper
models and for kernels that add up otherwise. In 8 bits the columns that count as outliers depend on the whole
row, so there packing does change something.

Not covered: sequence parallelism, under which no process has a whole row.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from tuner.data.chat.template import Template
from tuner.data.packs import Pack, Packs
from tuner.data.sampler import micro_batches_of_rank
from tuner.errors import StageError
from tuner.models.nonfinite import explain_nonfinite, is_finite
from tuner.train.batch import Batch, collate, count_targets, empty_batch
from tuner.train.distributed import World
from tuner.train.engine import Engine
from tuner.train.loss import logits_at
from tuner.train.preflight import mask

LOGITS = {torch.float32: 2e-4, torch.bfloat16: 0.1}
"""the largest relative difference of a document's logits"""
LOGITS_INT8 = 0.2
GRADIENT = {torch.float32: 2e-4, torch.bfloat16: 0.06}
"""the largest relative difference of all gradients together"""
DOCUMENTS = 4
ROOM = {"cpu": 256, "cuda": 4096}
"""tokens of these documents together: some seconds"""
POSITIONS = 64
"""positions of a document whose logits are looked at"""
VALUES = 65_536
"""values of a tensor's gradient that are looked at"""
MASKED = 64
"""packs whose mask is looked at"""


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
    compute       the dtype of matrix products; `autocast`: the same where the model's weights have another
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
            alone = [_logits(model, [document], world.device) for document in documents]
            refuse_not_finite(model, alone, documents, where, world, files)
            packed = (
                _in_rows(model, documents, world.device)
                if apart
                else _apart(_logits(model, documents, world.device), alone)
            )
            found["packed"] = check_logits(
                "packed", zip(packed, alone, strict=True), logits, documents, where, world
            )
            with plain_attention(model):
                plain = [_logits(model, [document], world.device) for document in documents]
            found["attention"] = check_logits(
                "attention", zip(plain, alone, strict=True), logits, documents, where, world
            )
            if zero_adapter:
                with model.disable_adapter():
                    base = [_logits(model, [document], world.device) for document in documents]
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

    >>> said({"mask": 12, "packed": 2e-06, "adapter": 0.0})
    'proved on these rows: packed 2e-06, adapter 0e+00, mask right in 12 places'
    """
    parts = [f"{name} {value:.0e}" for name, value in found.items() if name != "mask"]
    parts += [f"mask right in {found['mask']:.0f} places"] if "mask" in found else []
    return f"proved on these rows: {', '.join(parts)}"


WORDS = {
    "packed": (
        "a document's logits are others in a pack than alone, so documents of a pack see each other. Set "
        "another machine.attention; if it is the same there, layers of this model carry something from "
        "document to document that config.json doesn't tell of"
    ),
    "attention": (
        "the attention that trains gives other logits than the plain one of transformers. Set another "
        "machine.attention"
    ),
    "adapter": (
        "the new adapter changes the base model's logits before it has learnt anything. Set "
        "algo.lora_init=default"
    ),
    "accumulated": (
        "the gradient of documents in one micro batch is another than that of the same documents one by one, "
        "so the result would depend on machine.micro_batch and on the number of processes. Set "
        "machine.engine or machine.zero otherwise"
    ),
}


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
    _agree(name, differences[worst], tolerance, lambda: ", ".join(where(documents[worst])), world)
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
    engine.reset()
    engine.forward_backward(together, targets)
    expected = {name: _values(tensor).cpu().clone() for name, tensor in engine.gradients()}
    engine.reset()
    engine.forward_backward(singly, targets)
    size = sum(float(values.double().square().sum()) for values in expected.values())
    off = {
        name: float((_values(tensor).cpu() - expected[name]).double().square().sum())
        for name, tensor in engine.gradients()
    }
    difference = (sum(off.values()) / size) ** 0.5 if size else float(any(off.values()))
    worst = max(off, key=off.__getitem__)
    odd = next((name for name, values in expected.items() if not is_finite(values)), None)
    rows_of = ", ".join(row for document in documents for row in where(document))
    raise_first(
        world.gather(
            f"The gradient of {odd} on the rows {rows_of} is not finite, and the loss is: values grow beyond "
            "what floats hold on the way back. Set algo.precision=fp32, or lower algo.alpha, or take "
            "another model."
            if odd
            else ""
        )
    )

    def place() -> str:
        return f"{rows_of}, most of it in {worst}"

    _agree("accumulated", difference, tolerance, place, world)
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
        lambda: _logits(model, [documents[number]], world.device),
        first=world.first,
        share=world.gather,
    )
    raise StageError(
        f"The model computes what is not finite on the rows {', '.join(where(documents[number]))}, before it "
        f"has learnt anything. {why}"
    )


def check_mask(
    packs: Sequence[Pack], template: Template, where: Callable[[Pack], list[str]], world: World
) -> int:
    """How many trained texts `packs` have. Raises StageError where most of them are not as the template
    writes what the assistant says.
    """
    count, odd = mask.find_odd_spans(packs, template)
    complaint = ""
    if 2 * len(odd) > count:
        first = odd[0]
        complaint = (
            f"The loss mask is not what the chat template says: of {count} trained texts in the first "
            f"{len(packs)} packs {len(odd)} are others; in {where(packs[first.pack])[first.document]} "
            f"{first.why}. Tokenize again with redo=tokenize; `preview` shows the mask in colours. If it is "
            "meant so, set machine.preflight=false."
        )
    raise_first(world.gather(complaint))
    return count


def raise_first(complaints: Sequence[str]) -> None:
    """Raise StageError with the first of the processes' complaints that is one."""
    if found := [complaint for complaint in complaints if complaint]:
        raise StageError(found[0])


def _agree(name: str, difference: float, tolerance: float, place: Callable[[], str], world: World) -> None:
    complaint = ""
    if not difference <= tolerance:  # not a number is no proof either
        complaint = (
            f"A proof on this run's own model and rows has failed ({name}): {WORDS[name]}; "
            f"machine.preflight=false skips the proofs. The relative difference is {difference:.1e}, and "
            f"rounding explains up to {tolerance:.0e}. The rows: {place()}."
        )
    raise_first(world.gather(complaint))


def relative_difference(one: Tensor, other: Tensor) -> float:
    """||one - other|| / ||one||, in the 2-norm and in fp64; nan where a value is none."""
    size, off = (float(x.double().norm()) for x in (one, one.double() - other.double()))
    return off / size if size else off


def sample_documents(packs: Sequence[Pack] | Packs, room: int) -> list[Pack]:
    """A few real documents, each a pack of its own, of `room` tokens together at most and no more than the
    longest of the packs they are from.
    """
    chosen: list[tuple[Pack, int]] = []
    for number in range(len(packs)):
        pack = packs[number]
        begins = np.concatenate([[0], np.cumsum(pack.lengths)])
        trained = [d for d in range(len(pack.lengths)) if pack.trained[begins[d] + 1 : begins[d + 1]].any()]
        chosen += [(pack, d) for d in trained[: DOCUMENTS - len(chosen)]]
        if len(chosen) == DOCUMENTS:
            break
    if not chosen:
        return []
    longest = min(room, max(len(pack.ids) for pack, _ in chosen)) // len(chosen)
    return [cut_document(pack, document, max(2, longest)) for pack, document in chosen]


def cut_document(pack: Pack, document: int, longest: int) -> Pack:
    """A document alone, cut to `longest` tokens around the first that is trained."""
    begin = int(pack.lengths[:document].sum())
    end = begin + int(pack.lengths[document])
    first = begin + 1 + int(np.flatnonzero(pack.trained[begin + 1 : end])[0])
    start = max(begin, min(first - longest // 2, end - longest))
    stop = min(end, start + longest)
    trained = pack.trained[start:stop].copy()
    trained[0] = False
    one = slice(document, document + 1)
    lengths = np.array([stop - start], dtype=np.int32)
    return Pack(
        ids=pack.ids[start:stop],
        trained=trained,
        lengths=lengths,
        files=pack.files[one],
        lines=pack.lines[one],
    )


@contextmanager
def plain_attention(model: Any) -> Iterator[None]:
    """Let the model attend as transformers writes it out, one matrix of scores a head, while entered: for
    rows of one document.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    usual = base.config._attn_implementation
    base.set_attn_implementation("eager")
    try:
        yield
    finally:
        base.set_attn_implementation(usual)


def _logits(model: Any, documents: Sequence[Pack], device: torch.device) -> Tensor:
    """The logits [K, V] at some positions of each document, evenly spaced up to its last."""
    batch = collate(documents)
    at, places = 0, []
    for document in documents:
        length = len(document.ids)
        places.append(at + np.unique(np.linspace(length - 1, 0, min(POSITIONS, length)).astype(np.int64)))
        at += length
    keep_K = torch.from_numpy(np.concatenate(places))
    asked: Batch = replace(batch, keep_M=keep_K, targets_M=keep_K)
    return logits_at(model, asked.to(device))


def _in_rows(model: Any, documents: Sequence[Pack], device: torch.device) -> list[Tensor]:
    """The logits of each document in a row of its own, the last one first: what came before is another
    than in their order.
    """
    return [_logits(model, [document], device) for document in reversed(documents)][::-1]


def _apart(logits_KV: Tensor, alone: Sequence[Tensor]) -> Sequence[Tensor]:
    """The logits of each document, as many as it has alone."""
    return torch.split(logits_KV, [len(one) for one in alone])


def _values(tensor: Tensor) -> Tensor:
    """At most so many values of a tensor, evenly spaced, flat."""
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, -(-flat.numel() // VALUES))]
