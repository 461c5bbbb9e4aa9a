"""Forward and backward pass of small rows as one CUDA graph: the GPU is handed thousands of kernels at once,
where the host would need longer to launch them than they run.

A graph computes on the same memory each time, so a batch is copied into the tensors that it was captured
with, and gradients are added to tensors that stay. One graph is captured for each shape of a batch; all share
the memory of their temporaries, since one runs at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tuner.train.batch import Batch

TENSORS = ("ids_1N", "positions_1N", "keep_M", "targets_M", "offsets_D")
"""of a batch, which a graph reads"""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    batch: Batch
    """what it reads"""
    loss: Tensor
    """what it leaves"""


class CapturedGradients:
    """Adds the gradient of a batch's loss, divided by `targets`, to the parameters'; by a graph, which is
    captured the first time that a batch has its shape.
    """

    def __init__(
        self, loss: Callable[[Batch], Tensor], parameters: list[torch.nn.Parameter], device: torch.device
    ) -> None:
        """
        loss  of a batch on the device, summed over its targets: an fp32 scalar
        """
        self._loss, self._device = loss, device
        self._graphs: dict[tuple[int | None, ...], _Captured] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._targets = torch.ones((), dtype=torch.float32, device=device)
        self._gradients = [torch.zeros_like(p) for p in parameters]
        for p, gradient in zip(parameters, self._gradients, strict=True):
            p.grad = gradient

    def forget(self) -> None:
        """Let all gradients be 0, in tensors that stay."""
        torch._foreach_zero_(self._gradients)

    def warm_up(self, batches: Sequence[Batch]) -> None:
        """For each batch compute once without a graph, on a stream of its own, so that all kernels are built
        and cuBLAS has its memory; then capture. Gradients are 0 afterwards.
        """
        for batch in batches:
            with _side_stream(self._device):
                self._add(batch.to(self._device))
            self.forget()
            self._capture(batch)

    def add(self, batch: Batch, targets: int) -> Tensor:
        """The summed loss of a batch that lies on the CPU."""
        self._targets.fill_(max(1, targets))
        captured = self._graphs.get(_shape(batch)) or self._capture(batch)
        for name in TENSORS:
            getattr(captured.batch, name).copy_(getattr(batch, name).pin_memory(), non_blocking=True)
        captured.graph.replay()
        return captured.loss.clone()

    def _capture(self, batch: Batch) -> _Captured:
        # the graph knows neither packs nor borders: what it may read are its tensors
        fixed = replace(batch.to(self._device), borders=(), packs=(), roles=())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            loss = self._add(fixed)
        found = self._graphs[_shape(batch)] = _Captured(graph=graph, batch=fixed, loss=loss)
        return found

    def _add(self, batch: Batch) -> Tensor:
        loss = self._loss(batch)
        (loss / self._targets).backward()  # type: ignore[no-untyped-call]
        return loss.detach()


def _shape(batch: Batch) -> tuple[int | None, ...]:
    return tuple(getattr(batch, name).shape[-1] for name in TENSORS)


@contextmanager
def _side_stream(device: torch.device) -> Iterator[None]:
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    current = torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)
