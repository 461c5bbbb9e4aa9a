"""A linear layer with a LoRA adapter (arXiv:2106.09685) as one function: y = x (W + s·B·A)' + bias.

Kept for the backward pass are the input, which other layers of a block share, and A and B in bf16: nothing
the size of the weight, and no second copy of an activation. The gradients are

    dx = dy (W + s·B·A)      dA = s (dy B)' x      dB = s dy' (x A')

A and B stay fp32 parameters, and their gradients are fp32.
"""

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import linear

from tuner.kernels.fused.adapter_weight import BLOCK, NESTED, adapter_weight, nf4_parts

FEW = 128
"""tokens below which answers are made faster by what PEFT and bitsandbytes have for a few rows"""


def reference(
    x: Tensor, weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float, bias_O: Tensor | None = None
) -> Tensor:
    """The same in plain PyTorch, in the dtype of its arguments."""
    return linear(x, weight_OI + scale * (b_OR @ a_RI), bias_O)


def adapter_linear(
    x: Tensor, parts: list[Tensor], a_RI: Tensor, b_OR: Tensor, scale: float, bias_O: Tensor | None = None
) -> Tensor:
    """x [..., I] → [..., O], both bf16. A and B train, and neither the base, by its `parts` as adapter_weight
    takes them, nor the bias does.
    """
    y_NO: Tensor = _AdapterLinear.apply(x.reshape(-1, x.shape[-1]), a_RI, b_OR, scale, bias_O, *parts)
    return y_NO.view(*x.shape[:-1], y_NO.shape[-1])


class _AdapterLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_NI: Tensor,
        a_RI: Tensor,
        b_OR: Tensor,
        scale: float,
        bias_O: Tensor | None,
        *parts: Tensor,
    ) -> Tensor:
        a, b = a_RI.to(torch.bfloat16), b_OR.to(torch.bfloat16)
        ctx.scale = scale
        ctx.save_for_backward(x_NI, a, b, *parts)
        weight_OI = adapter_weight([*parts], a, b, scale, b.shape[0], a.shape[1], 0)
        return linear(x_NI, weight_OI, None if bias_O is None else bias_O.to(x_NI.dtype))

    @staticmethod
    def backward(ctx: Any, dy_NO: Tensor) -> Any:
        x_NI, a, b, *parts = ctx.saved_tensors
        dx_NI = None
        if ctx.needs_input_grad[0]:
            dx_NI = dy_NO @ adapter_weight([*parts], a, b, ctx.scale, b.shape[0], a.shape[1], 1)
        xa_NR, dyb_NR = x_NI @ a.t(), dy_NO @ b
        da_RI = (dyb_NR.t() @ x_NI).float() * ctx.scale
        db_OR = (dy_NO.t() @ xa_NR).float() * ctx.scale
        return dx_NI, da_RI, db_OR, None, None, *(None for _ in parts)


def trouble(module: nn.Module) -> str | None:
    """Why a layer with an adapter keeps PEFT's own forward pass, if it does."""
    assert isinstance(module, LoraLayer)
    base = module.get_base_layer()
    weight = base.weight
    names = module.active_adapters
    if len(names) != 1 or names[0] not in module.lora_A:
        return "not one adapter on a linear layer"
    if names[0] in module.lora_variant:
        return "DoRA"
    if not isinstance(module.lora_dropout[names[0]], nn.Identity):
        return "dropout"
    if module.lora_bias.get(names[0]):
        return "a bias in the adapter"
    if hasattr(weight, "ds_id"):
        return "sharded weights (ZeRO 3)"
    if base.in_features % BLOCK:
        return f"inputs that are no multiple of {BLOCK}"
    if type(base).__name__ == "Linear4bit":
        state = weight.quant_state
        known = state.quant_type == "nf4" and state.blocksize == BLOCK and state.nested
        if not known or state.state2.blocksize != NESTED:
            return "4 bits other than NF4 with quantised constants"
        return None if state.dtype == torch.bfloat16 else "arithmetic in fp32"
    if type(base) is not nn.Linear:
        return f"a base of the class {type(base).__name__}"
    return None if weight.dtype == torch.bfloat16 else "weights that are not bf16"


def fused(kind: type[nn.Module]) -> type[nn.Module]:
    """A class of PEFT's layers with the fused forward pass; where that can't be taken, it is the old one."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        few = not torch.is_grad_enabled() and x.numel() < FEW * x.shape[-1]
        if self.disable_adapters or self.merged or x.dtype != torch.bfloat16 or few or args or kwargs:
            y: Tensor = kind.forward(self, x, *args, **kwargs)
            return y
        name = self.active_adapters[0]
        base = self.base_layer
        parts = [base.weight] if type(base) is nn.Linear else nf4_parts(base.weight)
        return adapter_linear(
            x, parts, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name], base.bias
        )

    return type(kind.__name__, (kind,), {"forward": forward, "unfused": kind, "__module__": kind.__module__})
