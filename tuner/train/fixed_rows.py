"""Rows of a few fixed shapes, through layers that are compiled for them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from tuner.data.packs import Packs
from tuner.errors import ConfigError
from tuner.estimate.recompute import Recompute
from tuner.kernels import attention
from tuner.kernels.compiled_layers import CompiledLayers, uncompiled
from tuner.train.batch_shape import BatchShape


class FixedRows:
    """What a run's rows are filled to and go through, where its layers are compiled or its passes are
    captured.
    """

    def __init__(
        self,
        layers: CompiledLayers,
        packs: Packs,
        tokens: int,
        *,
        backend: str,
        usual: str,
        wish: str,
        compiled: bool,
        seconds: float,
        say: Callable[[str], None],
    ) -> None:
        """
        tokens    of a pack, at most
        backend   of attention, that a compiler can look through; `usual`: of rows of any shape
        wish      machine.kernels
        compiled  whether the layers are to be compiled
        seconds   of the GPU for a step, when they are not
        """
        self.layers, self.backend, self.compiled, self.seconds = layers, backend, compiled, seconds
        self._usual, self._wish, self._say = usual, wish, say
        self.tokens = tokens
        self._shape = BatchShape.of(packs, tokens, 1)

    def shape(self, micro_batch: int, *, targets: bool = False) -> BatchShape:
        """What rows of up to `micro_batch` packs are filled to; `targets`: these too."""
        return replace(self._shape, micro_batch=micro_batch, targets=targets)

    def run(self, do: Callable[[], object], recompute: Recompute) -> bool:
        """Do what calls the layers, compiled. False, once it is said why, where they can't be: then they are
        as they were, and so is attention. Raises ConfigError where machine.kernels=compiled.
        """
        attention.use_backend(self.backend)
        why = self.layers.run(do, norms=recompute.norms, blocks=recompute.blocks)
        if why is not None:
            self.compiled = False
            attention.use_backend(self._usual)
            without_compiling(self._wish, why, self._say)
        return why is None

    @contextmanager
    def aside(self) -> Iterator[None]:
        """In here layers and attention are as they were, for rows of any shape."""
        with attention.using_backend(self._usual), uncompiled():
            yield


def without_compiling(wish: str, why: str | None, say: Callable[[str], None]) -> None:
    """Say why layers are not compiled. Raises ConfigError where machine.kernels=compiled."""
    if wish == "compiled":
        raise ConfigError(
            f"machine.kernels=compiled can't be had here: {why}. Leave machine.kernels=auto, which then "
            "trains without it."
        )
    say(f"layers are not compiled: {why}")
