"""Rows of few shapes: what compiled layers see is always as long, with as many offsets of documents, so that
nothing is compiled anew. What fills a row up are documents of their own, which no other attends to and of
which nothing is trained; offsets that are left over lie at the row's end, as documents without a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from tuner.data.packs import Pack, Packs
from tuner.train.batch import Batch, append_documents


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchShape:
    """What a row of as many packs is filled to."""

    tokens: int
    """of a pack, at most"""
    documents: int
    """of a pack, at most"""
    longest: int
    """tokens of the longest document"""
    micro_batch: int
    """packs of a row, at most"""

    @classmethod
    def of(cls, packs: Packs | Sequence[Pack], tokens: int, micro_batch: int) -> "BatchShape":
        """For all rows of some packs."""
        sizes = [(len(pack.lengths), int(pack.lengths.max())) for pack in packs]
        documents, longest = (max(column) for column in zip(*sizes, strict=True))
        return cls(tokens=tokens, documents=documents, longest=longest, micro_batch=micro_batch)

    def sizes(self) -> list[int]:
        """The numbers of packs that rows are filled to.

        >>> BatchShape(tokens=8, documents=3, longest=4, micro_batch=6).sizes()
        [1, 2, 4, 6]
        """
        return [*(1 << k for k in range((self.micro_batch - 1).bit_length())), self.micro_batch]

    def fill(self, batch: Batch) -> Batch:
        """The batch as a row of one of the sizes.

        With packs of 8 tokens, of 3 documents at most, the longest of which has 4, a row of 3 and 4 tokens
        gets a document of one token, and offsets for the five documents that there could be:

            positions  0 1 2 0 1 2 3 0
            offsets    0     3       7 8 8 8
        """
        packs = next(size for size in self.sizes() if size >= len(batch.packs))
        size, tokens = packs * self.tokens, batch.ids_1N.shape[1]
        lengths = [self.longest] * ((size - tokens) // self.longest)
        lengths += [rest] if (rest := (size - tokens) % self.longest) else []
        filled = append_documents(batch, lengths)
        most = packs * (self.documents + -(-self.tokens // self.longest))
        offsets_D = torch.full((most + 1,), size, dtype=torch.int32)
        offsets_D[: len(filled.borders)] = torch.tensor(filled.borders, dtype=torch.int32)
        return replace(filled, offsets_D=offsets_D, longest=self.longest)
