"""Times as people read them."""


def readable_seconds(seconds: float) -> str:
    """A span of time in its largest unit.

    >>> [readable_seconds(seconds) for seconds in (4.4, 250, 9000)]
    ['4 s', '4 min', '2.5 h']
    """
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
