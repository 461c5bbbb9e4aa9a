"""What is said of a training, and what ends it."""

import random
from typing import Any

import numpy as np
import pytest

from tuner.data.packs import Pack
from tuner.errors import DataError, StageError
from tuner.train.monitor.anomalies import (
    AnomalyWatch,
    MicroBatchOrigin,
    refuse_not_finite,
    refuse_nothing_trained,
)
from tuner.train.schedule import lr_at, patience_exhausted


def row(
    step: int, loss: float = 2.0, norm: float = 1.0, lr: float = 1e-4, targets: int = 50
) -> dict[str, Any]:
    return {"step": step, "loss": loss, "grad_norm": norm, "lr": lr, "targets": targets}


def rows() -> list[str]:
    return ["a.jsonl:7", "a.jsonl:9"]


def curve(seed: int, steps: int) -> list[dict[str, Any]]:
    """A training as they are: the loss falls and is noisy, norms have a long tail."""
    draw = random.Random(seed)
    return [
        row(n, 1.2 + 2.5 * 0.98**n + draw.gauss(0, 0.15), draw.lognormvariate(0, 0.35))
        for n in range(1, steps + 1)
    ]


def said(watch: AnomalyWatch, seen: list[dict[str, Any]]) -> list[str]:
    return [sentence for one in seen for sentence in watch.observe(one, rows)]


@pytest.mark.parametrize("seed", range(8))
def test_a_usual_training_is_not_commented(seed: int) -> None:
    assert said(AnomalyWatch(horizon=400), curve(seed, 400)) == []


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("loss", 5.5, "the loss is 5.5"), ("grad_norm", 40.0, "the gradient norm is 40")],
)
def test_a_spike_is_said_once(name: str, value: float, words: str) -> None:
    seen = curve(0, 300)
    for step in (200, 201, 202, 250):
        seen[step - 1][name] = value
    found = said(AnomalyWatch(horizon=300), seen)
    assert len(found) == 2  # 200 to 202 is one event
    assert found[0].startswith(f"step 200: {words}, and the median of the 64 steps before is ")
    assert found[0].endswith("its rows: a.jsonl:7, a.jsonl:9")
    assert found[1].startswith("step 250: ")


def test_what_is_usual_is_known_at_once_in_a_training_that_goes_on() -> None:
    seen = curve(0, 101)
    seen[100]["loss"] = 6.0
    whole = AnomalyWatch(horizon=300)
    expected = said(whole, seen)
    assert said(AnomalyWatch(horizon=300, rows=seen[36:100]), seen[100:]) == expected
    assert len(expected) == 1
    assert said(AnomalyWatch(horizon=300), seen[100:]) == []


def test_steps_without_targets() -> None:
    watch = AnomalyWatch(horizon=40)
    seen = [row(n, loss=0.0 if 5 <= n <= 6 else 2.0, targets=0 if 5 <= n <= 6 else 50) for n in range(1, 40)]
    assert said(watch, seen) == [
        "step 5 trains nothing: none of its tokens is a target (a.jsonl:7, a.jsonl:9)"
    ]
    watch.close()


def test_a_training_without_targets_is_refused() -> None:
    watch = AnomalyWatch(horizon=3)
    said(watch, [row(n, 0.0, 0.0, targets=0) for n in (1, 2, 3)])
    with pytest.raises(StageError, match="Nothing was trained"):
        watch.close()
    pack = Pack(
        ids=np.arange(4, dtype=np.int32),
        trained=np.zeros(4, dtype=np.bool_),
        lengths=np.array([4]),
        files=np.array([0]),
        lines=np.array([1]),
    )
    with pytest.raises(DataError, match="no token of the training set is trained"):
        refuse_nothing_trained([pack, pack])
    refuse_nothing_trained(
        [
            pack,
            Pack(
                ids=pack.ids, trained=~pack.trained, lengths=pack.lengths, files=pack.files, lines=pack.lines
            ),
        ]
    )


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
@pytest.mark.parametrize("lr", [1e-5, 2e-4])
def test_shipped_schedules_are_not_dead(schedule: str, lr: float) -> None:
    rates = [lr_at(step, 2000, lr=lr, schedule=schedule, warmup=0.03) for step in range(2000)]
    assert said(AnomalyWatch(horizon=2000), [row(n + 1, lr=rate) for n, rate in enumerate(rates)]) == []


def test_a_dead_learning_rate() -> None:
    zero = said(AnomalyWatch(horizon=20), [row(n, lr=0.0) for n in range(1, 21)])
    assert [sentence[:45] for sentence in zero] == ["the learning rate is 0 at step 1 of 20: nothi"]
    small = said(AnomalyWatch(horizon=20), [row(n, lr=1e-12) for n in range(1, 21)])
    assert [sentence[:50] for sentence in small] == ["the learning rate is 1e-12 at step 5 of 20, too sm"]


def test_a_loss_that_is_not_finite_names_step_rank_and_rows() -> None:
    places = [
        MicroBatchOrigin(rank=rank, rows=lambda rank=rank: [f"a.jsonl:{rank}{i}" for i in range(6)])
        for rank in (0, 1)
    ]  # type: ignore[misc]
    refuse_not_finite("loss", [1.0, 2.0], 7, places)
    with pytest.raises(
        StageError,
        match=(
            r"^The loss of step 7 on rank 1 is nan\. It comes from the rows a\.jsonl:10, .* and 2 more\."
            r" Look.*lower algo\.optim\.lr"
        ),
    ):
        refuse_not_finite("loss", [1.0, float("nan")], 7, places)
    with pytest.raises(
        StageError, match=r"^The gradient of step 7 is inf\. It comes from the rows a\.jsonl:00,"
    ):
        refuse_not_finite("gradient", [float("inf")] * 2, 7, places)
    with pytest.raises(StageError, match=r"^The loss of step 2 is inf\. It comes from"):
        refuse_not_finite("loss", [float("inf")], 2, places[:1])


def test_early_stop_counts_measurements_without_a_new_lowest() -> None:
    falling = [(10 * n, 3.0 - 0.1 * n) for n in range(1, 10)]
    assert not patience_exhausted(falling, 1, 10)
    assert not patience_exhausted([], 1, 10)
    flat = [*falling, (100, 2.2), (110, 2.1), (120, 2.3)]
    assert [patience_exhausted(flat[:n], 3, 10) for n in range(len(flat) + 1)] == [False] * 12 + [True]
    assert patience_exhausted([(1, 2.0), (2, 2.0)], 1, 1)  # no worse is no better


def test_early_stop_is_the_same_whatever_else_is_measured() -> None:
    draw = random.Random(3)
    for _ in range(50):
        own = [(10 * n, draw.random()) for n in range(1, 12)]
        others = [(step, draw.random() - 1) for step in range(1, 120, 7) if step % 10]
        assert patience_exhausted(sorted(own + others), 4, 10) == patience_exhausted(own, 4, 10)
