"""Rows of few shapes: what compiled layers see is always as long, with as many offsets of documents, so that
nothing is compiled anew. What fills a row up are documents of their own, which no other attends to and of
which nothing is trained; offsets that are left over lie at the row's end, as documents without a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from tuner.data.packs import Pack, Packs
from tuner.train.batch import Batch


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
        return cls(
            tokens=tokens,
            documents=max(len(pack.lengths) for pack in packs),
            longest=max(int(pack.lengths.max()) for pack in packs),
            micro_batch=micro_batch,
        )

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
        borders = (
            [*batch.borders, *accumulate(lengths[1:], initial=tokens + lengths[0])]
            if lengths
            else [*batch.borders]
        )
        most = packs * (self.documents + -(-self.tokens // self.longest))
        offsets_D = torch.full((most + 1,), size, dtype=torch.int32)
        offsets_D[: len(borders)] = torch.tensor(borders, dtype=torch.int32)
        filling = (
            torch.cat([torch.arange(n) for n in lengths]) if lengths else torch.zeros(0, dtype=torch.int64)
        )
        return replace(
            batch,
            ids_1N=torch.nn.functional.pad(batch.ids_1N, (0, size - tokens)),
            positions_1N=torch.cat([batch.positions_1N, filling[None]], dim=1),
            borders=tuple(borders),
            offsets_D=offsets_D,
            longest=self.longest,
        )
