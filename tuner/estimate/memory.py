"""How much memory of a GPU a training takes, before it starts. Standard library only: a plan asks.

What is counted are the bytes that PyTorch, transformers and PEFT allocate for a step, at each moment at which
it may hold most: the fullest is the estimate. `fragmentation` and `workspace` were measured on a GPU, the
rest follows from shapes. Attention is taken to be a flash kernel.

Rougher, since nothing was measured there: experts, int8, latent attention, DoRA, Adafactor on all weights,
and DeepSpeed's buffers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Literal

from tuner.config.schema import Algo
from tuner.estimate.activations import Adapted, activation_bytes, layer_tensors, saved_bytes, temporary_bytes
from tuner.estimate.flops import HEAD, adapted_layers
from tuner.models.geometry import EMBEDDING, Geometry, Shape, linear_shapes, tensor_shapes

MIB = 1 << 20
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""bytes of a weight in 4 bits: with 8 bits for the constant of 64 weights, and 32 for that of 256
constants (arXiv:2305.14314, section 3)
"""
HELD = {"nf4": NF4, "int8": 1.0}
"""bytes of a frozen weight, by algo.quant"""
BUCKET = 1 << 25
"""numbers that DeepSpeed reduces at once"""
WORKSPACE = 70 * MIB
"""of cuBLAS (measured on an H100)"""
CONTEXT = 520 * MIB
"""of CUDA and its libraries, which PyTorch does not count"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """What one process computes at a time, and what it shares with others."""

    tokens: int
    """of the longest micro batch"""
    targets: int
    """of the micro batch that has most"""
    accumulated: bool = True
    """whether a step has several micro batches, so that gradients are there while one is computed"""
    recompute: bool = False
    """machine.recompute=blocks"""
    new_tokens: int = 0
    """rows of the embedding that train beside adapters"""
    engine: Literal["torch", "deepspeed"] = "torch"
    zero: int = 0
    """the ZeRO stage"""
    processes: int = 1
    offload: str = "none"
    """machine.offload"""
    sequence_parallel: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes in the memory of one GPU when it is fullest."""

    weights: float
    """as they are kept: the frozen base, and what trains in fp32"""
    copies: float = 0.0
    """of fp32 weights in bf16 for the products"""
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    """what is kept for the backward pass"""
    logits: float = 0.0
    """and what the loss makes of them"""
    buffers: float = 0.0
    """temporaries of the moment, and what DeepSpeed reduces and gathers in"""
    workspace: float = WORKSPACE
    fragmentation: float = 0.0
    """what PyTorch's allocator holds besides, in gaps that nothing fits into"""
    context: float = CONTEXT

    @property
    def allocated(self) -> float:
        """In tensors, as torch.cuda.max_memory_allocated says."""
        return float(
            sum(getattr(self, f.name) for f in fields(self) if f.name not in ("fragmentation", "context"))
        )

    @property
    def reserved(self) -> float:
        """Held by PyTorch, as torch.cuda.max_memory_reserved says."""
        return self.allocated + self.fragmentation

    @property
    def total(self) -> float:
        """What has to be free on the card."""
        return self.reserved + self.context


@dataclass(frozen=True, kw_only=True, slots=True)
class _Model:
    """A model's numbers and bytes, as far as the moments need them."""

    hidden: int
    vocabulary: int
    layers: int
    tied: bool
    frozen: float
    """bytes of what does not train"""
    trains: int
    """numbers that train"""
    matrices: int
    """of these, in layers"""
    layer: int
    """of these, in the largest layer"""
    head: int
    """numbers of the head, where it trains"""
    embedding: int
    """of the embedding, where it trains and is not the head"""
    saved: float
    """bytes for a token, over all layers"""
    largest: float
    """of the layer that saves most"""
    temporary: float
    restored: float
    """bytes of the largest matrix that is taken out of 4 bits"""


def estimate_memory(geometry: Geometry, algo: Algo, work: Workload) -> Memory:
    """The memory of one process, from the native config.json of the model. Raises DataError where that
    tells no shapes.
    """
    model = _read(geometry, algo)
    fullest = max(_moments(model, algo, work), key=lambda memory: memory.allocated)
    return replace(fullest, fragmentation=_gaps(model, algo, work))


