"""The learning rate as a pure function of the step, and early stopping as one of what was measured: what
is gone on with decides as what was never interrupted.
"""

import math
from collections.abc import Sequence

from tuner.config.view import View
from tuner.data.sampler import Order
from tuner.data.shares import ceil_of
from tuner.errors import ConfigError


def lr_at(step: int, steps: int, *, lr: float, schedule: str, warmup: float, decay: float = 0.1) -> float:
    """The learning rate of `step` (0 for the first) of `steps`.

    warmup   the share of steps over which it rises; from 1 on, their number
    decay    the share of steps over which `wsd` falls

    With w warm-up steps (rounded up) it rises as lr * (step + 1) / (w + 1) before step w, which has the full
    rate. After that, with x = (step - w) / (steps - w), it is lr * (1 + cos(pi x)) / 2 (cosine:
    arXiv:1608.03983 without restarts), lr * (1 - x) (linear), or lr (constant). `wsd` (arXiv:2404.06395, with
    a linear decay) stays at lr until d = ceil(decay * steps) steps are left, and falls over these as linear
    does. The last of `steps` still learns: x stays below 1, and is 1 after it.

    >>> [round(lr_at(s, 4, lr=1.0, schedule="linear", warmup=0.25), 2) for s in range(4)]
    [0.5, 1.0, 0.67, 0.33]
    >>> [round(lr_at(s, 6, lr=1.0, schedule="wsd", warmup=1, decay=0.5), 2) for s in range(6)]
    [0.5, 1.0, 1.0, 1.0, 0.67, 0.33]
    """
    rising = min(math.ceil(warmup) if warmup >= 1 else ceil_of(steps, warmup), steps)
    if step < rising:
        return lr * (step + 1) / (rising + 1)
    if schedule == "constant":
        return lr
    if schedule == "wsd":
        begin = max(rising, steps - ceil_of(steps, decay))
        return lr * (1 - share_passed(step, begin, steps))
    done = share_passed(step, rising, steps)
    if schedule == "cosine":
        return lr * (1 + math.cos(math.pi * done)) / 2
    if schedule == "linear":
        return lr * (1 - done)
    raise ValueError(f"unknown schedule {schedule}")


def share_passed(step: int, begin: int, end: int) -> float:
    """The share of the steps from `begin` to `end` that lies before `step`: 0 up to `begin`, 1 from `end`
    on.
    """
    return min(1.0, max(0, step - begin) / max(1, end - begin))


def schedule_horizon(algo: View, whole: Order) -> int:
    """The steps over which the learning rate runs its course. Raises ConfigError where training would go
    on after its end.
    """
    end, horizon = algo.stop_step or whole.steps, algo.schedule_steps or whole.steps
    if end > whole.steps:
        raise ConfigError(
            f"algo.stop_step={end} is past the end of the run, which has {whole.steps} steps. Train "
            "longer with algo.epochs or algo.steps."
        )
    if end > horizon and algo.schedule != "constant":
        raise ConfigError(
            f"algo.schedule_steps={horizon} ends before the run does (step {end}): the learning rate "
            "would be 0 from there. Raise it, end earlier with algo.stop_step, or set "
            "algo.schedule=constant."
        )
    return horizon


def patience_exhausted(measured: Sequence[tuple[int, float]], patience: int, every: int) -> bool:
    """Whether the last `patience` measurements have all failed to give a new lowest loss.

    measured  (step, held-out loss) in the order of the steps
    every     only steps that it divides count: when else is measured depends on the machine's settings, and
              must not decide

    >>> curve = [(10, 3.0), (15, 1.0), (20, 2.0), (30, 2.5), (40, 2.0)]
    >>> [patience_exhausted(curve, patience, 10) for patience in (2, 3)]
    [True, False]
    >>> patience_exhausted(curve[:-1], 2, 10)
    False
    """
    losses = [loss for step, loss in measured if step % every == 0]
    if not losses:
        return False
    best = losses.index(min(losses))  # the first of equals: no worse is no better
    return len(losses) - 1 - best >= patience
