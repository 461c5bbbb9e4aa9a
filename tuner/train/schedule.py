"""The learning rate as a pure function of the step."""

import math


def lr_at(step: int, steps: int, *, lr: float, schedule: str, warmup: float) -> float:
    """The learning rate of `step` (0 for the first) of `steps`.

    With w = ceil(warmup * steps): it rises as lr * (step + 1) / (w + 1) before step w, which has the full rate. After that, with
    x = (step - w) / (steps - w), it is lr * (1 + cos(pi x)) / 2 (arXiv:1608.03983 without restarts), lr * (1 - x), or lr.
    The last of `steps` still learns: x stays below 1, and is 1 after it.

    >>> [round(lr_at(s, 4, lr=1.0, schedule="linear", warmup=0.25), 2) for s in range(4)]
    [0.5, 1.0, 0.67, 0.33]
    """
    rising = min(math.ceil(warmup * steps), steps)
    if step < rising:
        return lr * (step + 1) / (rising + 1)
    done = min(1.0, (step - rising) / max(1, steps - rising))
    if schedule == "cosine":
        return lr * (1 + math.cos(math.pi * done)) / 2
    if schedule == "linear":
        return lr * (1 - done)
    if schedule == "constant":
        return lr
    raise ValueError(f"unknown schedule {schedule}")
