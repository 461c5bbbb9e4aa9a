"""What a plan says of a run's memory and training time on a GPU, before anything runs: estimates, marked as
such. Standard library only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuner.config import deepspeed
from tuner.config.schema import Algo, Config
from tuner.data.sampler import Order
from tuner.errors import ConfigError, DataError
from tuner.estimate.flops import costs, peak_flops
from tuner.estimate.memory import Memory, MemoryEstimator, Workload
from tuner.estimate.recompute import Recompute, Setting, first_that_fits, settings
from tuner.estimate.what_fits import GIB, ways_to_fit
from tuner.hardware.nvidia_smi import Gpu, list_gpus
from tuner.kernels.compile_policy import (
    GAIN,
    LAYERS,
    capturing_pays,
    compiling_pays,
    why_not_compiled,
)
from tuner.models.geometry import Geometry

REACHED = 0.35
"""the share of a GPU's peak that training reaches: between 0.2 for a model of 100M and 0.5 for one of
some billions
"""
LEFT = 0.94
"""the share of the memory that machine.micro_batch=auto fills at most"""
DOCUMENT = 512
"""tokens of a document, for the cost of attention, while they are not counted"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackCounts:
    """What is known of the packs."""

    length: int
    """tokens of the longest"""
    targets: float
    """the share of tokens that are trained, at most"""


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuEstimate:
    """What to expect of one process on one card."""

    card: Gpu
    micro: int
    """packs in one forward pass"""
    recompute: Recompute
    layers: int
    """of the model, that train"""
    compiled: bool
    """whether its layers will be compiled"""
    memory: Memory
    fits: bool
    ways: tuple[str, ...]
    """what would fit, where this does not"""

    @property
    def sentence(self) -> str:
        of = f" of {self.card.memory_total / 1024:.0f}" if self.card.memory_total else ""
        blocks = self.recompute.blocks
        again = (
            ", recomputing blocks"
            if blocks == self.layers
            else f", recomputing {blocks} of {self.layers} layers"
            if blocks
            else ", recomputing norms"
            if self.recompute.norms
            else ""
        )
        how = f"{self.micro} pack{'s' * (self.micro > 1)} at once{', compiled' * self.compiled}{again}"
        said = f"~{self.memory.total / GIB:.1f}{of} GiB, {how}"
        return (
            said
            if self.fits
            else f"{said}, fullest in {self.memory.moment}: that will not fit"
            + (f"; these would: {'; '.join(self.ways[:4])}" if self.ways else "")
        )


def training_gpu(config: Config) -> Gpu | None:
    """The GPU that a run here would train on; None where it will train on the CPU, or that can't be
    told.
    """
    if config.machine.device == "cpu":
        return None
    try:
        whole = [card for card in list_gpus() if not card.mig]
    except ConfigError:  # what is wrong is said when training is about to start
        return None
    wish = config.machine.gpus
    if isinstance(wish, tuple):
        whole = [card for card in whole if card.index in wish]
    return min(whole, key=lambda card: card.memory_total, default=None)


def fuses_layers(config: Config) -> bool:
    """Whether linear layers with adapters will be fused (tuner.kernels.fused.adapter_linear.trouble)."""
    algo = config.algo
    plain = config.machine.kernels == "plain" or algo.precision != "bf16" or algo.dropout or algo.dora
    return algo.uses_adapter and algo.quant in ("none", "nf4") and not plain


