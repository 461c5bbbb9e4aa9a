"""Where documents lie in a packed row, told to attention once a batch.

Every layer needs the borders as numbers on the host, which the batch has, and as a tensor on the device,
which is made once. They are found by the tensor of positions that transformers hands to every layer, in the
forward pass and when a layer is computed again in the backward pass: by the tensor itself, not by its values,
so nobody waits for the device. Positions that were not announced are read back once, and known from then on.
"""

from collections import deque
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

REMEMBERED = 4
"""rows that are known at a time; their positions stay in memory, so that no other tensor can lie where
they do
"""


class Documents:
    """The documents of a row of N tokens, and what is derived of them for one device."""

    def __init__(self, borders: Sequence[int], device: torch.device) -> None:
        """`borders` are where documents begin, and where the last one ends: [0, 3, 5, 6] for 3, 2 and 1
        tokens.
        """
        self.borders = tuple(borders)
        self.device = device
        self.masks: dict[int, Any] = {}
        """FlexAttention's block masks by window"""

    @property
    def tokens(self) -> int:
        """N"""
        return self.borders[-1]

    @cached_property
    def longest(self) -> int:
        """tokens of the longest document"""
        return max(end - begin for begin, end in pairwise(self.borders))

    @cached_property
    @torch.inference_mode(False)  # a row that is measured first may be trained on later
    def offsets(self) -> Tensor:
        """int32 [documents + 1] on the device: what flash kernels call cu_seqlens"""
        return to_device(torch.tensor(self.borders, dtype=torch.int32), self.device)


class Offsets(NamedTuple):
    """What flash kernels need of documents, where nothing else is known of them: in a compiled layer."""

    offsets: Tensor
    """int32 [documents + 1] on the device"""
    longest: int
    """tokens that a document has at most"""


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; the host does not wait for a GPU."""
    if device.type == "cuda" and tensor.device.type == "cpu" and tensor.numel():
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


_known: deque[tuple[Tensor, tuple[Any, ...], Documents]] = deque(maxlen=REMEMBERED)


def _mark(positions_1N: Tensor) -> tuple[Any, ...]:
    """What is equal for views of the same memory, and not for others while both exist, nor after the
    memory was written to.
    """
    written = None if positions_1N.is_inference() else positions_1N._version
    return positions_1N.data_ptr(), positions_1N.shape, positions_1N.stride(), positions_1N.device, written


def announce_documents(positions_1N: Tensor, borders: Sequence[int]) -> None:
    """Say where the documents are of the row that a forward pass with these very positions will see.
    Without borders nothing is said.
    """
    if borders:
        _known.append((positions_1N, _mark(positions_1N), Documents(borders, positions_1N.device)))


def recall_documents(positions_1N: Tensor) -> Documents | None:
    """What was announced for these positions, if anything was."""
    mark = _mark(positions_1N)
    return next((documents for _, seen, documents in reversed(_known) if seen == mark), None)


def single_document(tokens: int) -> Documents | None:
    """The row that was announced last, where it has so many tokens and is one document: for a family that
    tells its attention no positions.
    """
    found = _known[-1][2] if _known else None
    return found if found is not None and found.borders == (0, tokens) else None


def documents_of(positions_1N: Tensor) -> Documents:
    """What was announced for these positions; otherwise it is read off them, for which the host waits
    once.
    """
    if (found := recall_documents(positions_1N)) is None:
        announce_documents(positions_1N, document_borders(positions_1N))
        found = _known[-1][2]
    return found


def document_borders(positions_1N: Tensor) -> list[int]:
    """Where documents begin, and where the last one ends.

    Positions 0 1 2 0 1 0 are documents of 3, 2 and 1 tokens: [0, 3, 5, 6].
    """
    starts = (positions_1N[0] == 0).nonzero().flatten().tolist()
    if not starts or starts[0] != 0:
        raise ValueError(f"packed position ids begin at 0, these begin at {positions_1N[0, 0].item()}")
    return [*starts, positions_1N.shape[1]]
