"""How a field of the config is declared: what it decides, and for which stages.

    identity   changes what exact arithmetic would compute, or which rows, steps or files exist: enters the
               fingerprints
    place      says where content lies: the content's digest is the identity, the place only tells runs apart
    neutral    rounding, speed or display: enters nothing

A field added later carries `left_out`, the value at which it stays out of the hash, so that no older artifact
is lost. A number's range stands beside its default: `at_least`, `more_than` or `less_than`, or two of them.
"""

from dataclasses import MISSING, dataclass, field
from typing import Any, Literal

UNSET: Any = object()

Kind = Literal["identity", "place", "neutral"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a number must be, and each number of a list."""

    at_least: float | None = None
    more_than: float | None = None
    less_than: float | None = None

    def outside(self, value: Any) -> int | float | None:
        """The value, or the first in a list, that is a number and not in the range; None where none is.

        >>> Limits(at_least=1).outside(0), Limits(at_least=1).outside("auto")
        (0, None)
        >>> Limits(at_least=0, less_than=1).outside((0.9, 1.0))
        1.0
        """
        numbers = value if isinstance(value, tuple) else (value,)
        return next((x for x in numbers if isinstance(x, int | float) and not self._holds(x)), None)

    def _holds(self, x: float) -> bool:
        return (
            (self.at_least is None or x >= self.at_least)
            and (self.more_than is None or x > self.more_than)
            and (self.less_than is None or x < self.less_than)
        )

    def __str__(self) -> str:
        """As an error says it.

        >>> str(Limits(at_least=0, less_than=1))
        'at least 0 and less than 1'
        """
        words = {"at least": self.at_least, "more than": self.more_than, "less than": self.less_than}
        return " and ".join(f"{word} {end:g}" for word, end in words.items() if end is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Declaration:
    """What a field decides, and for whom, and what it may be."""

    kind: Kind
    stages: frozenset[str]
    """that may read it; an identity field enters their fingerprints"""
    seen_by: frozenset[str] = frozenset()
    """that may read it too, for what is neutral to them"""
    left_out: Any = UNSET
    limits: Limits = Limits()


def _declare(
    kind: Kind,
    stages: tuple[str, ...],
    default: Any,
    *,
    left_out: Any = UNSET,
    seen_by: tuple[str, ...] = (),
    limits: Limits,
) -> Any:
    declared = Declaration(
        kind=kind, stages=frozenset(stages), seen_by=frozenset(seen_by), left_out=left_out, limits=limits
    )
    if callable(default):
        return field(default_factory=default, metadata={"declared": declared})
    return field(default=default, metadata={"declared": declared})


def identity(
    *stages: str,
    default: Any = MISSING,
    left_out: Any = UNSET,
    seen_by: tuple[str, ...] = (),
    at_least: float | None = None,
    more_than: float | None = None,
    less_than: float | None = None,
) -> Any:
    """A field that enters the fingerprints of `stages`, unless its value is `left_out`."""
    limits = Limits(at_least=at_least, more_than=more_than, less_than=less_than)
    return _declare("identity", stages, default, left_out=left_out, seen_by=seen_by, limits=limits)


def place(*stages: str, default: Any = None, left_out: Any = UNSET) -> Any:
    """A field that says where content lies; it tells runs apart, unless its value is `left_out`, and
    enters no fingerprint.
    """
    return _declare("place", stages, default, left_out=left_out, limits=Limits())


def neutral(
    *stages: str,
    default: Any = None,
    at_least: float | None = None,
    more_than: float | None = None,
    less_than: float | None = None,
) -> Any:
    """A field that changes rounding, speed or display only."""
    limits = Limits(at_least=at_least, more_than=more_than, less_than=less_than)
    return _declare("neutral", stages, default, limits=limits)
