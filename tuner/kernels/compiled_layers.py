"""Decoder layers compiled by PyTorch, which fuses norms, rotary positions and gated activations into a few
kernels. All layers of a model share one graph for each shape of a row, so rows are filled to few shapes
(tuner.train.batch_shape), and documents go through the layers as a tensor of offsets, of any length.

Only layers whose graph was compared with their own arithmetic are compiled, by the names of their classes.
What can't be compiled stays as it is, and why is said.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config as partitioner
from torch import nn
from torch._inductor.compile_fx import compile_fx

from tuner.errors import in_one_line
from tuner.files import COMPILED, bytes_under, user_cache
from tuner.kernels.compile_policy import LAYERS

REMAKES = {
    "ban_recompute_materialized_backward": False,
    "ban_recompute_used_far_apart": False,
    "ban_recompute_long_fusible_chains": False,
}
"""what the backward pass may compute again: all that is no matmul and no attention, also where a matmul reads
it. So a layer keeps its input, queries, keys, values, what attention gives, the residual after it, gate and
up; norms, rotary positions and products are made again. Beside keeping what is fastest that costs 1.4 % of a
step's time and saves 28 % of its memory (1.8B, an H200)
"""
ONLY_INPUT = {"activation_memory_budget": 0.0}
"""a layer keeps its input alone. Its backward pass makes again what it reads, which is less than a forward
pass: the MLP's last matmul is not in it
"""
LIMIT = 4 << 30
"""bytes of compiled code that are kept"""


def _inductor(settings: dict[str, Any]) -> Callable[..., Any]:
    """PyTorch's compiler, with settings of what it keeps for the backward pass. Where only algorithms are
    allowed that give the same bits each time, nothing that rounds otherwise is chosen by the clock.
    """

    def compile_graph(graph: Any, inputs: Any) -> Any:
        same_bits = {"deterministic": torch.are_deterministic_algorithms_enabled()}
        with partitioner.patch(settings):
            return compile_fx(graph, inputs, config_patches=same_bits)

    return compile_graph


KEEP_ALL, KEEP_NO_NORMS, KEEP_INPUT = _inductor({}), _inductor(REMAKES), _inductor(ONLY_INPUT)
"""what compiles a layer, by what it keeps"""


def first_that_trains(layers: Sequence[nn.Module]) -> int:
    """The number of the first layer that keeps anything for the backward pass."""
    trains = (at for at, layer in enumerate(layers) if any(p.requires_grad for p in layer.parameters()))
    return next(trains, 0)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that may be compiled."""
    return [module for module in model.modules() if type(module).__name__ in LAYERS.values()]


class CompiledLayers:
    """Layers of a model that compute compiled, once `run` has been called."""

    def __init__(self, layers: list[nn.Module]) -> None:
        self.layers = layers
        self._compilers: list[Callable[..., Any]] = []

    def run(self, do: Callable[[], object], *, norms: bool, blocks: int = 0) -> str | None:
        """Do what calls the layers. Why they can't be compiled, if so: then they are as they were.

        norms   whether the backward pass makes norms and products again (REMAKES)
        blocks  the number of layers, from the first that trains, that keep only their input: the compiler's
                doing, so PyTorch's checkpoints around them are off from now on
        """
        usual, first = KEEP_NO_NORMS if norms else KEEP_ALL, first_that_trains(self.layers)
        wished = [KEEP_INPUT if first <= at < first + blocks else usual for at in range(len(self.layers))]
        if self._compilers != wished:
            self._compile(wished)
        for layer in self.layers:
            layer.gradient_checkpointing = False  # type: ignore[assignment]
        why = why_not(do)
        if why:
            self.release()
        return why

    def _compile(self, compilers: list[Callable[..., Any]]) -> None:
        cache = cache_directory()
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
        os.environ.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))
        if self._compilers:
            torch._dynamo.reset()  # the graphs that came before are not used again
        self._compilers = compilers
        for layer, compiler in zip(self.layers, compilers, strict=True):
            layer.compile(backend=compiler, dynamic=False, fullgraph=True)

    def release(self) -> None:
        """Let the layers be as they were."""
        for layer, compiler in zip(self.layers, self._compilers, strict=True):
            layer._compiled_call_impl = None
            layer.gradient_checkpointing = compiler is KEEP_INPUT  # type: ignore[assignment]
        self._compilers = []


def why_not(run: Callable[[], object]) -> str | None:
    """Do what makes training faster; why it can't be done, if so. It may fail in many ways, and training does
    not need it.
    """
    try:
        run()
    except torch.OutOfMemoryError:
        return "the GPU's memory is full with them"
    except Exception as error:
        return in_one_line(error)
    return None


@contextmanager
def uncompiled() -> Iterator[None]:
    """In here compiled layers compute as they were: rows of any shape, without compiling anew."""
    with torch.compiler.set_stance("force_eager"):
        yield


def cache_directory() -> Path:
    """Where compiled code is kept from run to run: each user's own, which nobody else can read or write.
    Emptied where it has grown beyond LIMIT.
    """
    directory = user_cache(COMPILED)
    if bytes_under(directory) > LIMIT:
        shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    directory.chmod(0o700)
    return directory
