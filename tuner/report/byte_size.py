"""Bytes as people read them."""


def readable_bytes(size: float) -> str:
    """A number of bytes in decimal units, with three digits.

    >>> [readable_bytes(size) for size in (812, 36_256, 269_060_552, 6_500_000_000)]
    ['812 bytes', '36.3 kB', '269 MB', '6.50 GB']
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            value = size / unit
            return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f} {name}"
    return f"{size:.0f} bytes"
