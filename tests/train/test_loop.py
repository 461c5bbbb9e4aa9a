"""The loop's order where each step is read before the next one is launched, and where it is read one step
late, as on a GPU: that is forced here on the CPU.
"""

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.train.test_session import content, curve, stop_after
from tuner.config.schema import Config, Optim
from tuner.errors import Interrupted, StageError
from tuner.pipeline.stage import Context
from tuner.stages.train import STAGE
from tuner.train.batch import Batch
from tuner.train.checkpoints import steps
from tuner.train.checkpoints.save import Saver
from tuner.train.engine import TorchEngine
from tuner.train.held_out import HeldOut
from tuner.train.monitor.metrics import Journal
from tuner.train.monitor.rows import read_rows

Make = Callable[..., Context]
TIMES = ("seconds", "tokens_per_second", "memory", "mfu")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Says when steps are read: "at once" or "late"."""
    return lambda when: monkeypatch.setattr(TorchEngine, "asynchronous", when == "late")


def saving_every(config: Config, count: int) -> Config:
    return replace(
        config,
        machine=replace(config.machine, save_every=count, keep=100),
        train=replace(config.train, keep="resume"),
    )


def numbers(out: Path) -> list[int]:
    return [row["step"] for row in read_rows(out / "metrics.jsonl")]


def before_forward_backward(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[TorchEngine, int], None]
) -> list[TorchEngine]:
    """Call `act` with the engine and the step's number, 1 for the first, before its gradients are computed;
    the engine is in the list that is returned.
    """
    whole, seen = TorchEngine.forward_backward, list[TorchEngine]()

    def forward_backward(self: TorchEngine, batches: Sequence[Batch], targets: int) -> torch.Tensor:
        seen[:] = [self]
        act(self, batches[0].step + 1)
        return whole(self, batches, targets)

    monkeypatch.setattr(TorchEngine, "forward_backward", forward_backward)
    return seen


@pytest.mark.parametrize("adapter", ["lora", "none"])
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_reading_late_changes_nothing_but_times(
    adapter: str, optimizer: Any, config: Config, context: Make, tmp_path: Path, read: Callable[[str], None]
) -> None:
    """The first optimizer skips on the device what is not finite, the second waits."""
    algo = replace(config.algo, adapter=adapter, optim=Optim(name=optimizer, lr=1e-3))
    found = []
    for when in ("at once", "late"):
        read(when)
        STAGE.run(context(saving_every(replace(config, algo=algo), 3), out := tmp_path / when))
        rows = read_rows(out / "metrics.jsonl")
        saved = [
            (one.step, [path.read_bytes() for kind in kinds for path in one.paths(kind)])
            for one in steps.saved_steps(out)
            if (kinds := (steps.WEIGHTS, steps.OPTIMIZER) if one.resumable else (steps.WEIGHTS,))
        ]
        found.append(([{k: v for k, v in row.items() if k not in TIMES} for row in rows], saved))
    assert found[0] == found[1]
    assert [step for step, _ in found[0][1]] == [3, 6, 7]


@pytest.mark.parametrize(
    ("when", "patience", "order"),
    [
        ("at once", None, "L1 R1 L2 R2 L3 R3 S3 L4 R4 L5 R5 L6 R6 S6 L7 R7 S7"),
        ("late", None, "L1 L2 R1 L3 R2 R3 S3 L4 L5 R4 L6 R5 R6 S6 L7 R7 S7"),
        # what early stopping decides on must be known before the next step
        ("late", 100, "L1 R1 L2 R2 L3 R3 S3 L4 R4 L5 R5 L6 R6 S6 L7 R7 S7"),
    ],
)
def test_rows_are_written_in_order_and_before_a_step_is_saved(
    when: str,
    patience: int | None,
    order: str,
    config: Config,
    context: Make,
    tmp_path: Path,
    read: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """L: a step is launched; R: its row is written; S: it is saved."""
    read(when)
    events: list[str] = []
    write, save = Journal.write, Saver.save

    def writing(self: Journal, row: dict[str, Any]) -> None:
        events.append(f"R{row['step']}")
        write(self, row)

    def saving(self: Saver, *args: Any, step: int, **others: Any) -> None:
        events.append(f"S{step}")
        assert numbers(tmp_path) == list(range(1, step + 1))
        save(self, *args, step=step, **others)

    monkeypatch.setattr(Journal, "write", writing)
    monkeypatch.setattr(Saver, "save", saving)
    before_forward_backward(monkeypatch, lambda _, step: events.append(f"L{step}"))
    algo = replace(config.algo, early_stop=patience, early_stop_every=100)
    STAGE.run(context(saving_every(replace(config, algo=algo), 3), tmp_path))
    assert " ".join(events) == order


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_step_that_is_not_finite_ends_the_run_however_late_it_is_read(
    step: int,
    optimizer: Any,
    what: str,
    full: Config,
    context: Make,
    tmp_path: Path,
    read: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Steps 1 and 3 are read when the next one is launched, step 4 at once, since it is saved."""

    def spoil(engine: TorchEngine, number: int) -> None:
        sound = engine.loss
        if number == step and what == "loss":  # whose gradient is finite
            engine.loss = lambda model, batch: (
                sound(model, batch) + (torch.inf if batch.step == step - 1 else 0)
            )
        elif number == step:
            hook = engine.named["model.norm.weight"].register_hook(lambda gradient: gradient + torch.inf)
            hooks.append(hook)
        elif hooks:
            hooks.pop().remove()

    algo = replace(full.algo, optim=Optim(name=optimizer, lr=1e-3))
    config, hooks = saving_every(replace(full, algo=algo), 2), list[Any]()
    seen = before_forward_backward(monkeypatch, spoil)
    found = []
    for when in ("at once", "late"):
        read(when)
        hooks.clear()
        with pytest.raises(
            StageError, match=rf"The {what} of step {step} is inf.* rows rows\.jsonl:\d+"
        ) as told:
            STAGE.run(context(config, out := tmp_path / when))
        assert numbers(out) == list(range(1, step))
        assert [one.step for one in steps.saved_steps(out)] == [n for n in (2,) if n < step]
        weights = {name: p.detach().clone() for name, p in seen[0].named.items()}
        found.append((str(told.value), curve(out), weights))
    (words, rows, weights), (late_words, late_rows, late_weights) = found
    assert (words, rows) == (late_words, late_rows)
    assert all(torch.equal(value, late_weights[name]) for name, value in weights.items())


