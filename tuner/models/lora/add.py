"""Low-rank adapters put around a model by PEFT, and the rows of new tokens that train with them."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import PreTrainedModel

from tuner.config.lora_init import lora_init_problem
from tuner.errors import ConfigError
from tuner.models.lora.initial import dora_magnitudes, initialise
from tuner.models.lora.layers import ADAPTER, adapted_layers
from tuner.models.lora.tied_head import TiedHead, tied_head_of, unties_head
from tuner.models.targets import target_modules


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
    rslora  B·A is scaled by alpha / sqrt(r) instead of alpha / r (arXiv:2312.03732)
    init    how A and B begin, see `tuner.config.lora_init`. With olora and pissa they are a part of the
            weight, which is taken out of the base
    first   the file that `write_initial` wrote when this run began: with olora and pissa, that part and
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


def trainable_rows(model: PreTrainedModel, ids: Sequence[int]) -> dict[str, list[int]] | None:
    """What PEFT takes as `trainable_token_indices` so that the rows `ids` train with a LoRA, in fp32: by
    module, the embedding and a head of its own.

    A tied head follows the embedding by itself. Raises ConfigError for a head that PEFT would compute
    otherwise than the model does.
    """
    if not ids:
        return None
    names = {module: name for name, module in model.named_modules()}
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    if head is not None and head.weight is not embedding.weight:
        if not isinstance(head, torch.nn.Linear) or getattr(head, "bias", None) is not None:
            raise ConfigError(
                "model.new_tokens with algo.adapter=lora needs an output head without bias, and this "
                f"model's is {head}. Train all weights (algo=full), or train without new tokens."
            )
        return {names[embedding]: list(ids), names[head]: list(ids)}
    return {names[embedding]: list(ids)}
