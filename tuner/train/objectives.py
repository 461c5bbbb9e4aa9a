"""What a training run minimises, by name.

Another objective is a module with its loss, an entry of `OBJECTIVES`, and recipes under conf/algo.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from tuner.config.view import View
from tuner.train.loss import Loss, summed_loss


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """The losses of an objective."""

    training: Callable[[View], Loss]
    """from `algo`, the loss whose gradient is taken"""
    held_out: Loss
    """the loss that is measured on held-out packs; no setting changes it, so that runs can be compared"""


OBJECTIVES: Mapping[str, Objective] = {
    "sft": Objective(
        training=lambda algo: partial(summed_loss, label_smoothing=algo.label_smoothing),
        held_out=summed_loss,
    ),
}


def objective_of(_algo: View) -> Objective:
    """The objective that the config asks for. There is one so far, so no field names it."""
    return OBJECTIVES["sft"]
