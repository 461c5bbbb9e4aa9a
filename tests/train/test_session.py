"""Whole trainings in this process, on the tiny model."""

import hashlib
import json
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.train.conftest import make_pack
from tuner.config.schema import Config, Convert, Train
from tuner.config.view import View
from tuner.data.packs import Packs, write_packs
from tuner.errors import ConfigError, DataError, Interrupted, StageError
from tuner.models.load import load_model
from tuner.pipeline.stage import Context
from tuner.stages.train import STAGE
from tuner.train import training_data
from tuner.train.auto_settings import attention_facts
from tuner.train.batch import collate, count_targets
from tuner.train.checkpoints import steps
from tuner.train.engine import TorchEngine
from tuner.train.loss import summed_loss
from tuner.train.monitor.rows import read_rows

Make = Callable[..., Context]


def content(out: Path) -> dict[str, str]:
    """Hashes of what is handed on: the last step's weights and the adapter's settings."""
    files = [*steps.saved_steps(out)[-1].paths(steps.WEIGHTS), *out.glob(steps.ADAPTER)]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def curve(out: Path) -> list[tuple[float, ...]]:
    return [
        (row["step"], row["loss"], row["lr"], row["grad_norm"], row["tokens"])
        for row in read_rows(out / "metrics.jsonl")
    ]


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Do `act` once, when a training that began at step 0 has done `step` and not yet written it down."""
    done, before = [0], TorchEngine.step

    def counting(self: TorchEngine, lr: float, max_norm: float | None) -> torch.Tensor:
        norm = before(self, lr, max_norm)
        done[0] += 1
        if done[0] == step:
            act()
        return norm

    monkeypatch.setattr(TorchEngine, "step", counting)


@pytest.fixture(params=["lora", "none"])
def either(request: pytest.FixtureRequest, config: Config) -> Config:
    return replace(config, algo=replace(config.algo, adapter=request.param))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own loader
def test_what_it_leaves(config: Config, context: Make, tmp_path: Path, tiny: Path, packs: Packs) -> None:
    config = replace(config, machine=replace(config.machine, trackers=("tensorboard",)))
    facts = STAGE.run(context(config, tmp_path))
    kept = steps.saved_steps(tmp_path)
    assert [checkpoint.step for checkpoint in kept][-2:] == [6, 7]
    assert all(
        sorted(path.name for path in checkpoint.dir.iterdir()) == ["state.json", "weights.safetensors"]
        for checkpoint in kept
    )
    assert steps.best(kept, "held_out").scores["held_out"] == min(
        row["held_out"] for row in read_rows(tmp_path / "metrics.jsonl") if "held_out" in row
    )  # type: ignore[union-attr]
    assert list((tmp_path / "tensorboard").iterdir())
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 8))
    assert rows[-1]["tokens"] == facts["tokens"] == 2 * sum(len(pack.ids) for pack in packs)
    assert (facts["step"], facts["steps"], facts["packs_per_step"], facts["loss"]) == (
        7,
        7,
        2,
        rows[-1]["loss"],
    )
    assert (facts["device"], facts["micro_batch"], facts["dtype"], facts["compute"]) == (
        "cpu",
        1,
        "fp32",
        "fp32",
    )
    assert rows[-1]["loss"] < rows[0]["loss"]

    written = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert written["base_model_name_or_path"] == ""
    assert (written["r"], written["lora_alpha"]) == (16, 32)  # algo.alpha=auto
    assert written["target_modules"] == sorted(written["target_modules"])
    (tmp_path / "steps/step-000007/weights.safetensors").rename(tmp_path / "adapter_model.safetensors")
    # any tool of PEFT's reads it
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), tmp_path)
    assert all(p.abs().max() > 0 for name, p in adapted.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize(
    ("batch_tokens", "words"),
    [
        (
            "auto",
            "1 step of 1 pack, up to 48 tokens a step, not 32,768, so that algo.epochs=2 makes 14 steps",
        ),
        (2 * 48, "1 step of 2 packs, 1 at once, up to 96 tokens a step"),
    ],
)
def test_it_says_when_small_data_makes_small_steps(
    config: Config, context: Make, tmp_path: Path, batch_tokens: int | str, words: str
) -> None:
    said: list[str] = []
    STAGE.run(
        context(
            replace(config, algo=replace(config.algo, batch_tokens=batch_tokens, steps=1)), tmp_path, said
        )
    )  # type: ignore[arg-type]
    assert words in said


def test_full_leaves_all_weights(full: Config, context: Make, tmp_path: Path, tiny: Path) -> None:
    facts = STAGE.run(context(full, tmp_path))
    weights = load_file(tmp_path / "steps/step-000007/weights.safetensors")
    base = load_file(tiny / "model.safetensors")
    assert weights.keys() == base.keys() - {"lm_head.weight"}
    assert facts["trainable"] == sum(w.numel() for w in weights.values())
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert all(not torch.equal(w, base[name].float()) for name, w in weights.items())


def test_the_first_loss_is_the_models_own(
    either: Config, context: Make, tmp_path: Path, tiny: Path, packs: Packs
) -> None:
    STAGE.run(context(replace(either, algo=replace(either.algo, batch_tokens=7 * 48, epochs=1)), tmp_path))
    with torch.no_grad():
        expected = summed_loss(
            load_model(tiny, dtype=torch.float32, device="cpu"), collate(list(packs))
        ).item() / count_targets(list(packs))
    assert read_rows(tmp_path / "metrics.jsonl")[0]["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("has_bf16", [True, False])
def test_bf16(
    either: Config, context: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_bf16: bool
) -> None:
    monkeypatch.setattr("tuner.models.load.has_bf16", lambda: has_bf16)
    STAGE.run(context(either, tmp_path / "fp32"))
    facts = STAGE.run(
        context(replace(either, algo=replace(either.algo, precision="bf16")), tmp_path / "bf16")
    )
    assert (facts["dtype"], facts["compute"]) == ("bf16", "bf16" if has_bf16 else "fp32")
    weights = load_file(tmp_path / "bf16/steps/step-000007/weights.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float32}
    # the checkpoint is bf16 already
    assert (content(tmp_path / "fp32") == content(tmp_path / "bf16")) is not has_bf16
    for wide, narrow in zip(curve(tmp_path / "fp32"), curve(tmp_path / "bf16"), strict=True):
        assert narrow[1] == pytest.approx(wide[1], rel=0.02)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("step", [3, 4])
def test_a_stopped_training_goes_on_bit_for_bit(
    either: Config, context: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, dropout: float
) -> None:
    either = replace(either, algo=replace(either.algo, dropout=dropout))
    STAGE.run(context(either, tmp_path / "whole"))
    STAGE.run(context(either, tmp_path / "again"))
    stop_after(step, monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match=f"stopped after step {step} of 7"):
        STAGE.run(context(either, tmp_path / "parts"))
    said: list[str] = []
    STAGE.run(context(either, tmp_path / "parts", said))
    assert said[0] == f"continuing after step {step} of 7"
    assert content(tmp_path / "whole") == content(tmp_path / "again") == content(tmp_path / "parts")
    assert curve(tmp_path / "whole") == curve(tmp_path / "parts")


def test_a_killed_training_goes_on_from_its_newest_whole_step(
    either: Config, context: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    STAGE.run(context(either, tmp_path / "whole"))

    def kill() -> None:
        raise KeyError("killed")

    stop_after(5, monkeypatch, kill)
    with pytest.raises(KeyError, match="killed"):
        STAGE.run(context(either, tmp_path / "parts"))
    (tmp_path / "parts/steps/step-000004/weights.safetensors").write_bytes(b"flipped")
    said: list[str] = []
    STAGE.run(context(either, tmp_path / "parts", said))
    assert "continuing after step 2 of 7" in said
    assert content(tmp_path / "whole") == content(tmp_path / "parts")
    assert curve(tmp_path / "whole") == curve(tmp_path / "parts")


def test_killed_after_the_last_step(config: Config, context: Make, tmp_path: Path) -> None:
    first = STAGE.run(context(config, tmp_path))
    before = content(tmp_path)
    again = STAGE.run(context(config, tmp_path))
    assert content(tmp_path) == before
    assert again == first


def test_a_resumed_training_keeps_what_auto_meant(
    config: Config, context: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = replace(config, machine=replace(config.machine, threads=2))
    stop_after(2, monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="step 2"):
        STAGE.run(context(auto, tmp_path))
    said: list[str] = []
    facts = STAGE.run(
        context(replace(auto, machine=replace(config.machine, threads="auto", micro_batch=2)), tmp_path, said)
    )
    assert facts["threads"] == 2
    assert facts["micro_batch"] == 2
    assert [line for line in said if "before" in line] == [
        "micro_batch is 2 now and was 1 before; the last bits of the result may differ from an "
        "uninterrupted run"
    ]


def test_an_early_stop_is_a_prefix_of_the_longer_training(
    either: Config, context: Make, tmp_path: Path
) -> None:
    """Stopped at 3 with the schedule of 7, then on to 5: the bits of a straight 5, at the cost of 2 steps."""
    until = {n: replace(either, algo=replace(either.algo, stop_step=n)) for n in (3, 5)}
    STAGE.run(context(until[5], tmp_path / "straight"))
    STAGE.run(context(until[3], tmp_path / "short"))
    (tmp_path / "long").mkdir()
    found = STAGE.extension.reach(tmp_path / "short", View(until[5], "train"))  # type: ignore[union-attr]
    assert found == 3
    assert STAGE.extension.reach(tmp_path / "straight", View(until[3], "train")) is None  # type: ignore[union-attr]
    STAGE.extension.adopt(tmp_path / "short", tmp_path / "long", found)  # type: ignore[union-attr]
    said: list[str] = []
    STAGE.run(context(until[5], tmp_path / "long", said))
    assert said[0] == "continuing after step 3 of 5"
    assert content(tmp_path / "straight") == content(tmp_path / "long")
    assert curve(tmp_path / "straight") == curve(tmp_path / "long")
    assert [row["lr"] for row in read_rows(tmp_path / "long/metrics.jsonl")][-1] > 0


@pytest.mark.parametrize(
    ("keep", "stop", "resumable"),
    [("auto", None, False), ("auto", 5, True), ("resume", None, True), ("weights", 5, False)],
)
def test_the_optimizer_stays_where_a_training_can_go_on(
    config: Config, context: Make, tmp_path: Path, keep: str, stop: int | None, resumable: bool
) -> None:
    STAGE.run(
        context(replace(config, train=Train(keep=keep), algo=replace(config.algo, stop_step=stop)), tmp_path)
    )  # type: ignore[arg-type]
    assert [checkpoint.resumable for checkpoint in steps.saved_steps(tmp_path)][-1] is resumable
    assert sum(checkpoint.resumable for checkpoint in steps.saved_steps(tmp_path)) == resumable


def test_the_step_to_convert_is_kept(config: Config, context: Make, tmp_path: Path) -> None:
    STAGE.run(
        context(
            replace(config, convert=Convert(step=3), machine=replace(config.machine, save_every=100, keep=1)),
            tmp_path,
        )
    )
    assert {3, 7} <= {checkpoint.step for checkpoint in steps.saved_steps(tmp_path)}


@pytest.mark.parametrize(
    ("algo", "words"),
    [
        ({"stop_step": 8}, r"stop_step=8 is past the end .* 7 steps"),
        ({"schedule_steps": 5}, r"schedule_steps=5 ends before the run does \(step 7\)"),
    ],
)
def test_an_end_that_can_not_be(
    config: Config, context: Make, tmp_path: Path, algo: dict[str, int], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        STAGE.run(context(replace(config, algo=replace(config.algo, **algo)), tmp_path))


def test_measuring_changes_nothing(either: Config, context: Make, tmp_path: Path) -> None:
    dropout = replace(
        either, algo=replace(either.algo, dropout=0.1 if either.algo.adapter == "lora" else 0.0)
    )
    for every in (1, 100):
        STAGE.run(
            context(
                replace(dropout, machine=replace(dropout.machine, save_every=every)), tmp_path / str(every)
            )
        )
    assert content(tmp_path / "1") == content(tmp_path / "100")


def test_nothing_whole_starts_anew(config: Config, context: Make, tmp_path: Path) -> None:
    STAGE.run(context(config, tmp_path / "whole"))
    out = tmp_path / "parts"
    (out / "steps/step-000004.tmp").mkdir(parents=True)
    (out / "facts.json").write_text('{"threads": 99}', encoding="utf-8")
    (out / "metrics.jsonl").write_text('{"step": 1, "seconds": 5}\n', encoding="utf-8")
    STAGE.run(context(config, out))
    assert content(tmp_path / "whole") == content(out)


def test_a_loss_that_is_not_finite_names_step_and_rows(
    full: Config, context: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = TorchEngine.step

    def step(self: TorchEngine, lr: float, max_norm: float | None) -> torch.Tensor:
        norm = before(self, lr, max_norm)
        self.named["model.norm.weight"].data.fill_(float("nan"))
        return norm

    monkeypatch.setattr(TorchEngine, "step", step)
    with pytest.raises(
        StageError,
        match=(
            r"The loss of step 2 is nan on the rows rows\.jsonl:\d+, .*It comes from"
            r" model\.norm\.weight.*lower algo\.optim\.lr"
        ),
    ):
        STAGE.run(context(full, tmp_path))


def test_a_gradient_that_is_not_finite(
    full: Config, context: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchEngine, "step", lambda *_: torch.tensor(float("inf")))
    with pytest.raises(
        StageError, match=r"The gradient of step 1 is inf\. It comes from the rows rows\.jsonl:\d+"
    ):
        STAGE.run(context(full, tmp_path))


def test_no_packs(config: Config, context: Make, tmp_path: Path) -> None:
    write_packs(tmp_path / "train.arrow", [])
    with pytest.raises(DataError, match=r"nothing to train on.*ledger\.json"):
        STAGE.run(context(config, tmp_path / "out", data=tmp_path))


def test_signals_are_given_back(config: Config, context: Make, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert threading.current_thread() is threading.main_thread()
    STAGE.run(context(config, tmp_path))
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))


def test_versions_name_only_what_is_used(config: Config, full: Config) -> None:
    assert STAGE.versions(View(config, "train")).keys() - STAGE.versions(View(full, "train")).keys() == {
        "lora"
    }


def test_what_is_measured_does_not_depend_on_how_often(
    config: Config, context: Make, tmp_path: Path, tokens: Path
) -> None:
    """One fingerprint, one early stop, one best step: machine.measure_every and save_every are neutral."""
    data, draw = tmp_path / "data", random.Random(3)
    data.mkdir()
    write_packs(data / "train.arrow", (make_pack(draw, i) for i in range(5)))
    held = [make_pack(draw, i) for i in range(70)]
    write_packs(data / "held_out.arrow", held)
    shutil.copy(tokens / "ledger.json", data)
    algo = replace(
        config.algo, early_stop=2, early_stop_every=2, epochs=8, optim=replace(config.algo.optim, lr=0.05)
    )
    found = []
    for save, measure in ((2, None), (4, 2), (4, 1), (1000, 2)):
        machine = replace(config.machine, save_every=save, measure_every=measure, keep=100)
        facts = STAGE.run(
            context(
                replace(config, algo=algo, machine=machine), out := tmp_path / f"{save}-{measure}", data=data
            )
        )
        rows = {row["step"]: row["held_out"] for row in read_rows(out / "metrics.jsonl") if "held_out" in row}
        found.append((facts["step"], rows, {s.step: s.scores["held_out"] for s in steps.saved_steps(out)}))
    ends, measured, _ = zip(*found, strict=True)
    assert len(set(ends)) == 1
    assert ends[0] < 20  # the training did end early
    for rows in measured[1:]:
        assert {step: loss for step, loss in rows.items() if step % 2 == 0} == measured[0]
    for _, rows, kept in found:
        assert kept == {step: rows[step] for step in kept}
        common = kept.keys() & found[0][2].keys()
        assert min(common, key=kept.__getitem__) == min(common, key=found[0][2].__getitem__)
    packs = training_data.packs_to_measure(data)
    assert [pack.ids.tolist() for pack in packs] == [pack.ids.tolist() for pack in held[:64]]


def test_a_training_ends_when_the_held_out_loss_has_not_fallen(
    config: Config, context: Make, tmp_path: Path
) -> None:
    algo = replace(
        config.algo, early_stop=2, early_stop_every=1, epochs=8, optim=replace(config.algo.optim, lr=0.3)
    )
    config = replace(config, algo=algo, machine=replace(config.machine, save_every=1))
    facts = STAGE.run(context(config, tmp_path))
    losses = [row["held_out"] for row in read_rows(tmp_path / "metrics.jsonl")]
    assert facts["step"] == len(losses) < facts["steps"]
    assert losses.index(min(losses)) == len(losses) - 3
    assert steps.saved_steps(tmp_path)[-1].step == facts["step"]


def test_killed_after_it_had_ended_early_it_does_no_more_steps(
    config: Config, context: Make, tmp_path: Path
) -> None:
    algo = replace(
        config.algo, early_stop=1, early_stop_every=1, epochs=8, optim=replace(config.algo.optim, lr=0.3)
    )
    config = replace(
        config,
        algo=algo,
        machine=replace(config.machine, save_every=1),
        train=replace(config.train, keep="resume"),
    )
    facts = STAGE.run(context(config, tmp_path))
    (tmp_path / "facts.json").write_text('{"threads": 1}', encoding="utf-8")
    again = STAGE.run(context(config, tmp_path))
    assert (again["step"], again["loss"]) == (facts["step"], facts["loss"])


def test_the_version_of_a_package_is_a_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    assert attention_facts("varlen") == {"attention": "varlen"}
    assert attention_facts("flash4") == {"attention": "flash4"}  # it is not installed
    monkeypatch.setattr(
        "tuner.train.auto_settings.installed_version", lambda name: {"flash-attn-4": "4.1"}[name]
    )
    assert attention_facts("flash4") == {"attention": "flash4", "attention_version": "4.1"}