def count_trainable(geometry: Geometry, algo: Algo) -> tuple[int, int]:
    """How many numbers train, and how many of them are in layers. Raises DataError like `estimate`."""
    model = _read(geometry, algo)
    return model.trains, model.matrices


def _moments(model: _Model, algo: Algo, work: Workload) -> Iterator[Memory]:
    """The memory at each moment that may be the fullest."""
    adapter, a = algo.uses_adapter, activation_bytes(algo)
    tokens, targets = -(-work.tokens // work.sequence_parallel), -(-work.targets // work.sequence_parallel)
    row, logit = model.hidden * tokens, model.vocabulary * targets
    static, gradients = _static(model, algo, work)
    present = gradients if work.accumulated or work.engine == "deepspeed" else 0.0
    copies = 0.0 if adapter or a == 4 else 2.0 * (model.matrices + model.head)
    head = 0.0 if a == 4 else 2.0 * model.head  # the head's copy, which no recomputation drops
    backward = head if work.recompute else copies
    stream = a if adapter else 4  # bytes of the residual stream
    kept = stream * row * model.layers if work.recompute else model.saved * tokens
    one = model.largest * tokens if work.recompute else 0.0
    final = (4 if adapter else 8) * row + a * model.hidden * targets * (model.head > 0)
    # The loss: log-probabilities, and the gradients of these and of the logits, all in fp32; before, the
    # logits and the log-probabilities.
    yield replace(static, copies=copies, gradients=present, activations=kept + final, logits=8.0 * logit)
    yield replace(static, copies=backward, gradients=present, activations=kept + final, logits=12.0 * logit)
    # The head's gradient, in bf16 and then in fp32; where it is the embedding too, it waits until that has
    # its own.
    yield replace(
        static,
        copies=backward - head,
        gradients=present,
        activations=kept + final,
        buffers=static.buffers + (a + 4.0) * model.head,
    )
    waits = 4.0 * model.head if model.tied or not work.accumulated else 0.0
    yield replace(
        static,
        copies=backward - head,
        gradients=present + waits,
        activations=kept + final,
        buffers=static.buffers + (20 if adapter else 12) * row,
    )
    # The last layer, with all that the others keep; the first, with all gradients but its own.
    inside = static.buffers + model.temporary * tokens + model.restored
    layer = 2.0 * model.layer * (copies > 0)
    yield replace(
        static,
        copies=layer if work.recompute else copies - head,
        gradients=present + waits,
        activations=kept + one,
        buffers=inside,
    )
    most = gradients - (0 if present else 4.0 * (model.layer + model.embedding))
    waits = 4.0 * model.head if model.tied and work.accumulated else 0.0
    first = stream * row + model.largest * tokens
    yield replace(
        static,
        copies=layer,
        gradients=max(present, most) + waits,
        activations=first,
        buffers=inside + a * model.layer / 3,
    )
    # The embedding's gradient, which is added to the head's where both are one.
    waits += 4.0 * model.head if model.tied else 4.0 * model.embedding * bool(present)
    yield replace(static, gradients=gradients, buffers=static.buffers + waits)
    yield replace(
        static, gradients=gradients, buffers=static.buffers + algo.optim.kind.stepping * model.trains
    )


def _gaps(model: _Model, algo: Algo, work: Workload) -> float:
    """Bytes that PyTorch's allocator holds without use at the peak, with
    PYTORCH_ALLOC_CONF=expandable_segments:True; measured on an H100.

    The logits in bf16 leave a gap between what was there before and what the loss makes of them, into which
    nothing of the loss fits. Gradients in fp32 do not fit where copies in bf16 were, nor do the temporaries
    of dropout fit between the masks that are kept.
    """
    tokens, targets = -(-work.tokens // work.sequence_parallel), -(-work.targets // work.sequence_parallel)
    kept = 0.0 if work.recompute else model.saved * tokens
    found = 16 * MIB + 2.4 * targets * model.vocabulary + 0.01 * kept + 2 * model.restored
    if not algo.uses_adapter:
        found += (1.4 if work.recompute else 0.9) * model.trains
    if algo.dropout and kept:
        found += 40 * MIB + 0.03 * kept
    return found


def _static(model: _Model, algo: Algo, work: Workload) -> tuple[Memory, float]:
    """What is there all the time, and the bytes of all gradients. ZeRO (arXiv:1910.02054) shards
    optimizer, gradients and weights, one a stage.
    """
    ranks, deepspeed = work.processes, work.engine == "deepspeed"
    shards = [ranks if work.zero >= stage else 1 for stage in (1, 2, 3)]
    weights = (model.frozen + 4.0 * model.trains) / shards[2]
    kind = algo.optim.kind
    moments = (
        0.0
        if kind.unpaged
        else kind.on_gpu * model.matrices + kind.elsewhere * (model.trains - model.matrices)
    )
    gradients, buffers = 4.0 * model.trains / shards[1], 0.0
    if deepspeed and work.zero:
        moments += 4.0 * model.trains  # its own copy of the weights that it steps
        buffers = 4.0 * min(model.trains, max(BUCKET, model.hidden**2)) * (2 if work.zero >= 2 else 1)
    if work.zero == 3:
        # a layer that computes, and the next one
        buffers += 2 * (model.frozen + 4.0 * model.trains) / model.layers
    if work.offload != "none":
        moments, gradients = 0.0, gradients if work.zero < 2 else 0.0
    if work.offload == "all":
        weights = 0.0
    # each forward pass writes the rows into a copy of the embedding, and the backward pass has its gradient
    if work.new_tokens:
        buffers += 4.0 * activation_bytes(algo) * model.vocabulary * model.hidden
    return Memory(weights=weights, optimizer=moments / shards[0], buffers=buffers), gradients


def _read(geometry: Geometry, algo: Algo) -> _Model:
    tensors, adapter, a = tensor_shapes(geometry), algo.uses_adapter, activation_bytes(algo)
    count, (vocabulary, hidden) = geometry["num_hidden_layers"], tensors[EMBEDDING]
    pairs = adapted_layers(geometry, algo.targets) if adapter else {}
    held = linear_shapes(geometry) if algo.quant != "none" else {}
    layers = [(layer_tensors(tensors, at), layer_tensors(pairs, at)) for at in range(count)]
    begin = 0 if adapter or algo.last_layers is None else max(0, count - algo.last_layers)
    numbers = [_trains(layer, own, algo) if at >= begin else 0 for at, (layer, own) in enumerate(layers)]
    tied, outer = f"{HEAD}.weight" not in tensors, vocabulary * hidden
    high = not adapter and "head" not in algo.freeze
    low = not adapter and algo.last_layers is None and "embeddings" not in algo.freeze and (high or not tied)
    head = outer * (high and (low or not tied))
    embedding = outer * (low and not tied)
    on_head = algo.r * sum(pairs.get(HEAD, (0, 0)))
    every = sum(map(prod, tensors.values()))
    norm = hidden * (not adapter and "norms" not in algo.freeze)
    trains = sum(numbers) + head + embedding + on_head + norm
    packed = sum(prod(shape) for shape in held.values())
    frozen = (every - packed) * a + packed * HELD.get(algo.quant, a) if adapter else (every - trains) * a
    keep = [
        saved_bytes(geometry, layer, own, algo) if at >= begin else 0.0
        for at, (layer, own) in enumerate(layers)
    ]
    return _Model(
        hidden=hidden,
        vocabulary=vocabulary,
        layers=count - begin,
        tied=tied,
        frozen=frozen,
        trains=trains,
        matrices=sum(numbers),
        layer=max(numbers),
        head=head,
        embedding=embedding,
        saved=sum(keep),
        largest=max(keep),
        temporary=max(temporary_bytes(layer, algo, hidden) for layer, _ in layers),
        restored=float(max(map(prod, held.values()), default=0) * a),
    )


def _trains(layer: Mapping[str, Shape], pairs: Adapted, algo: Algo) -> int:
    """Numbers of a layer that train."""
    if algo.uses_adapter:
        return sum(algo.r * sum(shape) + (shape[0] if algo.dora else 0) for shape in pairs.values())
    return sum(
        prod(shape) for name, shape in layer.items() if "norm" not in name or "norms" not in algo.freeze
    )
