"""A LoRA adapter written into its base model: W + s·B·A, tensor by tensor, never the whole model in memory.

B·A is that of arXiv:2106.09685, section 4.1, in the order PEFT's own merge computes it, in fp32, and rounded
once to the dtype in which training held the base: bf16, or fp32 where algo.precision says so.
With DoRA, the rows of the sum get the lengths that trained (arXiv:2402.09353, equation 5).
An adapter that trained on a base in 4 or 8 bits goes into what that base was: every weight, quantised and
back (arXiv:2305.14314, section 3).
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tuner.errors import StageError
from tuner.files import decode_json
from tuner.models.checkpoint.files import weight_files
from tuner.models.checkpoint.safetensors import DTYPES, FLOATS, Checkpoint, Spec, specs_in_dtype
from tuner.models.checkpoint.write_safetensors import SHARD_LIMIT, write_checkpoint
from tuner.models.layouts.llama import HEAD
from tuner.models.layouts.rewrite import write_original
from tuner.models.lora import tied_head
from tuner.models.lora.tensors import LoraPair, lora_pairs, token_rows

CODES = {"bf16": "BF16", "fp32": "F32"}
"""algo.precision, as safetensors calls it: what is merged lies in the dtype in which training held the
base
"""


def merged_weight(
    weight: Tensor, a: Tensor, b: Tensor, scale: float, magnitude: Tensor | None = None
) -> Tensor:
    """W + scale · B·A in fp32, and with DoRA its rows at the lengths `magnitude`. W is [outputs, inputs], A
    [r, inputs], B [outputs, r], `magnitude` [outputs]; the result is like W.

    >>> merged_weight(torch.eye(2), torch.ones(1, 2), torch.tensor([[1.0], [0.0]]), 0.5).tolist()
    [[1.5, 0.5], [0.0, 1.0]]
    >>> merged_weight(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), torch.zeros(1, 1), 1.0,
    ...     torch.tensor([10.0])).tolist()
    [[6.0, 8.0]]
    """
    weight, update = weight.float(), (b.float() @ a.float()) * scale
    if magnitude is None:
        return weight + update
    length: Tensor = torch.linalg.norm(weight + update, dim=1)
    return (magnitude.float() / length).view(-1, 1) * (weight + update)


def replace_rows(weight: Tensor, values: Tensor, ids: Iterable[int]) -> Tensor:
    """The weight with `values` as the rows `ids`, rounded to its own type.

    >>> replace_rows(torch.zeros(3, 1), torch.tensor([[7.0], [8.0]]), [2, 0]).tolist()
    [[8.0], [0.0], [7.0]]
    """
    return weight.index_copy(0, torch.tensor(list(ids), dtype=torch.long), values.to(weight.dtype))


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlay:
    """A base with an adapter in it."""

    specs: Mapping[str, Spec]
    """its tensors, by their names in the checkpoint"""
    value: Callable[[str], Tensor]
    """computes one of them"""
    head: str | None
    """the tensor of a head that was tied to the embedding and, by the adapter, is not any more"""


def overlay(
    base: Path,
    adapter: Path,
    *,
    dtype: str = "BF16",
    quant: str = "none",
    quantised: Collection[str] | None = None,
    names: Mapping[str, str] | None = None,
) -> Overlay:
    """The base with the adapter in it.

    dtype       that of the result: BF16 or F32, in which training held the base
    quant       how the base was held while the adapter trained (algo.quant)
    quantised   the checkpoint's tensors that were held so, with an adapter or without; None finds them out
    names       a module's weight → the checkpoint's tensor; None finds them out, where the adapter's names
                are not the checkpoint's

    Of a checkpoint in that dtype, what is neither adapted nor quantised keeps its bytes. Raises StageError
    when the adapter doesn't fit the base.
    """
    weights = Checkpoint(weight_files(base))
    deltas = Checkpoint([adapter / "adapter_model.safetensors"])
    settings = decode_json((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    by_module = token_rows(settings, deltas.specs)
    alone = {part.tensor for part in by_module.values()}
    by_pair = lora_pairs(settings, {name: spec for name, spec in deltas.specs.items() if name not in alone})
    tie = tied_head.tied_head_in(base, by_pair)
    apart = tied_head.unties_head(tie, by_pair)
    if names is None:
        own = {tie.head} if tie and apart else set()
        names = (
            {} if weights.specs.keys() >= by_module.keys() | by_pair.keys() - {HEAD, *own} else _names(base)
        )
    held = frozenset() if quant == "none" else _quantised(base) if quantised is None else frozenset(quantised)
    fresh = {names.get(name, name): part for name, part in by_module.items()}
    plan = {names.get(name, name): pair for name, pair in by_pair.items()}
    head = names.get(tie.head, tie.head) if tie and apart else None
    one = names.get(tie.embedding, tie.embedding) if tie else ""
    source = {head: one} if head is not None and head not in weights.specs else {}
    there = {
        **weights.specs,
        **{name: replace(weights.specs[twin], name=name) for name, twin in source.items()},
    }
    for name, pair in plan.items():
        _fit(there.get(name), name, _shape(pair, deltas.specs))
        if pair.magnitude and deltas.specs[pair.magnitude].shape != there[name].shape[:1]:
            raise StageError(
                f"The adapter's magnitudes for {name} are {deltas.specs[pair.magnitude].shape}, one for each "
                "row was expected."
            )
    if fresh and apart:
        raise StageError(
            "The adapter has rows of its own for new tokens, and a pair A, B for the head or the embedding "
            "that they belong to: which of them holds is not defined. Use it with PEFT."
        )
    if fresh and has_tied_head(base) and (twin := names.get(HEAD, HEAD)) in weights.specs:
        fresh.setdefault(twin, next(iter(fresh.values())))  # the file holds the tied matrix twice
    for name, part in fresh.items():
        _has(weights.specs.get(name), name, part.ids, deltas.specs[part.tensor].shape[1:])
    if both := sorted(plan.keys() & fresh.keys()):
        raise StageError(
            f"The adapter has both a pair A, B and rows of its own for {both[0]}: which of them holds is not "
            "defined. Use it with PEFT."
        )
    specs = specs_in_dtype(there, dtype)
    specs |= {name: replace(specs[name], dtype=dtype) for name in (*plan, *held)}

    def value(name: str) -> Tensor:
        weight = weights[source.get(name, name)]
        if name in held:
            from tuner.models.quantize import quantise_dequantise

            weight = quantise_dequantise(weight, quant, DTYPES[dtype])
        if name in plan:
            pair = plan[name]
            weight = weight.T if pair.embedding else weight
            weight = merged_weight(
                weight,
                deltas[pair.a],
                deltas[pair.b],
                pair.scale,
                deltas[pair.magnitude] if pair.magnitude else None,
            )
            weight = weight.T.contiguous() if pair.embedding else weight
        weight = weight.to(DTYPES[specs[name].dtype])
        return replace_rows(weight, deltas[fresh[name].tensor], fresh[name].ids) if name in fresh else weight

    return Overlay(specs=specs, value=value, head=head)


def _shape(pair: LoraPair, specs: Mapping[str, Spec]) -> tuple[int, int]:
    """Of the weight that a pair belongs to."""
    outputs, inputs = specs[pair.b].shape[0], specs[pair.a].shape[1]
    return (inputs, outputs) if pair.embedding else (outputs, inputs)


# Both build the model's class, whose imports cost a merge of a plain checkpoint more than the merging.


def _names(base: Path) -> dict[str, str]:
    from tuner.models.checkpoint.weight_names import checkpoint_names

    return checkpoint_names(base)


def _quantised(base: Path) -> frozenset[str]:
    from tuner.models import quantize

    return quantize.quantised_tensors(base)


def has_tied_head(base: Path) -> bool:
    """Whether the output head is the embedding, as far as config.json says so itself."""
    config = decode_json((base / "config.json").read_text(encoding="utf-8"))
    return bool(
        config.get("tie_word_embeddings", (config.get("text_config") or {}).get("tie_word_embeddings", False))
    )


def _fit(spec: Spec | None, name: str, shape: tuple[int, ...]) -> None:
    if spec is None:
        raise StageError(
            f"The adapter has a part for {name}, and the base has no such tensor: it was made for another "
            "model or layout."
        )
    if spec.shape != shape or spec.dtype not in FLOATS:
        raise StageError(
            f"The adapter's part for {name} is {shape}, the base has {spec.dtype} {spec.shape}: it was made "
            "for another model."
        )


def _has(spec: Spec | None, name: str, ids: tuple[int, ...], width: tuple[int, ...]) -> None:
    count = spec.shape[0] if spec is not None and spec.shape else 0
    _fit(spec, name, (count, *width))
    if beyond := sorted(id_ for id_ in ids if not 0 <= id_ < count):
        raise StageError(
            f"The adapter has a row for the token {beyond[-1]}, and {name} of the base has {count} rows. It "
            "was trained on a base with new tokens (model.new_tokens): merge it into that one."
        )


def merge_adapter(
    base: Path,
    adapter: Path,
    out: Path,
    *,
    dtype: str = "BF16",
    quant: str = "none",
    quantised: Collection[str] | None = None,
    names: Mapping[str, str] | None = None,
    limit: int = SHARD_LIMIT,
    tick: Callable[[Spec], None] = lambda _: None,
) -> bool:
    """Write the base with the adapter in it to `out` as a checkpoint in `dtype`; whether a head that was tied
    is now a tensor of its own. See `overlay`.

    Raises StageError when the adapter doesn't fit the base.
    """
    laid = overlay(base, adapter, dtype=dtype, quant=quant, quantised=quantised, names=names)
    write_checkpoint(out, laid.specs.values(), laid.value, limit=limit, tick=tick)
    return laid.head is not None


def merge_original(
    base: Path,
    adapter: Path | None,
    aside: Path,
    out: Path,
    *,
    dtype: str = "BF16",
    quant: str = "none",
    tick: Callable[[Spec], None] = lambda _: None,
) -> bool:
    """Write a model of a rewritten family to `out` in its original layout, settings and tokenizer included;
    whether a tied head is now one of its own.

    base      the checkpoint in the native layout: the base of `adapter`, or what full fine-tuning made, with
              no adapter
    aside     the directory `original` that lay beside the rewritten base

    What is written is computed tensor by tensor: no merged native checkpoint lies anywhere in between. Raises
    StageError when the adapter doesn't fit the base, and DataError where something has trained that the
    original layout has no place for.
    """
    if adapter is None:
        weights = Checkpoint(weight_files(base))
        write_original(weights.specs, weights.__getitem__, aside, out, untied=False, tick=tick)
        return False
    laid = overlay(base, adapter, dtype=dtype, quant=quant)
    write_original(laid.specs, laid.value, aside, out, untied=laid.head is not None, tick=tick)
    return laid.head is not None
