"""What is looked for in the rows of a source, all of them together."""

from abc import ABC, abstractmethod
from typing import Any

from tuner.data.files.chunk import Chunk
from tuner.data.formats.shape import SourceFacts


class Observer(ABC):
    """Sees the rows of a source, and tells in the end what they say together."""

    @abstractmethod
    def keys(self) -> frozenset[str]:
        """One of them is a column, or a key inside of one, of each table that could tell more."""

    @abstractmethod
    def wants(self, content: bytes) -> bool:
        """Whether JSON rows of these bytes could tell more. It holds for the whole where it holds for a
        part.
        """

    @abstractmethod
    def see(self, row: Any) -> None:
        """A row, with its columns in their places; it may be anything."""

    @abstractmethod
    def tell(self, facts: SourceFacts) -> SourceFacts:
        """The facts with what was found, once all rows were seen."""

    def passed(self, chunk: Chunk) -> None:  # noqa: B027  most have nothing to count in it
        """A chunk that it does not want."""

    def counts_all(self) -> bool:
        """Whether what was found depends on how many rows there are, so that it is to be told (`passed`)
        also of those files that nothing was looked for in.
        """
        return False

    def then(self) -> "Observer | None":
        """What is to be looked for in a second pass, once all rows were seen."""
        return None
