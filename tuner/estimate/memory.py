"""How much memory of a GPU training takes, before it starts. Standard library only: a plan asks.

What is counted are the bytes that PyTorch, transformers and PEFT allocate for a step, at each moment at which
it may hold most: the fullest is the estimate. `fragmentation` and `workspace` were measured on a GPU, the
rest follows from shapes. Attention is taken to be a flash kernel.

Rougher, since nothing was measured there: experts, int8, latent attention, DoRA, Adafactor on all weights,
and DeepSpeed's buffers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Literal

from tuner.config.schema import Algo
from tuner.estimate.activations import activation_bytes
from tuner.estimate.recompute import NOTHING, Recompute
from tuner.estimate.trained_model import TrainedModel, read_model
from tuner.models.geometry import Geometry

MIB = 1 << 20
BUCKET = 1 << 25
"""numbers that DeepSpeed reduces at once"""
CHUNK = 256 * MIB
"""of logits that a fused head holds at a time, four of them where it trains
(tuner.kernels.fused.linear_cross_entropy)
"""
WORKSPACE = 70 * MIB
"""of cuBLAS (measured on an H100)"""
CAPTURED = 384 * MIB
"""that graphs hold for themselves (measured on an H200)"""
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
    recompute: Recompute = NOTHING
    compiled: bool = False
    """whether layers are compiled (machine.kernels)"""
    captured: bool = False
    """whether passes over rows are CUDA graphs"""
    new_tokens: int = 0
    """rows of the embedding that train beside adapters"""
    engine: Literal["torch", "deepspeed"] = "torch"
    zero: int = 0
    """the ZeRO stage"""
    processes: int = 1
    offload: str = "none"
    """machine.offload"""
    sequence_parallel: int = 1
    fused_layers: bool = False
    """whether linear layers with adapters are fused (machine.kernels)"""
    fused_head: bool = False
    """whether the head and the loss are: logits are then held a part at a time"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes in the memory of one GPU when it is fullest."""

    weights: float
    """as they are kept: the frozen base, and what trains in fp32"""
    copies: float = 0.0
    """of fp32 weights in bf16 for the matmuls"""
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
    moment: str = ""
    """of a step, when it is fullest"""

    @property
    def allocated(self) -> float:
        """In tensors, as torch.cuda.max_memory_allocated says."""
        beside = ("fragmentation", "context", "moment")
        return float(sum(getattr(self, f.name) for f in fields(self) if f.name not in beside))

    @property
    def reserved(self) -> float:
        """Held by PyTorch, as torch.cuda.max_memory_reserved says."""
        return self.allocated + self.fragmentation

    @property
    def total(self) -> float:
        """What has to be free on the card."""
        return self.reserved + self.context


def estimate_memory(geometry: Geometry, algo: Algo, work: Workload) -> Memory:
    """The memory of one process, from the native config.json of the model. Raises DataError where that
    tells no shapes.
    """
    return MemoryEstimator(geometry, algo).at(work)


class MemoryEstimator:
    """The memory of a model that trains as `algo` says, for several workloads."""

    def __init__(self, geometry: Geometry, algo: Algo) -> None:
        self.geometry, self.algo = geometry, algo
        self._models: dict[tuple[bool, bool, bool], TrainedModel] = {}

    def at(self, work: Workload) -> Memory:
        """What one process takes. Raises DataError where the model's config.json tells no shapes."""
        layers = work.fused_layers, work.compiled, work.recompute.norms
        if layers not in self._models:
            fused, compiled, norms = layers
            self._models[layers] = read_model(
                self.geometry, self.algo, fused=fused, compiled=compiled, norms=norms
            )
        model = self._models[layers]
        fullest = max(_moments(model, self.algo, work), key=lambda memory: memory.allocated)
        return replace(fullest, fragmentation=_gaps(model, self.algo, work))


