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
LAYERS = frozenset(
    (
        "LlamaDecoderLayer MistralDecoderLayer Qwen2DecoderLayer Qwen3DecoderLayer GraniteDecoderLayer "
        "Phi3DecoderLayer SmolLM3DecoderLayer"
    ).split()
)
"""the classes of transformers whose compiled layers are tested"""
SECONDS = 20.0
"""of a first step that compiles, on an H200"""
LIMIT = 4 << 30
"""bytes of compiled code that are kept"""
GAIN = 0.25
"""the share of a step's time that compiled layers save there"""


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that may be compiled."""
    return [module for module in model.modules() if type(module).__name__ in LAYERS]


def pays(steps: int, seconds: float) -> bool:
    """Whether `steps` steps that take `seconds` each save more than compiling costs."""
    return steps * seconds * GAIN > SECONDS


def compile_layers(layers: list[nn.Module], run: Callable[[], object]) -> str | None:
    """Compile the layers as `run` calls them. Why they could not be compiled, if so: then they are as they
    were.
    """
    cache = cache_directory()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))
    for layer in layers:
        layer.compile(dynamic=False, fullgraph=True)

    def keeping_less() -> None:
        with partitioner.patch(REMAKES):
            run()

    if why := why_not(keeping_less):
        release(layers)
    return why


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


def release(layers: list[nn.Module]) -> None:
    """Let layers be as they were."""
    for layer in layers:
        layer._compiled_call_impl = None


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
