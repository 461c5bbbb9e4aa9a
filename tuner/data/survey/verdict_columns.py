"""Columns that say of each answer whether it is good, as all rows of a source show them: an observer of
`tuner.data.survey.scan`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tuner.data.conversation import RowError
from tuner.data.files.chunk import key_pattern
from tuner.data.formats import verdicts
from tuner.data.formats.detect import recognise
from tuner.data.formats.label import is_labelled
from tuner.data.formats.shape import SourceFacts
from tuner.data.survey.observer import Observer

MOST = 8
"""values of a column that are kept: with more of them it holds no verdicts"""


class VerdictColumns(Observer):
    """Columns with a verdict on each row's answer: what they hold in the whole source.

    Classes are called `label` too. So a verdict takes two values, a good one and a bad one, and no others.
    True and false under `label` or `kto_tag`, also as texts, need not both be there; nor does a good one
    where all are bad, unless it is a number.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        self._values: dict[str, set[str]] = {}
        heads = {
            ours: place.partition(".")[0] for ours, place in columns.items() if ours in verdicts.VERDICTS
        }
        self._names = {name: heads.get(name, name) for name in verdicts.VERDICTS}
        """those that were not found to hold more, as the rows call them"""
        self._keyed = key_pattern(self._names.values())

    def keys(self) -> frozenset[str]:
        """The names of such columns."""
        return frozenset(self._names.values())

    def wants(self, content: bytes) -> bool:
        """Where such a column is."""
        return bool(self._names) and self._keyed.search(content) is not None

    def see(self, row: Any) -> None:
        """A row."""
        if not isinstance(row, dict) or verdicts.NAMES.isdisjoint(row):
            return
        try:
            _, row = recognise(row)
        except RowError:
            return
        if not isinstance(row, dict) or not is_labelled(row):
            return
        for name in verdicts.NAMES.intersection(row):
            known = self._values.setdefault(name, set())
            if len(known) < MOST and (value := verdicts.verdict_word(row[name])):
                known.add(value)
                if len(known) == MOST:
                    del self._names[name]
                    self._keyed = key_pattern(self._names.values())

    def tell(self, facts: SourceFacts) -> SourceFacts:
        """The first of such columns."""
        return replace(
            facts,
            verdict=next(
                (name for name in verdicts.VERDICTS if _is_verdict(name, self._values.get(name, set()))),
                None,
            ),
        )


def _is_verdict(name: str, values: set[str]) -> bool:
    said = {verdicts.WORDS.get(value) for value in values}
    if not said or None in said or len(values) > 2:
        return False
    if len(values) == 2:
        return len(said) == 2
    return (name in verdicts.CERTAIN and values <= {"true", "false"}) or (
        said == {False} and values.isdisjoint(("0", "-1"))
    )
