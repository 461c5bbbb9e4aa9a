"""Recomputation: layers keep only their inputs, and the backward pass computes the rest again."""

from typing import Any


def set_recompute(model: Any, on: bool) -> None:
    """Keep only the inputs of layers from now on and compute the rest again in the backward pass
    (arXiv:1604.06174), or keep everything.
    """
    if on == any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        return
    newer = hasattr(model, "activation_checkpointing_enable")  # what transformers calls it lately
    if on:
        (model.activation_checkpointing_enable if newer else model.gradient_checkpointing_enable)(
            {"use_reentrant": False}
        )
        return
    (model.activation_checkpointing_disable if newer else model.gradient_checkpointing_disable)()
    model.disable_input_require_grads()  # which it enabled
