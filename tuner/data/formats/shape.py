"""How the rows of a source are read: what the config says, and what the whole source says
(`tuner.data.survey.scan`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


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
    """how many plain texts begin or end with a special token written
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


@dataclass(frozen=True, kw_only=True, slots=True)
class RowShape:
    """How the rows of a source are read."""

    format: str = "auto"
    """a key of VERSIONS, or `auto`, which looks at each row; `chosen` does too, and takes the better
    answer where a row compares some
    """
    columns: Mapping[str, str] = field(default_factory=dict)
    """a format's column → where it is found (formats/columns)"""
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """system, user, assistant or tool → more words for it"""
    paths: str = "best"
    """of trees: `best` or `all`"""
    split: str = "auto"
    """of rows that say in a column of which split they are: `auto` those for training, where there are
    others, `all`, or those of one
    """
    facts: SourceFacts = field(default_factory=SourceFacts)
    """what the whole source says of each row (tuner.data.survey.scan)"""

    @property
    def letters(self) -> bool:
        """Whether a file that holds no rows is to be read as a text, whatever it is called."""
        return self.format == "text" and not self.columns

    @property
    def whole(self) -> "RowShape":
        """The same for files of which all rows are wanted, whatever split they say they are of."""
        return replace(self, split="all", facts=replace(self.facts, split=None))
