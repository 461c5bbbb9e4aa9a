"""Only algorithms that give the same bits on each run: machine.deterministic.

What would differ otherwise on a GPU are sums in which threads take turns by chance: the gradient of rows that
are picked several times (embeddings, the positions of targets, new tokens' rows), split sums inside
matmuls and attention. PyTorch has another algorithm for each of these, which sorts first or takes more
memory; the flash kernels are told by tuner.kernels, as PyTorch's compiler is, which else picks some kernels
by the clock. FlexAttention and bitsandbytes' 4 and 8 bits take no turns. On the CPU sums are in a fixed order
already, for a fixed number of threads.

Bits are promised for one kind of machine, one set of versions, and the facts that a run notes
(attention, micro batch, processes).
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from tuner.errors import ConfigError, StageError

ENVIRONMENT: Mapping[str, str] = MappingProxyType({"CUBLAS_WORKSPACE_CONFIG": ":4096:8"})
"""what must be set before CUDA starts: each stream of cuBLAS has a workspace of its own, eight parts of 4
MiB
"""
LEGAL = (":4096:8", ":16:8")
"""of CUBLAS_WORKSPACE_CONFIG, with which cuBLAS gives the same bits"""


@contextmanager
def deterministic(wish: bool) -> Iterator[None]:
    """With `wish`, only such algorithms inside; the state of before comes back afterwards. Entered before
    this process first uses a GPU.

    Raises ConfigError where the environment contradicts it, and StageError when the model uses something that
    has no such algorithm.
    """
    if not wish:
        yield
        return
    import torch

    for name, value in ENVIRONMENT.items():
        if (found := os.environ.setdefault(name, value)) not in LEGAL:
            raise ConfigError(
                f"machine.deterministic=true needs {name}={value} (or {LEGAL[1]}) in the environment, and it "
                f"is {found!r}. Unset it: it is set by itself then."
            )
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
    )
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    memory.fill_uninitialized_memory = False  # nobody reads memory that nobody wrote
    try:
        yield
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        if (
            "deterministic implementation" not in said
            and "deterministic behavior was enabled" not in said.lower()
        ):
            raise
        raise StageError(
            "machine.deterministic=true, and this model computes something for which PyTorch has no "
            f"deterministic algorithm ({said}). Set machine.deterministic=false: results then differ in "
            "their last bits from run to run."
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before[1:]
        memory.fill_uninitialized_memory = filled
