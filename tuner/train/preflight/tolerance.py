"""How far numbers may be apart that are equal in exact arithmetic, and what is said where it is more."""

from collections.abc import Callable

import torch
from torch import Tensor

from tuner.train.distributed import World, raise_together

LOGITS = {torch.float32: 2e-4, torch.bfloat16: 0.1}
"""the largest relative difference of a document's logits"""
LOGITS_INT8 = 0.2
GRADIENT = {torch.float32: 2e-4, torch.bfloat16: 0.06}
"""the largest relative difference of all gradients together"""
WORDS = {
    "packed": (
        "a document has other logits in a pack than alone, so documents of a pack see each other. Set "
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
        "the gradient of documents in one micro batch differs from that of the same documents one by one, "
        "so the result would depend on machine.micro_batch and on the number of processes. Set "
        "machine.engine or machine.zero otherwise"
    ),
    "kernels": (
        "the gradient with this run's kernels is not that of PyTorch's and PEFT's own modules. Set "
        "machine.kernels=plain"
    ),
}
"""why a proof fails, and what helps"""


def agree(name: str, difference: float, tolerance: float, place: Callable[[], str], world: World) -> None:
    """Raise StageError in all processes where the difference is above the tolerance in one.

    name    of the proof; `place`: the rows
    """
    complaint = ""
    if not difference <= tolerance:  # not a number is no proof either
        complaint = (
            f"A proof on this run's own model and rows has failed ({name}): {WORDS[name]}; "
            f"machine.preflight=false skips the proofs. The relative difference is {difference:.1e}, and "
            f"rounding explains up to {tolerance:.0e}. The rows: {place()}."
        )
    raise_together(world, complaint)


def relative_difference(one: Tensor, other: Tensor) -> float:
    """||one - other|| / ||one||, in the 2-norm and in fp64; nan where a value is none."""
    size, off = (float(x.double().norm()) for x in (one, one.double() - other.double()))
    return off / size if size else off
