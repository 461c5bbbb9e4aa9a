"""What a value of `algo.adapter` stands for: what trains, and the versions of what the stages make of it.

The rest of the package asks `algo.uses_adapter` and `algo.method`. So another kind of adapter is an entry
here, a module beside tuner/models/lora that adds, reads and merges it, and a branch of `build_model` in
tuner/train/setup.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Adapter = Literal["none", "lora"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A way to fine-tune."""

    name: str
    """as the versions of the stage `train` have it"""
    trains: Literal["weights", "adapter"]
    """the model's own weights, or an adapter on a frozen base; a step is written as the one or the other"""
    version: int
    """of training so, bumped by hand"""
    merge_version: int
    """of the merged model, bumped by hand"""


METHODS: Mapping[Adapter, Method] = {
    # 2: the padding token's row of the embedding trains too, which ends an answer in some families
    "none": Method(name="full", trains="weights", version=2, merge_version=1),
    "lora": Method(name="lora", trains="adapter", version=1, merge_version=1),
}