def _moments(model: TrainedModel, algo: Algo, work: Workload) -> Iterator[Memory]:
    """The memory at each moment that may be the fullest, in the order of a step."""
    adapter, a = algo.uses_adapter, activation_bytes(algo)
    tokens, targets = -(-work.tokens // work.sequence_parallel), -(-work.targets // work.sequence_parallel)
    row, logit = model.hidden * tokens, model.vocabulary * targets
    static, gradients = _static(model, algo, work)
    present = gradients if work.accumulated or work.engine == "deepspeed" else 0.0
    cast = 0.0 if adapter or a == 4 else 2.0
    # where norms are made again, so are the casts of weights
    copies = cast * (model.matrices * (not work.recompute.norms) + model.head)
    head = cast * model.head  # the head's copy, which no recomputation drops
    again = min(1.0, work.recompute.blocks / model.layers)  # of the layers; the first, which come last
    backward = head + (copies - head) * (1 - again)
    stream = a if adapter else 4  # bytes of the residual stream
    kept = again * stream * row * model.layers + (1 - again) * model.saved * tokens
    one = model.largest * tokens if again == 1 else 0.0
    final = (4 if adapter else 8) * row + a * model.hidden * targets * (model.head > 0)
    loss = replace(static, copies=backward, gradients=present, activations=kept + final)
    # The loss: the logits and their log-probabilities; then log-probabilities, and the gradients of these and
    # of the logits, all in fp32.
    if work.fused_head:  # a part of them in bf16, and the gradients of the states and of the head
        part = CHUNK * (4 if model.head else 1) + 2.0 * model.hidden * targets + (4.0 + 2.0) * model.head
        yield replace(loss, moment="the loss", copies=copies, logits=part)
    else:
        yield replace(loss, moment="the loss's forward pass", copies=copies, logits=8.0 * logit)
        yield replace(loss, moment="the loss's backward pass", logits=12.0 * logit)
    # The head's gradient, in bf16 and then in fp32; where it is the embedding too, it waits until that has
    # its own.
    behind = replace(loss, copies=backward - head)
    yield replace(behind, moment="the head's backward pass", buffers=static.buffers + (a + 4.0) * model.head)
    waits = 4.0 * model.head if model.tied or not work.accumulated else 0.0
    yield replace(
        behind,
        moment="the last norm's backward pass",
        gradients=present + waits,
        buffers=static.buffers + (20 if adapter else 12) * row,
    )
    # The last layer, with all that the others keep; the first, with all gradients but its own.
    inside = static.buffers + model.temporary * tokens + model.restored
    layer = cast * model.layer
    yield replace(
        static,
        moment="the last layer's backward pass",
        copies=max(layer, backward - head),
        gradients=present + waits,
        activations=kept + one,
        buffers=inside,
    )
    most = gradients - (0 if present else 4.0 * (model.layer + model.embedding))
    waits = 4.0 * model.head if model.tied and work.accumulated else 0.0
    yield replace(
        static,
        moment="the first layer's backward pass",
        copies=layer,
        gradients=max(present, most) + waits,
        activations=stream * row + model.largest * tokens,
        buffers=inside + a * model.layer / 3,
    )
    # The embedding's gradient is added to the head's where both are one.
    waits += 4.0 * model.head if model.tied else 4.0 * model.embedding * bool(present)
    yield replace(
        static,
        moment="the embedding's backward pass",
        gradients=gradients,
        buffers=static.buffers + waits,
    )
    yield replace(
        static,
        moment="the optimizer step",
        gradients=gradients,
        buffers=static.buffers + algo.optim.kind.stepping * model.trains,
    )


def _gaps(model: TrainedModel, algo: Algo, work: Workload) -> float:
    """Bytes that PyTorch's allocator holds without use at the peak, with
    PYTORCH_ALLOC_CONF=expandable_segments:True; measured on an H100, of compiled layers on an H200.

    The logits in bf16 leave a gap between what was there before and what the loss makes of them, into which
    nothing of the loss fits. Gradients in fp32 do not fit where copies in bf16 were, nor do the temporaries
    of dropout fit between the masks that are kept.
    """
    tokens, targets = -(-work.tokens // work.sequence_parallel), -(-work.targets // work.sequence_parallel)
    again = min(1.0, work.recompute.blocks / model.layers)
    kept = (1 - again) * model.saved * tokens
    logits = 0.0 if work.fused_head else 2.4 * targets * model.vocabulary
    found = 16 * MIB + logits + 0.01 * kept + 2 * model.restored
    if not algo.uses_adapter and not work.compiled:
        found += (0.9 + 0.5 * again) * model.trains
    if work.compiled and again == 1:
        found += 0.3 * model.largest * tokens
    if work.captured:
        found += CAPTURED
    if algo.dropout and kept:
        found += 40 * MIB + 0.03 * kept
    return found


def _static(model: TrainedModel, algo: Algo, work: Workload) -> tuple[Memory, float]:
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
