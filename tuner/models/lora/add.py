"""Low-rank adapters around a model: PEFT's own, with first values that depend on the seed and not on the
device.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from tuner.config.lora_init import changes_base, lora_init_problem, pissa_iterations
from tuner.errors import ConfigError, DataError
from tuner.files import read_json
from tuner.models.lora.tied_head import TiedHead, tied_head_of, unties_head
from tuner.models.new_tokens import trainable_rows
from tuner.models.nonfinite import count_nonfinite
from tuner.models.targets import target_modules

ADAPTER = "default"
"""what PEFT calls the only adapter of a model"""


def add_lora(
    model: PreTrainedModel,
    *,
    r: int,
    alpha: float,
    dropout: float,
    targets: str | tuple[str, ...],
    seed: int,
    new_token_ids: Sequence[int] = (),
    dora: bool = False,
    rslora: bool = False,
    init: str = "default",
    first: Path | None = None,
) -> PeftModel:
    """PEFT's LoRA around the model: only A and B train, and the rows of the embedding that `new_token_ids`
    names, in fp32.

    dora    magnitudes of the weights' rows train besides (arXiv:2402.09353)
    rslora  the product is scaled by alpha / sqrt(r) instead of alpha / r (arXiv:2312.03732)
    init    how A and B begin, see `tuner.config.lora_init`. With olora and pissa they are a part of the
            weight, which is taken out of the base
    first   the file that `write_initial` wrote when this training began: with olora and pissa, that part and
            no other is taken out

    First values depend on `seed`, and on the device not at all, or where a weight is decomposed, by rounding
    only. PEFT rounds those of default and gaussian to the dtype of the base.

    Raises ConfigError when no module of the model is called as `targets` says, when PEFT has no adapter for
    one that is, and for an `init` that the base doesn't allow.
    """
    if wrong := lora_init_problem(init, r=r):
        raise ConfigError(wrong)
    names = target_modules(model, targets)
    torch.manual_seed(seed)
    whole = int(alpha) if float(alpha).is_integer() else alpha  # 32, as other tools write it, not 32.0
    config = LoraConfig(
        r=r,
        lora_alpha=whole,
        lora_dropout=dropout,
        target_modules=names,
        task_type="CAUSAL_LM",
        use_dora=dora,
        use_rslora=rslora,
        init_lora_weights="gaussian" if init == "gaussian" else True,
        trainable_token_indices=trainable_rows(model, new_token_ids),
    )
    try:
        with warnings.catch_warnings():
            # PEFT reads a renamed property
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            tie = tied_head_of(model)
            # Merging makes two matrices of them, so what PEFT warns of does not happen here.
            warnings.filterwarnings(
                "ignore", message="Model (has|with) `tie_word_embeddings=True`", category=UserWarning
            )
            tuned = get_peft_model(model, config)
    except (ValueError, TypeError) as error:  # TypeError for a LoRA on a module whose rows train
        raise ConfigError(f"algo.targets={targets} can't have adapters in this model: {error}") from error
    if config.target_parameters:
        raise ConfigError(
            f"algo.targets={targets} names layers that PEFT takes for parts of this model's experts "
            f"({', '.join(sorted(config.target_parameters))}), which can't be merged or written here. Name "
            "attention's layers only, or leave algo.targets=all-linear, which does so."
        )
    if dora and (
        eight := [
            name
            for name, layer in adapted_layers(tuned)
            if type(layer.get_base_layer()).__name__ == "Linear8bitLt"
        ]
    ):
        raise ConfigError(
            "algo.dora=true needs the length of each row of the base's weights, and PEFT can't take it of "
            f"{eight[0]} in 8 bits: take algo.quant=nf4 or none."
        )
    check_embedding_adapters(tuned, tie, new_tokens=bool(new_token_ids), dora=dora, init=init)
    if init not in ("default", "gaussian"):
        initialise(tuned, init, r=r, seed=seed, first=None if first is None else load_file(first))
    if dora:
        for _, layer in adapted_layers(tuned):
            layer.lora_magnitude_vector[ADAPTER].weight.data = dora_magnitudes(layer)
    return tuned


def adapted_layers(model: PeftModel) -> Iterator[tuple[str, Any]]:
    """The linear layers with an adapter, by the name of the module that PEFT has wrapped."""
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, LoraLayer) and ADAPTER in module.lora_A:
            yield name, module


def check_embedding_adapters(
    model: PeftModel, tie: TiedHead | None, *, new_tokens: bool, dora: bool, init: str
) -> None:
    """Raise ConfigError where an adapter on the embedding or the head can't be what the config says of all
    adapters.

    tie   the two, where they are one matrix
    """
    adapted = [
        name for name, module in model.base_model.model.named_modules() if isinstance(module, LoraLayer)
    ]
    tables = [name for name in adapted if model.base_model.model.get_submodule(name).lora_embedding_A]
    if tables and (dora or init not in ("default", "gaussian")):
        what = "algo.dora=true" if dora else f"algo.lora_init={init}"
        raise ConfigError(
            f"{what} is made for linear layers, and algo.targets names the embedding {tables[0]}: leave one "
            "of the two out."
        )
    if tie is not None and new_tokens and unties_head(tie, [f"{name}.weight" for name in adapted]):
        raise ConfigError(
            "model.new_tokens trains rows of the embedding, which is the output head too in this model, and "
            f"algo.targets has an adapter for one of the two ({tie.head.removesuffix('.weight')}, "
            f"{tie.embedding.removesuffix('.weight')}): leave that out of algo.targets."
        )


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
    """Random A [r, inputs] and B [outputs, r] whose product is zero, as B's rows lie in one half of an
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
    product_OI = layer.lora_B[ADAPTER].weight.float() @ layer.lora_A[ADAPTER].weight.float()
    length_O: Tensor = torch.linalg.norm(weight_OI + layer.scaling[ADAPTER] * product_OI, dim=1)
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


def adapter_config(model: PeftModel) -> dict[str, Any]:
    """What PEFT writes as adapter_config.json, the same on every run: sets are sorted, and no directory is
    named.
    """
    settings = model.peft_config[ADAPTER].to_dict() | {"base_model_name_or_path": "", "inference_mode": True}
    return {
        key: sorted(value) if isinstance(value, set) else value for key, value in sorted(settings.items())
    }


def count_trainable(model: torch.nn.Module) -> int:
    """How many numbers train."""
    return sum(math.prod(p.shape) for p in model.parameters() if p.requires_grad)
