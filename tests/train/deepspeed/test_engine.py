"""DeepSpeed computes what the torch engine computes, sharded or not, and its saved steps are anybody's."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.lives import (
    CPU,
    HALF,
    HIDDEN,
    STEPS,
    apart,
    distance,
    hold_to,
    hold_to_idle,
    make_batches,
    same,
    torch_engine,
    train,
    true_life,
    whole,
    zero_engine,
)
from tests.train.ranks import in_processes
from tuner.train.distributed import World, single_process

ALL = {
    f"{adapter} {stage}": (adapter, stage, "none") for adapter in ("lora", "none") for stage in range(4)
} | {
    f"{adapter} {stage} {offload}": (adapter, stage, offload)
    for adapter in ("lora", "none")
    for stage, offload in ((1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "all"))
}
FEW = {name: ALL[name] for name in ("none 1", "none 2", "none 3", "lora 3", "lora 2 optimizer")}


@pytest.fixture(scope="module")
def truth() -> dict[str, dict[str, Any]]:
    return {adapter: true_life(adapter) for adapter in ("lora", "none")}


@pytest.mark.parametrize(
    ("size", "cases"), [(2, FEW), *(pytest.param(size, ALL, marks=pytest.mark.slow) for size in (1, 2, 4))]
)
def test_every_stage_computes_what_the_torch_engine_computes(
    size: int, cases: dict[str, tuple[str, int, str]], truth: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    given = {
        "cases": cases,
        "out": tmp_path,
        "half": {adapter: found["half"] for adapter, found in truth.items()},
        "hidden": HIDDEN,
    }
    ranks = in_processes("tests.train.lives:live", given, tmp_path / "ranks", size=size)
    for name, (adapter, _, _) in cases.items():
        hold_to(truth[adapter], [rank[name] for rank in ranks], name)
        other = torch_engine(adapter)
        other.load(ranks[0][name]["half"])
        train(other, single_process(CPU), HALF, STEPS)
        begin, end = truth[adapter]["begin"].weights, truth[adapter]["end"].weights
        assert apart(whole(single_process(CPU), other.state()).weights, end, begin) < 1e-4, (
            f"{name}: the torch engine goes on from its step"
        )


def test_a_tensor_without_a_gradient_does_not_step_on_an_old_one(tmp_path: Path) -> None:
    cases = [(1, "none"), (2, "none"), (3, "none"), (1, "optimizer"), (2, "optimizer"), (3, "all")]
    (found,) = in_processes(
        "tests.train.lives:idles", {"cases": cases, "hidden": HIDDEN}, tmp_path / "ranks", size=1
    )
    for case, (norms, saved) in found.items():
        hold_to_idle(norms, saved, str(case))


def halves(world: World, given: dict[str, Any]) -> dict[int, Any]:
    """In a process: the first step in bf16 under some ZeRO stages."""
    batches, targets = make_batches()
    found = {}
    for stage in given["stages"]:
        engine = zero_engine("none", world, stage, autocast=torch.bfloat16)
        found[stage] = (
            engine.forward_backward(batches[:4], targets[0]).tolist(),
            {name: gradient.clone() for name, gradient in engine.gradients()},
        )
    return found


def test_bf16_products_on_fp32_weights(tmp_path: Path) -> None:
    (found,) = in_processes(f"{__name__}:halves", {"stages": [2, 3]}, tmp_path / "ranks", size=1)
    batches, targets = make_batches()
    engine = torch_engine("none", torch.bfloat16)
    true = engine.forward_backward(batches[:4], targets[0]).tolist()
    assert true != torch_engine("none").forward_backward(batches[:4], targets[0]).tolist()
    for losses, gradients in found.values():
        assert losses == true
        # what is used twice adds up in another order, in bf16
        assert distance(gradients, dict(engine.gradients())) < 1e-2


def gathers(world: World, given: dict[str, Any]) -> list[Any]:
    """In one of several processes: the bytes that it received of weights, by dtype, and what came of them;
    rounded before they are sent, and after.
    """
    from tuner.train.deepspeed import engine as module

    found: list[Any] = []
    gather = module.gather_rounded
    for rounded in (True, False):
        module.gather_rounded = gather if rounded else lambda *_: None
        engine = zero_engine("none", world, 3, autocast=torch.bfloat16)
        from deepspeed.runtime.zero import partition_parameters  # the engine has told DeepSpeed the device

        send, received = (
            partition_parameters._dist_allgather_fn,
            dict.fromkeys((torch.bfloat16, torch.float32), 0),
        )

        def counted(
            own: torch.Tensor,
            whole: torch.Tensor,
            group: Any = None,
            send: Any = send,
            received: dict[Any, int] = received,
        ) -> Any:
            received[whole.dtype] += whole.nbytes
            return send(own, whole, group)

        partition_parameters._dist_allgather_fn = counted
        norms = train(engine, world, 0, 3)
        partition_parameters._dist_allgather_fn = send
        found.append((received, norms, whole(world, engine.state())))
    return found


@pytest.mark.slow
def test_weights_are_gathered_in_the_dtype_that_multiplies_them(tmp_path: Path) -> None:
    for (half, norms, saved), (full, true, end) in in_processes(
        f"{__name__}:gathers", {}, tmp_path / "ranks", size=2
    ):
        assert norms == true
        assert same(saved, end), "to the bit: autocast would have rounded them next"
        assert full[torch.bfloat16] == 0
        sent = full[torch.float32] - half[torch.float32]
        assert half[torch.bfloat16] == sent / 2, "half the bytes of the linear layers"
        assert sent > 0.6 * full[torch.float32], "which are most: the rest is the table of words"
