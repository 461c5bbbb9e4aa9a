"""What only a whole source can tell of its rows; `tuner.data.survey.scan` finds it before they are read."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFacts:
    """Facts of a source. Without any, each row is taken for itself."""

    verdict: str | None = None
    """the column that says of each answer whether it is good: of two verdicts, both are there"""
    filler: frozenset[tuple[str, str]] = frozenset()
    """(tool, argument) that are null in all calls of this tool, and have a value in calls of others"""
    templated: tuple[int, int] = (0, 0)
    """of so many plain texts as the second, how many begin as a chat template does"""
    opened: tuple[int, int] = (0, 0)
    """the same of the questions of pairs, up to where the assistant goes on"""
    spelled: tuple[int, str] = (0, "")
    """how many plain texts that are trained letter by letter begin or end with a special token written
    out, and one such token
    """
    split: str | None = None
    """the column that says of which split a row is, where rows that are wanted stand beside others"""

    @property
    def chats(self) -> bool:
        """Whether texts that begin as a chat template does are read as conversations: most of them do."""
        marked, texts = self.templated
        return 2 * marked > texts

    @property
    def continues(self) -> bool:
        """The same of questions."""
        marked, pairs = self.opened
        return 2 * marked > pairs