@pytest.mark.parametrize("step", [3, 4, 5])
def test_a_stopped_training_that_reads_late_goes_on_bit_for_bit(
    step: int,
    config: Config,
    context: Make,
    tmp_path: Path,
    read: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = saving_every(config, 4)
    STAGE.run(context(config, tmp_path / "whole"))
    read("late")
    stop_after(step, monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match=f"stopped after step {step} of 7"):
        STAGE.run(context(config, tmp_path / "parts"))
    assert numbers(tmp_path / "parts") == list(range(1, step + 1))
    assert steps.saved_steps(tmp_path / "parts")[-1].step == step
    STAGE.run(context(config, tmp_path / "parts"))
    assert content(tmp_path / "whole") == content(tmp_path / "parts")
    assert curve(tmp_path / "whole") == curve(tmp_path / "parts")


@pytest.mark.parametrize("finite", [True, False])
def test_an_error_at_a_launch_finishes_the_step_before(
    finite: bool,
    full: Config,
    context: Make,
    tmp_path: Path,
    read: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(engine: TorchEngine, step: int) -> None:
        if step == 3 and not finite:
            engine.named["model.norm.weight"].data.fill_(torch.nan)
        if step == 4:
            raise MemoryError("full")

    read("late")
    before_forward_backward(monkeypatch, fail)
    error, words = (MemoryError, "full") if finite else (StageError, r"The loss of step 3 is nan")
    with pytest.raises(error, match=words):
        STAGE.run(context(saving_every(full, 100), tmp_path))
    assert numbers(tmp_path) == ([1, 2, 3] if finite else [1, 2])
    assert not steps.saved_steps(tmp_path)


def test_a_rows_seconds_are_wall_time_without_what_is_measured(
    config: Config, context: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def takes(kind: type, name: str, seconds: float) -> None:
        whole = getattr(kind, name)

        def longer(*args: Any, **named: Any) -> Any:
            now[0] += seconds
            return whole(*args, **named)

        monkeypatch.setattr(kind, name, longer)

    monkeypatch.setattr("tuner.train.monitor.step_clock.time", SimpleNamespace(monotonic=lambda: now[0]))
    takes(TorchEngine, "step", 1.0)
    takes(Saver, "save", 10.0)
    takes(HeldOut, "measure", 100.0)
    takes(Journal, "write", 0.25)
    facts = STAGE.run(context(replace(config, algo=replace(config.algo, stop_step=5)), tmp_path))
    rows = read_rows(tmp_path / "metrics.jsonl")
    spent = [1.0, 1.25, 11.25, 1.25, 11.25]  # steps 2 and 4 are saved, and the last one is after its row
    assert [row["seconds"] for row in rows] == [sum(spent[: n + 1]) for n in range(5)]
    tokens = [row["tokens"] for row in rows]
    seen = [after - before for before, after in zip([0, *tokens], tokens, strict=False)]
    assert [row["tokens_per_second"] for row in rows] == [
        round(count / lap, 1) for count, lap in zip(seen, spent, strict=True)
    ]
    assert facts["seconds"] == rows[-1]["seconds"]
