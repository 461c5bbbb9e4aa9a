"""Shares of a count, of the decimal number that was typed: 0.07 of 100 is 7, where the binary float's
product is 7.000000000000001.
"""

import math
from fractions import Fraction


def as_fraction(share: int | float) -> Fraction:
    """The number as it was typed: the shortest decimal that reads as this float.

    >>> as_fraction(0.07), as_fraction(1e-05), as_fraction(3)
    (Fraction(7, 100), Fraction(1, 100000), Fraction(3, 1))
    """
    return Fraction(str(share))


def ceil_of(count: int, share: int | float) -> int:
    """The share of a count, rounded up.

    >>> ceil_of(100, 0.07), ceil_of(100, 0.071), ceil_of(3, 0)
    (7, 8, 0)
    """
    return math.ceil(as_fraction(share) * count)


def round_of(count: int, share: int | float) -> int:
    """The share of a count, rounded to the nearest whole number, a half to the even one.

    >>> round_of(100, 0.285), round_of(50, 0.29), round_of(10, 0.25)
    (28, 14, 2)
    """
    return round(as_fraction(share) * count)