def fuses_head(config: Config, geometry: Geometry) -> bool:
    """Whether the head and the loss will be: where the model neither caps nor scales its logits."""
    more = any(geometry.get(name) for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"))
    return config.machine.kernels != "plain" and config.algo.precision == "bf16" and not more


def estimate_on_gpu(
    geometry: Geometry, config: Config, order: Order, packs: PackCounts, card: Gpu
) -> GpuEstimate:
    """The memory that training will take on `card`: with what is `auto` chosen as the preflight will, if
    the estimates hold.

    Raises DataError for a family whose shapes are not known.
    """
    machine, algo = config.machine, config.algo
    count = deepspeed.process_count(machine)
    combination = deepspeed.combination_of(machine, algo, processes=count)
    most, layers = -(-order.per_step // count), layers_that_train(geometry, algo)
    tokens = order.per_step * packs.length
    step = training_seconds(geometry, config, tokens, packs, card, recompute=0.0) or 0.0
    possible = may_compile(geometry, config)
    compiled = possible and (machine.kernels == "compiled" or compiling_pays(order.steps, step))
    estimator = MemoryEstimator(geometry, algo)

    def work(setting: Setting) -> Workload:
        tokens = setting.micro * packs.length
        return Workload(
            tokens=tokens,
            targets=int(tokens * packs.targets),
            accumulated=most > setting.micro,
            recompute=setting.recompute,
            compiled=compiled,
            captured=possible and capturing_pays(layers, step * setting.micro / order.per_step),
            engine=combination.engine,
            zero=combination.zero,
            processes=count,
            offload=combination.offload,
            sequence_parallel=combination.sequence_parallel,
            new_tokens=len(config.model.new_tokens),
            fused_layers=fuses_layers(config) and combination.zero < 3,
            fused_head=fuses_head(config, geometry) and combination.zero < 3,
        )

    def needed(setting: Setting) -> float:
        return estimator.at(work(setting)).total

    room = LEFT * card.memory_total * 1024**2 or float("inf")
    if isinstance(machine.memory, (int, float)):
        room = min(room, machine.memory * GIB)
    every = settings(
        layers=layers,
        packs=most,
        length=packs.length,
        micro=machine.micro_batch,
        recompute=machine.recompute,
        memory=machine.memory,
        compiled=compiled,
    )
    chosen = first_that_fits(every, needed, room)
    setting = chosen or min(every, key=needed)
    mends = (
        []
        if chosen
        else ways_to_fit(geometry, algo, work(setting), room, length=packs.length, micro=setting.micro)
    )
    return GpuEstimate(
        card=card,
        micro=setting.micro,
        recompute=setting.recompute,
        layers=layers,
        compiled=compiled,
        memory=estimator.at(work(setting)),
        fits=chosen is not None,
        ways=tuple(mends),
    )


def layers_that_train(geometry: Geometry, algo: Algo) -> int:
    """Layers that keep something for a backward pass."""
    layers: int = geometry["num_hidden_layers"]
    return layers if algo.uses_adapter or algo.last_layers is None else min(layers, algo.last_layers)


def may_compile(geometry: Geometry, config: Config) -> bool:
    """Whether layers can be compiled and rows captured, if nothing on the way keeps training from it
    (tuner.train.kernels).
    """
    machine, algo = config.machine, config.algo
    count = deepspeed.process_count(machine)
    engine = deepspeed.combination_of(machine, algo, processes=count).engine
    return (
        machine.kernels in ("auto", "compiled")
        and geometry.get("model_type") in LAYERS
        and why_not_compiled(algo, engine=engine, processes=count) is None
    )


def training_seconds(
    geometry: Geometry, config: Config, tokens: float, packs: PackCounts, card: Gpu, *, recompute: float
) -> float | None:
    """About how long training on so many tokens takes; None for a card whose speed is not known. Raises
    DataError like `look`.
    """
    fastest = peak_flops(card.name)
    if fastest is None or config.algo.precision == "fp32":
        return None
    length = min(packs.length, DOCUMENT)
    cost = costs(geometry, config.algo).hardware([length], int(length * packs.targets), recompute=recompute)
    return cost * tokens / length / (fastest * REACHED * deepspeed.process_count(config.machine))


def pack_counts(config: Config, facts: Mapping[str, Any] | None) -> PackCounts:
    """From the facts of the tokenized data, or before they are there: half of the tokens trained where
    only answers are.
    """
    length = config.data.length
    if facts and facts.get("trained_tokens"):
        # some packs have more than others
        return PackCounts(
            length=length, targets=min(1.0, 1.15 * facts["trained_tokens"] / max(1, facts["tokens"]))
        )
    return PackCounts(length=length, targets=1.0 if config.data.loss == "all" else 0.5)


def estimate_training(
    geometry: Geometry | None, config: Config, order: Order, facts: Mapping[str, Any] | None
) -> tuple[GpuEstimate, float | None] | None:
    """Memory and, for the tokens of `order`, seconds; None where there is no card, or nothing is known of
    the model.
    """
    card = training_gpu(config) if geometry else None
    if card is None or geometry is None:
        return None
    packs = pack_counts(config, facts)
    try:
        found = estimate_on_gpu(geometry, config, order, packs, card)
        share = found.recompute.blocks / found.layers
        spent = training_seconds(geometry, config, order.end * packs.length, packs, card, recompute=share)
        return found, spent and spent * (1 - GAIN * found.compiled)
    except DataError:
        return None
