"""The model and the engine of a run, from the config."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tuner.config import deepspeed, lora_init
from tuner.config.view import View
from tuner.data.packs import Pack
from tuner.errors import ConfigError, DataError
from tuner.estimate import flops
from tuner.files import read_json, write_json
from tuner.kernels import attention
from tuner.models.attention_needs import attention_needs
from tuner.models.full_finetune import count_trainable, load_trainable
from tuner.models.layouts import detection
from tuner.models.load import PRECISIONS, load_model
from tuner.models.lora.add import add_lora
from tuner.models.lora.initial import load_adapter, write_initial
from tuner.models.lora.layers import adapted_layers, adapter_config
from tuner.models.new_tokens import token_ids
from tuner.models.stateful_layers import carried_state
from tuner.train import optimizers
from tuner.train.batch import count_targets
from tuner.train.checkpoints import steps
from tuner.train.distributed import World
from tuner.train.engine import Engine, TorchEngine, trainable_parameters
from tuner.train.noise import Noise, prepare_noise
from tuner.train.objectives import objective_of


def build_model(
    config: View, directory: Path, out: Path, device: torch.device, compute: torch.dtype, *, zero_stage: int
) -> Any:
    """The model in train mode: a frozen base with fp32 adapters, or fp32 masters of the weights that train.

    `out` is the training directory: for inits that begin with a part of the base, the adapter's first
    values lie there once it has begun.
    """
    algo = config.algo
    if not algo.uses_adapter:
        if "head" not in algo.freeze:
            refuse_fixed_head(directory, "algo.adapter=none trains the output head", config.merge.layout)
        return load_trainable(
            directory,
            device=device,
            compute=compute,
            rounded=PRECISIONS[algo.precision],
            last_layers=algo.last_layers,
            freeze=algo.freeze,
        ).train()
    # ZeRO 3 shards what has a dtype that it knows
    storage = torch.bfloat16 if algo.quant == "nf4" and zero_stage == 3 else None
    base = load_model(
        directory,
        dtype=compute,
        device=device,
        rounded=PRECISIONS[algo.precision],
        quant=algo.quant,
        storage=storage,
    )
    first = out / steps.INITIAL
    model = add_lora(
        base,
        r=algo.r,
        alpha=lora_init.alpha_of(algo.alpha, r=algo.r, rslora=algo.rslora),
        dropout=algo.dropout,
        targets=algo.targets,
        seed=config.seed,
        new_token_ids=token_ids(directory, config.model.new_tokens),
        dora=algo.dora,
        rslora=algo.rslora,
        init=algo.lora_init,
        first=first if first.exists() else None,
    )
    if model.get_output_embeddings() in [layer for _, layer in adapted_layers(model)]:
        refuse_fixed_head(directory, "algo.targets has an adapter for the output head", config.merge.layout)
    if algo.init == "continue":
        load_adapter(model, Path(config.model.adapter))
    return model.train()


def write_adapter_settings(config: View, model: Any, out: Path) -> None:
    """What of an adapter is the same at every step, beside the steps."""
    if not config.algo.uses_adapter:
        return
    write_json(out / steps.ADAPTER, adapter_config(model), indent=2)
    if lora_init.changes_base(config.algo.lora_init) and not (out / steps.INITIAL).exists():
        write_initial(model, out / steps.INITIAL)


def choose_attention(wish: str, model: Any, device: torch.device, compute: torch.dtype) -> tuple[str, str]:
    """The backend of attention from now on in this process, and why it is that one. Raises ConfigError
    where a wish can't be met.
    """
    name, why = attention.choose_backend(wish, attention_needs(model, dtype=compute, device=device))
    attention.use_backend(name)
    return name, why


def autocast_of(algo: View, compute: torch.dtype) -> torch.dtype | None:
    """The dtype of matmuls on weights that train in fp32; None where the weights have it
    themselves.
    """
    return compute if not algo.uses_adapter and compute != torch.float32 else None


def build_engine(
    config: View, model: Any, world: World, compute: torch.dtype, facts: Mapping[str, Any]
) -> Engine:
    """What computes the steps. The model's trainable parameters are settled from here on."""
    algo, machine = config.algo, config.machine
    autocast, loss = autocast_of(algo, compute), objective_of(algo).training(algo)
    noise: Noise | None = prepare_noise(model, seed=config.seed, dropout=algo.dropout, neftune=algo.neftune)
    if facts["engine"] == "torch":
        optimizer = optimizers.build_optimizer(
            trainable_parameters(model),
            algo.optim,
            lora_plus=algo.lora_plus,
            device=world.device,
            vocabulary=optimizers.vocabulary_weights(model),
        )
        return TorchEngine(model, optimizer, loss=loss, autocast=autocast, noise=noise)
    from tuner.train.deepspeed import sequence_parallel
    from tuner.train.deepspeed.engine import ZeroEngine
    from tuner.train.deepspeed.settings import deepspeed_json, read_own

    shared = machine.sequence_parallel
    if shared > 1:
        sequence_parallel.refuse_model(model.config, shared, carried_state(model))

    combination = deepspeed.combination_of(machine, algo, processes=world.size)
    hidden = model.config.get_text_config().hidden_size
    settings = deepspeed_json(
        combination,
        device=world.device.type,
        trainable=count_trainable(model),
        hidden=hidden,
        largest=max(p.numel() for p in model.parameters()),
        own=read_own(machine.deepspeed) if machine.deepspeed else None,
    )
    engine = ZeroEngine(
        model,
        world=world,
        settings=settings,
        optim=algo.optim,
        loss=loss,
        lora_plus=algo.lora_plus,
        autocast=autocast,
        noise=noise,
        timeout=machine.timeout,
    )
    if shared > 1:
        sequence_parallel.install(sequence_parallel.group_of(world.rank, world.size, shared))
    return engine


def step_flops(
    config: View, directory: Path, device: torch.device
) -> tuple[Callable[[Sequence[Pack]], float], float | None]:
    """The floating-point operations of a step as a function of its packs, and the most that the device does a
    second; None where that, or the family's shapes, are not known."""
    try:
        costs = flops.costs(read_json(directory / "config.json") or {}, config.algo)
    except DataError:
        return lambda _: 0.0, None
    peak = flops.peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return lambda packs: costs.model(
        [n for pack in packs for n in pack.lengths.tolist()], count_targets(packs)
    ), peak


def refuse_fixed_head(directory: Path, trains: str, wanted: str) -> None:
    """Raise ConfigError, before anything trains, where the output head trains and its result is to be written
    in a layout that fixes the norms of its rows.

    trains   what does, in words
    wanted   merge.layout; a family without a class is written in its own whatever it says
    """
    layout = (read_json(directory / detection.ORIGINAL / detection.LAYOUT_FILE) or {}).get("layout")
    if layout in detection.NORMALISED and (layout in detection.WITHOUT_CLASS or wanted == "original"):
        otherwise = "" if layout in detection.WITHOUT_CLASS else ", or merge.layout=native"
        raise ConfigError(
            f"{trains}, and the layout {layout}, in which this model's result is written, divides each of "
            "its rows by its norm on every use: what was trained could not be written. Take algo=lora or "
            f"algo=qlora without the head in algo.targets{otherwise}."
        )
