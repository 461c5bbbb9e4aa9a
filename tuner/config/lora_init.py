"""How an adapter is initialised: the names that PEFT has for it, which of them change the base, and at what
scale it acts.
"""

import re
from math import sqrt

from tuner.errors import did_you_mean

NAMES = ("default", "gaussian", "orthogonal", "olora", "pissa", "pissa_niter_4")
"""one of each kind"""


def lora_init_problem(name: str, *, r: int) -> str | None:
    """What is wrong with algo.lora_init for adapters of rank r, in a sentence; None where nothing is.

    >>> lora_init_problem("pissa_niter_16", r=8)
    >>> lora_init_problem("orthogonal", r=7)
    'algo.lora_init=orthogonal initialises two halves of the rank, but algo.r is 7: make it even.'
    """
    if name not in NAMES and pissa_iterations(name) is None:
        return (
            f"algo.lora_init is {name!r}, but must be one of {', '.join(NAMES[:-1])}, "
            f"pissa_niter_N.{did_you_mean(name, NAMES)}"
        )
    if name == "orthogonal" and r % 2:
        return (
            f"algo.lora_init=orthogonal initialises two halves of the rank, but algo.r is {r}: make it even."
        )
    return None


def changes_base(name: str) -> bool:
    """Whether the adapter starts from a part of the weight, which is then subtracted from the base.

    >>> [changes_base(name) for name in ("default", "orthogonal", "olora", "pissa_niter_4")]
    [False, False, True, True]
    """
    return name == "olora" or name.startswith("pissa")


def pissa_iterations(name: str) -> int | None:
    """The iterations of `pissa_niter_N`.

    >>> pissa_iterations("pissa_niter_16"), pissa_iterations("pissa")
    (16, None)
    """
    match = re.fullmatch(r"pissa_niter_([0-9]+)", name)
    return int(match[1]) if match else None


def alpha_of(alpha: float | str, *, r: int, rslora: bool) -> float:
    """The number that algo.alpha means for adapters of rank r: `auto` makes the scale 2, whichever rule it
    follows, so that a sweep over r keeps it.

    alpha / r is the scale, or with rslora alpha / √r (arXiv:2312.03732).

    >>> (alpha_of("auto", r=16, rslora=False), alpha_of("auto", r=64, rslora=True), alpha_of(16.0, r=64,
    ...  rslora=False))
    (32, 16.0, 16.0)
    """
    if not isinstance(alpha, str):
        return alpha
    return 2 * sqrt(r) if rslora else 2 * r
