"""Decoder layers compiled by PyTorch, which fuses norms, rotary positions and gated activations into a few
kernels. All layers of a model share one graph for each shape of a row, so rows are filled to few shapes
(tuner.train.batch_shape), and documents go through the layers as a tensor of offsets, of any length.

Only layers whose graph was compared with their own arithmetic are compiled, by the names of their classes.
What can't be compiled stays as it is, and why is said.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch._functorch.config as partitioner
from torch import nn

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
LIMIT = 4 << 30
"""bytes of compiled code that are kept"""


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that may be compiled."""
    return [module for module in model.modules() if type(module).__name__ in LAYERS.values()]


class CompiledLayers:
    """Layers of a model that compute compiled, once `run` has been called."""

    def __init__(self, layers: list[nn.Module]) -> None:
        self.layers = layers
        self._norms: bool | None = None

    def run(self, do: Callable[[], object], *, norms: bool) -> str | None:
        """Do what calls the layers. Why they can't be compiled, if so: then they are as they were.

        norms  whether the backward pass makes norms and products again (REMAKES)
        """
        if self._norms != norms:
            self._compile(again=self._norms is not None)
            self._norms = norms
        with partitioner.patch(REMAKES if norms else {}):
            why = why_not(do)
        if why:
            self.release()
        return why

    def _compile(self, *, again: bool) -> None:
        cache = cache_directory()
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
        os.environ.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))
        if again:
            torch._dynamo.reset()  # what was compiled otherwise would be found
        for layer in self.layers:
            layer.compile(dynamic=False, fullgraph=True)

    def release(self) -> None:
        """Let the layers be as they were."""
        self._norms = None
        for layer in self.layers:
            layer._compiled_call_impl = None


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
