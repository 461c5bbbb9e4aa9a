"""Rows of few shapes: what compiled layers see is always as long, with as many offsets of documents, so that
nothing is compiled anew. What fills a row up are documents of their own, which no other attends to and of
which nothing is trained; offsets that are left over lie at the row's end, as documents without a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import pad

from tuner.data.packs import Pack, Packs
from tuner.estimate.recompute import row_sizes
from tuner.train.batch import Batch, append_documents

IGNORED = -100
"""a target that the loss passes over, as PyTorch's cross-entropy does"""
LEAST = 16
"""offsets of a row"""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchShape:
    """What a row of as many packs is filled to."""

    tokens: int
    """of a pack, at most"""
    longest: int
    """tokens of the longest document"""
    documents: int
    """of a pack, at most"""
    micro_batch: int
    """packs of a row, at most"""
    targets: bool = False
    """whether targets are filled up too, to a whole number of quarters of the row, for CUDA graphs"""

    @classmethod
    def of(
        cls, packs: Packs | Sequence[Pack], tokens: int, micro_batch: int, *, targets: bool = False
    ) -> "BatchShape":
        """For all rows of some packs."""
        return cls(
            tokens=tokens,
            longest=max(int(pack.lengths.max()) for pack in packs),
            documents=max(len(pack.lengths) for pack in packs),
            micro_batch=micro_batch,
            targets=targets,
        )

    def fill(self, batch: Batch) -> Batch:
        """The batch as a row of one of the sizes (tuner.estimate.recompute.row_sizes).

        With packs of 8 tokens, whose longest document has 4, a row of 3 and 4 tokens gets a document of one
        token, and as many offsets as any row of this size needs:

            positions  0 1 2 0 1 2 3 0
            offsets    0     3       7 8 8 8 8 8 8 …     (a power of two, LEAST or more)

        Targets that fill up are IGNORED at the first position.
        """
        packs = next(size for size in row_sizes(self.micro_batch) if size >= len(batch.packs))
        size, tokens = packs * self.tokens, batch.ids_1N.shape[1]
        lengths = [self.longest] * ((size - tokens) // self.longest)
        lengths += [rest] if (rest := (size - tokens) % self.longest) else []
        filled = append_documents(batch, lengths)
        most = packs * self.documents + size // self.longest + 2  # its own, those that fill it up, both ends
        most = max(LEAST, 1 << (most - 1).bit_length())
        offsets_D = torch.full((most,), size, dtype=torch.int32)
        offsets_D[: len(filled.borders)] = torch.tensor(filled.borders, dtype=torch.int32)
        filled = replace(filled, offsets_D=offsets_D, longest=self.longest)
        if not self.targets:
            return filled
        quarter, there = -(-size // 4), len(filled.targets_M)
        missing = max(1, -(-there // quarter)) * quarter - there
        return replace(
            filled,
            keep_M=pad(filled.keep_M, (0, missing)),
            targets_M=pad(filled.targets_M, (0, missing), value=IGNORED),
        )
