"""When a training ends before its time: a pure function of what was measured, so that one that goes on decides as one that was never interrupted."""

from collections.abc import Sequence


def exhausted(measured: Sequence[tuple[int, float]], patience: int, every: int) -> bool:
    """Whether the last `patience` measurements have all failed to give a new lowest loss.

    measured  (step, held-out loss) in the order of the steps
    every     only steps that it divides count: when else is measured depends on the machine's settings, and must not decide

    >>> curve = [(10, 3.0), (15, 1.0), (20, 2.0), (30, 2.5), (40, 2.0)]
    >>> exhausted(curve, 2, 10), exhausted(curve, 3, 10), exhausted(curve[:-1], 2, 10)
    (True, False, False)
    """
    losses = [loss for step, loss in measured if step % every == 0]
    if not losses:
        return False
    best = losses.index(min(losses))  # the first of equals: no worse is no better
    return len(losses) - 1 - best >= patience
