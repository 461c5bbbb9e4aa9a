"""What can be known to be wrong with `algo` by itself: fields that don't go together, and numbers that 32-bit
floats can't hold.
"""

from tuner.config import lora_init
from tuner.config.schema import Algo

LARGEST, SMALLEST = 3.4028234e38, 1.1754944e-38
"""of positive 32-bit floats that are kept with all their digits"""
WIDEST = 2**31
"""what no rank is above"""


def algo_problems(algo: Algo) -> list[str]:
    """A sentence for each."""
    return _combinations(algo) + _floats(algo) + _ends(algo)


def _combinations(algo: Algo) -> list[str]:
    """Fields that don't go together."""
    problems = []
    full = not algo.uses_adapter
    if algo.quant != "none" and full:
        problems.append(
            f"algo.quant={algo.quant} quantises a frozen base, but algo.adapter=none trains all of its "
            "weights: leave one of them out, or take algo=qlora."
        )
    of_adapters = {
        "dropout": algo.dropout,
        "dora": algo.dora,
        "rslora": algo.rslora,
        "lora_init": algo.lora_init != "default",
        "lora_plus": algo.lora_plus,
    }
    if full and (there := [name for name, value in of_adapters.items() if value]):
        problems.append(
            f"algo.{there[0]} acts on adapters, but algo.adapter is none: leave it out, or take algo=lora."
        )
    of_full = {"last_layers": algo.last_layers, "freeze": algo.freeze}
    if not full and (there := [name for name, value in of_full.items() if value]):
        problems.append(
            f"algo.{there[0]} says what full fine-tuning keeps frozen, but algo.adapter={algo.adapter} "
            "trains none of the model's own weights anyway."
        )
    if algo.dora and algo.quant == "int8":
        problems.append(
            "algo.dora=true needs the norm of each row of the base's weights, which PEFT can't compute in 8 "
            "bits: take algo.quant=nf4 or none."
        )
    if not 0 <= algo.warmup < 1 and not (algo.warmup >= 1 and float(algo.warmup).is_integer()):
        problems.append(
            f"algo.warmup is {algo.warmup}, but must be a share of the steps below 1, or a whole number of "
            "steps."
        )
    if algo.schedule == "wsd" and not 0 < algo.decay <= 1:
        problems.append(
            f"algo.decay is {algo.decay}, but must be a share of the steps, more than 0 and at most 1."
        )
    if problem := lora_init.lora_init_problem(algo.lora_init, r=algo.r):
        problems.append(problem)
    elif lora_init.changes_base(algo.lora_init) and (algo.quant != "none" or algo.init == "continue"):
        other = f"algo.quant={algo.quant}" if algo.quant != "none" else "algo.init=continue"
        problems.append(
            f"algo.lora_init={algo.lora_init} subtracts a part from the base's weights, which does not go "
            f"with {other}: leave one of them out."
        )
    return problems


def _floats(algo: Algo) -> list[str]:
    """Numbers that training uses as 32-bit floats must neither overflow nor underflow there."""
    optim, r = algo.optim, min(max(1, algo.r), WIDEST)
    alpha = lora_init.alpha_of(algo.alpha, r=r, rslora=algo.rslora)
    lr, by = optim.lr, algo.lora_plus
    scale = f"alpha / {'√r' if algo.rslora else 'r'}"
    values = {
        "algo.alpha": alpha,
        f"the adapters' scale, {scale} of algo.alpha={algo.alpha} and algo.r={algo.r},": alpha
        / (r**0.5 if algo.rslora else r),
        "algo.optim.lr": lr,
        "algo.optim.eps": optim.eps,
        "algo.optim.weight_decay": optim.weight_decay,
        "algo.clip": algo.clip,
        "algo.neftune": algo.neftune,
        "algo.lora_plus": by,
        f"the rate of B, algo.lora_plus={by} times algo.optim.lr={lr},": lr * by if by else None,
        f"algo.optim.weight_decay={optim.weight_decay} times algo.optim.lr={lr}": lr * optim.weight_decay,
    }
    problems = [
        f"{name} is {x:g}, but training uses 32-bit floats, and the largest is {LARGEST:.2g}."
        for name, x in values.items()
        if x and x > LARGEST
    ]
    small = {
        name: x
        for name, x in values.items()
        if not name.startswith("algo.optim.weight_decay") and x and 0 < x < SMALLEST
    }
    problems += [
        f"{name} is {x:g}, but training uses 32-bit floats, and the smallest above 0 is {SMALLEST:.2g}."
        for name, x in small.items()
    ]
    if algo.r > WIDEST:
        problems.append(f"algo.r is {algo.r:,}, which is wider than any layer.")
    return problems


def _ends(algo: Algo) -> list[str]:
    """Where the run, its early end and the learning rate schedule stop, as far as that is known without the
    data.
    """
    problems = []
    if algo.steps and algo.stop_step and algo.stop_step > algo.steps:
        problems.append(
            f"algo.stop_step is {algo.stop_step}, but algo.steps ends training at {algo.steps}: raise "
            "algo.steps to train longer."
        )
    end = algo.stop_step or algo.steps
    if end and algo.schedule_steps and algo.schedule_steps < end and algo.schedule != "constant":
        problems.append(
            f"algo.schedule_steps is {algo.schedule_steps}, but training ends at step {end}: the learning "
            "rate would be 0 before that. Raise it, or set algo.schedule=constant."
        )
    return problems
