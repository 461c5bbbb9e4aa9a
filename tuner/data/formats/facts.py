"""What only a whole source can tell of its rows; `tuner.data.survey` finds it before they are read."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Facts of a source. Without any, each row is taken for itself."""

    verdict: str | None = None
    """the column that says of each answer whether it is good: of two verdicts, both are there"""
    filler: frozenset[tuple[str, str]] = frozenset()
    """(tool, argument) that are null in all calls of this tool, and have a value in calls of others"""
