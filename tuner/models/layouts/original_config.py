"""What a foreign config.json says, read with suspicion: every value is checked before anything is computed
from it. Standard library only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from tuner.errors import DataError

LARGEST, MOST_LAYERS = 1 << 24, 1 << 12
"""beyond any real model: a width or a vocabulary, and a number of layers"""

AGAIN = "Get config.json again from where the weights are from."


@dataclass(frozen=True, kw_only=True, slots=True)
class OriginalConfig:
    """A config.json of one family. Each method raises DataError, in one paragraph, for a value that its
    family's mapping can't represent.
    """

    layout: str
    """the family, for messages"""
    config: Mapping[str, Any]

    def size(self, key: str, default: int | None = None, *, most: int = LARGEST) -> int:
        """A width, a count or a length; `default` is the family's own, used where the key is absent or
        null.
        """
        value = self._value(key, default, "a whole number")
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self.refusal(key, f"a whole number from 1 to {most} was expected. {AGAIN}")
        return value

    def number(self, key: str, default: float | None = None, *, zero: bool = False) -> float:
        """A finite number above zero, or from zero on."""
        value = self._value(key, default, "a number")
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not _finite(value)
            or value < 0
            or (value == 0 and not zero)
        ):
            raise self.refusal(key, f"a finite number {'from' if zero else 'above'} 0 was expected. {AGAIN}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Yes or no."""
        value = self._value(key, default, "true or false")
        if not isinstance(value, bool):
            raise self.refusal(key, f"true or false was expected. {AGAIN}")
        return value

    def usual(self, key: str, *values: Any, mend: str) -> None:
        """Refuse what is not one of the usual values; a key that is absent or null has the first of them."""
        value = self.config.get(key)
        if value is not None and not any(
            value == usual and isinstance(value, bool) == isinstance(usual, bool) for usual in values
        ):
            raise self.refusal(key, f"the native class has it as {values[0]!r} only. {mend}")

    def ids(self, key: str, vocabulary: int) -> int | list[int] | None:
        """One id of the vocabulary, or several; None where there is no such key."""
        value = self.config.get(key)
        several = value if isinstance(value, list) else [] if value is None else [value]
        if any(
            isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < vocabulary for one in several
        ):
            raise self.refusal(
                key, f"ids from 0 to {vocabulary - 1} were expected, the vocabulary's. {AGAIN}"
            )
        return value

    def refusal(self, key: str, expected: str) -> DataError:
        """The error for one key: what was found, and what was expected."""
        return DataError(
            f"config.json of this {self.layout} checkpoint says {key} {self.config.get(key)!r:.80}, where "
            f"{expected}"
        )

    def _value(self, key: str, default: Any, kind: str) -> Any:
        value = self.config.get(key)
        if value is None and default is None:
            raise DataError(
                f"config.json of this {self.layout} checkpoint has no {key}, which should be {kind}. {AGAIN}"
            )
        return default if value is None else value


def _finite(value: int | float) -> bool:
    try:
        return isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False
