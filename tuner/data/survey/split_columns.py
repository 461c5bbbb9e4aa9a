"""Rows that say of which split they are: `{"split": "train", …}` beside `{"split": "test", …}` in one source.

Where training rows stand beside others, only they are read, as of files whose names say so
(`tuner.data.files.splits`). A column that knows one split alone, or says something else, decides nothing.
`data.split=all` reads all rows, `data.split=validation` those that say so.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tuner.data.files.chunk import key_pattern
from tuner.data.files.splits import names_split, split_of
from tuner.data.formats.shape import SourceFacts
from tuner.data.survey.observer import Observer
from tuner.errors import DataError

COLUMNS = ("split", "Split", "SPLIT", "data_split", "dataset_split", "partition", "subset")
"""what such a column is called; the first that tells splits apart does"""
MOST = 50
"""values of a column that are kept: with more of them it holds no splits"""


class SplitColumns(Observer):
    """What the columns of splits hold in the whole source."""

    def __init__(self, wanted: str) -> None:
        self._wanted = wanted
        self._values: dict[str, set[str]] = {}
        self._names = list(COLUMNS)
        """those that were not found to hold more"""
        self._keyed = key_pattern(self._names)

    def keys(self) -> frozenset[str]:
        """The names of such columns."""
        return frozenset(self._names)

    def wants(self, content: bytes) -> bool:
        """Where such a column is."""
        return bool(self._names) and self._keyed.search(content) is not None

    def see(self, row: Any) -> None:
        """A row."""
        for name in tuple(self._names) if isinstance(row, dict) else ():
            if name in row and isinstance(value := row[name], str):
                known = self._values.setdefault(name, set())
                known.add(value)
                if len(known) == MOST:
                    self._names.remove(name)
                    self._keyed = key_pattern(self._names)

    def tell(self, facts: SourceFacts) -> SourceFacts:
        """The column, where it tells what is wanted from the rest. Raises DataError where no row is what
        was asked for.
        """
        if self._wanted == "auto":
            return replace(
                facts, split=next((name for name in COLUMNS if _tells(self._values.get(name, set()))), None)
            )
        found = next(
            (
                name
                for name in COLUMNS
                if any(names_split(value, self._wanted) for value in self._values.get(name, ()))
            ),
            None,
        )
        if found is None:
            raise DataError(
                f"data.split={self._wanted}: no row says that it is of such a split. {_there(self._values)}"
            )
        return replace(facts, split=found)


def _tells(values: set[str]) -> bool:
    """Whether training rows stand beside those that are for measuring."""
    splits = set(map(split_of, values))
    return "train" in splits and not splits.isdisjoint(("test", "validation"))


def _there(values: Mapping[str, set[str]]) -> str:
    if not values:
        return f"No row has a column {', '.join(name for name in COLUMNS if name.islower())}."
    name, held = next(iter(values.items()))
    return f"The column {name} holds {', '.join(sorted(held)[:8])}."
