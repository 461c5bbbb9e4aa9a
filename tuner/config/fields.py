"""How a field of the config is declared: what it decides, and for which stages.

    identity   changes what exact arithmetic would compute, or which rows, steps or files exist: enters the
               fingerprints
    place      says where content lies: the content's digest is the identity, the place only tells runs apart
    neutral    rounding, speed or display: enters nothing

A field added later carries `left_out`, the value at which it stays out of the hash, so that no older artifact
is lost.
"""

from dataclasses import MISSING, dataclass, field
from typing import Any, Literal

UNSET: Any = object()

Kind = Literal["identity", "place", "neutral"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Declaration:
    """What a field decides, and for whom."""

    kind: Kind
    stages: frozenset[str]
    """that may read it; an identity field enters their fingerprints"""
    seen_by: frozenset[str] = frozenset()
    """that may read it too, for what is neutral to them"""
    left_out: Any = UNSET


def _declare(
    kind: Kind, stages: tuple[str, ...], default: Any, left_out: Any = UNSET, seen_by: tuple[str, ...] = ()
) -> Any:
    metadata = {
        "declared": Declaration(
            kind=kind, stages=frozenset(stages), seen_by=frozenset(seen_by), left_out=left_out
        )
    }
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def identity(
    *stages: str, default: Any = MISSING, left_out: Any = UNSET, seen_by: tuple[str, ...] = ()
) -> Any:
    """A field that enters the fingerprints of `stages`, unless its value is `left_out`."""
    return _declare("identity", stages, default, left_out, seen_by)


def place(*stages: str, default: Any = None, left_out: Any = UNSET) -> Any:
    """A field that says where content lies; it tells runs apart, unless its value is `left_out`, and
    enters no fingerprint.
    """
    return _declare("place", stages, default, left_out)


def neutral(*stages: str, default: Any = None) -> Any:
    """A field that changes rounding, speed or display only."""
    return _declare("neutral", stages, default)
