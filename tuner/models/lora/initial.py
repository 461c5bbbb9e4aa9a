"""The first values of adapters: drawn, taken out of the base's weights, or those of another adapter. They
depend on the seed and not on the device.
"""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import load_file, save_file
from torch import Tensor

from tuner.config.lora_init import changes_base, pissa_iterations
from tuner.errors import ConfigError, DataError
from tuner.files import read_json
from tuner.models.lora.layers import ADAPTER, adapted_layers, adapter_config
from tuner.models.nonfinite import count_nonfinite


@torch.no_grad()
def initialise(model: PeftModel, init: str, *, r: int, seed: int, first: dict[str, Tensor] | None) -> None:
    """Give all pairs A, B their first values, in fp32, and take out of the base what they hold of it.

    Raises ConfigError where the base can't be changed: in 4 or 8 bits, for a rank above that of a weight, or
    for a head that is the embedding too.
    """
    generator = torch.Generator().manual_seed(seed)
    embedding = model.get_input_embeddings()
    for name, layer in adapted_layers(model):
        base, scale = layer.get_base_layer(), float(layer.scaling[ADAPTER])
        a_RI, b_OR = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        if not changes_base(init):
            a, b = orthogonal_pair(r, layer.in_features, layer.out_features, generator)
            a_RI.data, b_OR.data = a.to(a_RI.device), b.to(b_OR.device)
            continue
        if type(base.weight) is not torch.nn.Parameter:
            raise ConfigError(
                f"algo.lora_init={init} takes a part out of the base, which can't be done with one in 4 or 8 "
                "bits: set algo.lora_init=default, or algo.quant=none."
            )
        if base.weight is getattr(embedding, "weight", None):
            raise ConfigError(
                f"algo.lora_init={init} would change the embedding with {name}, as both are one matrix: "
                "leave it out of algo.targets."
            )
        if r > min(base.weight.shape):
            raise ConfigError(
                f"algo.r={r} is more than {name} can be taken apart into with algo.lora_init={init}: it is "
                f"{tuple(base.weight.shape)}."
            )
        weight_OI = base.weight.data.float()
        if said := count_nonfinite(weight_OI):
            raise DataError(
                f"algo.lora_init={init} takes a part out of the base's weights, and {name}.weight has "
                f"{said}: get the model again."
            )
        if first is None:
            a, b = decompose(weight_OI, r, init, scale=scale, generator=generator)
        else:
            a, b = (
                first[f"base_model.model.{name}.lora_{half}.weight"].to(weight_OI.device) for half in "AB"
            )
        a_RI.data, b_OR.data = a.contiguous(), b.contiguous()
        base.weight.data.copy_(weight_OI - scale * (b @ a))


def orthogonal_pair(r: int, inputs: int, outputs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random A [r, inputs] and B [outputs, r] with B·A = 0, as B's rows lie in one half of an
    orthogonal basis and A's columns in the other.
    """
    basis_RR = torch.linalg.qr(torch.randn(r, r, generator=generator)).Q
    a_RI = basis_RR[0::2].T @ torch.randn(r // 2, inputs, generator=generator) / 10
    b_OR = torch.randn(outputs, r // 2, generator=generator) @ basis_RR[1::2] / 10
    return a_RI, b_OR


def decompose(
    weight_OI: Tensor, r: int, init: str, *, scale: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A [r, inputs] and B [outputs, r] from a weight in fp32.

    pissa          scale · B·A is the weight's part of its r largest singular values, shared out evenly
                   (arXiv:2404.02948)
    pissa_niter_N  the same approximately, by N power iterations from a random beginning (arXiv:0909.4061,
                   algorithm 4.4)
    olora          the first r columns of Q and rows of R of the weight's QR decomposition (arXiv:2406.01775)

    Decompositions leave signs open; here B's column has a positive sum of cubes, or R's diagonal is positive,
    on every device.
    """
    if init == "olora":
        q_OK, r_KI = torch.linalg.qr(weight_OI)
        a_RI, b_OR = r_KI[:r], q_OK[:, :r]
        sign_R = torch.where(a_RI.diagonal() < 0, -1.0, 1.0)
    else:
        iterations = pissa_iterations(init)
        u_OK, s_K, v_KI = (
            torch.linalg.svd(weight_OI, full_matrices=False)
            if iterations is None
            else truncated_svd(weight_OI, r, iterations, generator)
        )
        root_R = (s_K[:r] / scale).sqrt()
        a_RI, b_OR = root_R[:, None] * v_KI[:r], u_OK[:, :r] * root_R
        sign_R = torch.where((b_OR**3).sum(0) < 0, -1.0, 1.0)
    return a_RI * sign_R[:, None], b_OR * sign_R


def truncated_svd(
    weight_OI: Tensor, r: int, iterations: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """About the r largest singular values of a weight with their vectors: [O, r], [r] and [r, I]."""
    start_IR = torch.randn(weight_OI.shape[1], r, generator=generator).to(weight_OI.device)
    q_OR = torch.linalg.qr(weight_OI @ start_IR).Q
    for _ in range(iterations):
        q_IR = torch.linalg.qr(weight_OI.T @ q_OR).Q
        q_OR = torch.linalg.qr(weight_OI @ q_IR).Q
    u_RR, s_R, v_RI = torch.linalg.svd(q_OR.T @ weight_OI, full_matrices=False)
    return q_OR @ u_RR, s_R, v_RI


@torch.no_grad()
def dora_magnitudes(layer: Any) -> Tensor:
    """The length of each row of W + scale · B·A in fp32, with which DoRA begins: at exactly the model
    without adapters. PEFT takes it in the dtype of W.
    """
    weight_OI = dequantize_module_weight(layer.get_base_layer()).float()
    update_OI = layer.lora_B[ADAPTER].weight.float() @ layer.lora_A[ADAPTER].weight.float()
    length_O: Tensor = torch.linalg.norm(weight_OI + layer.scaling[ADAPTER] * update_OI, dim=1)
    return length_O


def write_initial(model: PeftModel, path: Path) -> None:
    """Write the adapters' first values under PEFT's names: with an init that changes the base, what has
    trained is the difference to them.
    """
    partial = path.with_name(f"{path.name}.tmp")
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items() if ".lora_" in name},
        partial,
    )
    partial.replace(path)


def load_adapter(model: PeftModel, directory: Path) -> None:
    """Give the adapters of `model` the values that an adapter in `directory` has. Raises ConfigError when
    they are not made alike.
    """
    weights, own = (
        load_file(directory / "adapter_model.safetensors"),
        get_peft_model_state_dict(model, save_embedding_layers=False),
    )
    theirs, ours = read_json(directory / "adapter_config.json") or {}, adapter_config(model)
    alike = all(theirs.get(key, ours[key]) == ours[key] for key in ("lora_alpha", "use_rslora", "use_dora"))
    if not alike or {name: tensor.shape for name, tensor in weights.items()} != {
        name: tensor.shape for name, tensor in own.items()
    }:
        raise ConfigError(
            "The adapter that algo.init=continue goes on from has other layers, another rank or another "
            "scale than algo.r, alpha, targets, rslora and dora say: give them the values that its "
            "adapter_config.json has, or train a new one with algo.init=on_merged."
        )
    set_peft_model_state_dict(model, weights)
