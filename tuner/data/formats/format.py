"""A row format: what it is called, what it reads of a row, and how. `tuner.data.formats.table` lists
them all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tuner.data.conversation import Sample
from tuner.data.formats.checks import RoleWords
from tuner.data.formats.turns import columns_beside
from tuner.data.formats.unread_keys import Unread, may_matter, unread_in_turns

TURNS = ("system", "tools", "functions")
"""columns beside turns that `data.columns` can say the place of"""

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is said of a source's rows, for the format that reads them."""

    words: RoleWords
    """the format's own words for roles, and those of data.roles"""
    paths: str = "best"
    """data.paths: which conversations of a tree"""
    verdict: str | None = None
    """the column that says of each answer whether it is good, where all rows together show one"""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A row format. All functions take a row with its columns in their places; none of them changes it."""

    name: str
    """what data.format calls it"""
    version: int | None
    """bumped when it would read the same row differently; None where data.format does not name it"""
    columns: tuple[str, ...]
    """what it reads of a row, and `data.columns` can say the place of"""
    keys: tuple[str, ...] = ()
    """the columns that it can't do without"""
    fits: Callable[[Row], bool] | None = None
    """whether a row is of it; else all of `keys` say so. One without either is not told by columns."""
    is_turn: Callable[[Mapping[str, Any]], bool] | None = None
    """whether an entry of a list of turns is one of its own, for a format whose only key is such a list"""
    roles: RoleWords = field(default_factory=dict)
    """who speaks, by its words for it"""
    read: Callable[[Any, Options], tuple[Sample, ...]]
    """a row → its samples, none where there is nothing to train on; raises RowError for what it can't take,
    and never leaves out a part of a row that says something
    """
    own: Callable[[Row, Options], frozenset[str]] | None = None
    """the columns that it reads of this row, where they depend on it; else all of `columns` but TURNS"""
    beside: Callable[[Row, Options], frozenset[str]] = lambda row, _: columns_beside(row)
    """the columns of this row that it reads beside its own: a system prompt, tools, flags"""
    inside: Callable[[Any, Options], Unread] | None = None
    """what it does not read inside of its own columns; else they are taken for turns of OpenAI or ShareGPT"""

    def own_columns(self, row: Row, options: Options) -> frozenset[str]:
        """The columns that it reads of this row, all of each."""
        return self._columns if self.own is None else self.own(row, options)

    def unread(self, row: Any, options: Options) -> Unread:
        """What it does not read of a row that it read, a bare list of turns among them: the way to it, and
        the value.
        """
        if not isinstance(row, list) and not row.keys() <= (own := self.own_columns(row, options)):
            beside = self.beside(row, options)
            for key, value in row.items():
                if key not in own and key not in beside and may_matter(key, value):
                    yield (key,), value
        yield from self.unread_inside(row, options)

    def unread_inside(self, row: Any, options: Options) -> Unread:
        """The same of its own columns alone."""
        return self._unread_turns(row, options) if self.inside is None else self.inside(row, options)

    def _unread_turns(self, row: Row, options: Options) -> Unread:
        own = self.own_columns(row, options)
        for column in self.columns:
            if column in own and isinstance(value := row.get(column), list | dict):
                yield from unread_in_turns(value, column, options.words)

    @cached_property
    def _columns(self) -> frozenset[str]:
        return frozenset(self.columns).difference(TURNS)
