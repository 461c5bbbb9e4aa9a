"""Recomputation: layers keep only their inputs, and the backward pass computes the rest again."""

from typing import Any

from transformers.modeling_layers import GradientCheckpointingLayer

from tuner.kernels.compiled_layers import first_that_trains


def layers_to_recompute(model: Any) -> list[Any]:
    """The layers that keep something for the backward pass, in their order: from the first that trains."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    return layers[first_that_trains(layers) :]


def set_recompute(model: Any, blocks: int) -> None:
    """Let the first `blocks` layers keep only their inputs from now on, and compute the rest again in the
    backward pass (arXiv:1604.06174); the others keep everything.

    The first, since they come last in the backward pass: when they compute again, what the others kept is
    gone.
    """
    on = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    newer = hasattr(model, "activation_checkpointing_enable")  # what transformers calls it lately
    if blocks and not on:
        (model.activation_checkpointing_enable if newer else model.gradient_checkpointing_enable)(
            {"use_reentrant": False}
        )
    elif on and not blocks:
        (model.activation_checkpointing_disable if newer else model.gradient_checkpointing_disable)()
        model.disable_input_require_grads()  # which it enabled
    if blocks:
        for number, layer in enumerate(layers_to_recompute(model)):
            layer.gradient_checkpointing = number < blocks
