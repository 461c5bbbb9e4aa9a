"""The rehearsal on a real tiny model and a real engine: it changes nothing, and says what fits."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.ranks import in_processes
from tuner.config.schema import Optim
from tuner.data.packs import Packs
from tuner.errors import ConfigError, StageError
from tuner.estimate.recompute import Setting, first_that_fits, settings
from tuner.models.load import load_model
from tuner.models.lora.add import add_lora
from tuner.train.batch import Batch, collate
from tuner.train.distributed import World, single_process
from tuner.train.engine import TorchEngine, trainable_parameters
from tuner.train.loss import summed_loss
from tuner.train.optimizers import build_optimizer
from tuner.train.preflight import memory, memory_probe
from tuner.train.preflight.memory import fingerprint, probe_memory
from tuner.train.preflight.memory_probe import MicroBatch, ProbeRequest, hardest_micro_batches
from tuner.train.preflight.verdict import Verdict, recall, remember, verdict_key
from tuner.train.recompute import layers_to_recompute, set_recompute

CPU = torch.device("cpu")
KINDS = ("weights", "optimizer")


def make(directory: Path, *, lora: bool, optimizer: str = "adamw") -> tuple[Any, TorchEngine]:
    model: Any = load_model(directory, dtype=torch.float32, device="cpu")
    if lora:
        model = add_lora(model, r=4, alpha=8, dropout=0.0, targets="all-linear", seed=0)
    model.train()
    return model, TorchEngine(
        model,
        build_optimizer(trainable_parameters(model), Optim(name=optimizer, weight_decay=0.1), device=CPU),
        loss=summed_loss,
    )  # type: ignore[arg-type]


def step(engine: TorchEngine, packs: Packs) -> dict[str, torch.Tensor]:
    batch = collate([packs[0], packs[1]])
    engine.forward_backward([batch], len(batch.targets_M))
    engine.step(1e-3, 1.0)
    return {name: tensor.clone() for name, tensor in engine.state().weights.items()}


@pytest.mark.parametrize(
    ("lora", "optimizer"), [(True, "adamw"), (False, "adamw"), (False, "adafactor"), (True, "muon")]
)
def test_a_rehearsed_training_is_the_same_as_one_that_was_not(
    lora: bool, optimizer: str, tiny: Path, packs: Packs, tmp_path: Path
) -> None:
    _, plain = make(tiny, lora=lora, optimizer=optimizer)
    model, engine = make(tiny, lora=lora, optimizer=optimizer)
    begun = {name: tensor.clone() for name, tensor in engine.state().weights.items()}
    found = probe_memory(
        engine,
        model,
        packs,
        ProbeRequest(micro_batch="auto", recompute="auto", packs=2),
        world=single_process(CPU),
        scratch=tmp_path / "scratch",
        timeout=60,
    )
    assert (found.micro_batch, found.recompute, found.reserved, found.expected) == (1, "none", None, None)
    assert found.tokens == max(len(pack.ids) for pack in packs)
    assert not (tmp_path / "scratch").exists()
    assert all(
        torch.equal(begun[name].view(torch.int32), tensor.view(torch.int32))
        for name, tensor in engine.state().weights.items()
    )
    assert not any(p.grad is not None for p in engine.named.values())
    expected, got = step(plain, packs), step(engine, packs)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def rehearsed(world: World, given: dict[str, Any]) -> list[bool]:
    """In one of several processes, for each ZeRO stage: whether a training after a rehearsal ends as one
    without.
    """
    from tests.train.lives import WORDS, train, whole, zero_engine

    packs = [replace(pack, ids=pack.ids % WORDS) for pack in given["packs"]]
    found = []
    for stage in given["stages"]:
        ends = []
        for first in (False, True):
            engine = zero_engine("lora", world, stage)
            if first:
                wish = ProbeRequest(micro_batch="auto", recompute="none", packs=1)
                probe_memory(
                    engine, engine.model, packs, wish, world=world, scratch=given["scratch"], timeout=60
                )
            train(engine, world, 0, 2)
            ends.append(whole(world, engine.state()))
        found += [
            all(
                torch.equal(getattr(ends[0], kind)[name], tensor)
                for name, tensor in getattr(ends[1], kind).items()
            )
            for kind in KINDS
        ]
    return [*found, given["scratch"].exists()]


@pytest.mark.slow
def test_shards_are_rehearsed_too(packs: Packs, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    given = {"packs": list(packs), "stages": [0, 2, 3], "scratch": tmp_path / "scratch"}
    function = "tests.train.preflight.test_memory:rehearsed"
    assert in_processes(function, given, tmp_path / "ranks", size=2) == [[True] * 6 + [False]] * 2


def test_a_disk_that_refuses_is_told_before_the_first_step(
    tiny: Path, packs: Packs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tuner.train.checkpoints.save.write_file", full)
    model, engine = make(tiny, lora=True)
    with pytest.raises(StageError, match="No space left on device"):
        probe_memory(
            engine,
            model,
            packs,
            ProbeRequest(micro_batch=1, recompute="none", packs=2),
            world=single_process(CPU),
            scratch=tmp_path / "scratch",
            timeout=60,
        )
    assert not (tmp_path / "scratch").exists()


class Card:
    """A GPU of so many bytes, by arithmetic: each micro batch takes `pack` bytes a pack, half of them
    where all blocks are computed again.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        model: Any,
        engine: TorchEngine,
        *,
        room: int,
        base: int,
        pack: int,
        bend: int = 99,
    ) -> None:
        self.room, self.base, self.pack, self.peak, self.tried = room, base, pack, 0, list[int]()
        whole = engine.forward_backward

        def forward_backward(batches: Sequence[Batch], targets: int) -> torch.Tensor:
            for batch in batches:
                took = self.base + self.pack * len(batch.packs) * (2 - self.recomputes(model)) // 2
                self.tried.append(len(batch.packs))
                if took > self.room or len(batch.packs) >= bend:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                self.peak = max(self.peak, took)
            return whole(batches[:1], targets)

        monkeypatch.setattr(engine, "forward_backward", forward_backward)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (self.room, self.room))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self.forget)
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: self.peak)

    def forget(self, _: object) -> None:
        self.peak = 0

    @staticmethod
    def recomputes(model: Any) -> float:
        """The share of the layers that compute again."""
        layers = layers_to_recompute(model)
        return sum(layer.gradient_checkpointing for layer in layers) / len(layers)


@pytest.fixture
def made(tiny: Path) -> tuple[Any, TorchEngine]:
    return make(tiny, lora=True)


def on_card(
    made: tuple[Any, TorchEngine], packs: Packs, wish: ProbeRequest, scratch: Path, foresight: Any = None
) -> memory.ProbeResult:
    model, engine = made
    world = single_process(torch.device("cuda"))  # the engine itself stays on the processor
    return probe_memory(
        engine, model, packs, wish, world=world, scratch=scratch, timeout=60, estimate=foresight
    )


@pytest.mark.parametrize(
    ("room", "most", "micro", "recompute"),
    [
        (1000, 7, 7, "none"),
        (640, 7, 7, "blocks"),  # rows of so few tokens cost more than computing again
        (640, 3, 3, "none"),
        (420, 3, 3, "blocks"),
        (260, 3, 2, "blocks"),
        pytest.param(230, 7, 2, "blocks", marks=pytest.mark.slow),
        pytest.param(200, 7, 1, "blocks", marks=pytest.mark.slow),
        (150, 7, 1, "blocks"),
    ],
)
def test_without_an_estimate_the_fastest_is_found_by_trying(
    room: int,
    most: int,
    micro: int,
    recompute: str,
    made: tuple[Any, TorchEngine],
    packs: Packs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 100 bytes and 100 a pack, or 50 with recomputation."""
    card = Card(monkeypatch, *made, room=room, base=100 if room != 150 else 80, pack=100)
    found = on_card(
        made, packs, ProbeRequest(micro_batch="auto", recompute="auto", packs=most), tmp_path / "s"
    )
    assert (found.micro_batch, found.recompute) == (micro, recompute)
    assert found.reserved == card.peak <= (1 - memory_probe.RESERVE) * room
    assert card.recomputes(made[0]) == (recompute == "blocks")


class Estimate:
    """What a card takes, `off` times; and what would fit."""

    def __init__(self, off: float, asked: list[tuple[MicroBatch, float]]) -> None:
        self.off, self.asked = off, asked

    def reserved(self, asked: MicroBatch) -> float:
        return self.takes(asked.setting)

    def takes(self, setting: Setting) -> float:
        return self.off * (100 + 100 * setting.micro * (1 - setting.recompute.blocks / 4))

    def ways(self, asked: MicroBatch, room: float) -> list[str]:
        self.asked.append((asked, room))
        return ["algo.quant=nf4 (~0.1 GiB)"]


@pytest.mark.parametrize("off", [0.6, 0.95, 1.0, 1.05, 1.7])
@pytest.mark.parametrize("room", [1000, 640, 450, 330])
def test_what_is_measured_corrects_an_estimate(
    room: int,
    off: float,
    made: tuple[Any, TorchEngine],
    packs: Packs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The setting is within 5 % as fast as the fastest that fits."""
    assert len(layers_to_recompute(made[0])) == 2
    card = Card(monkeypatch, *made, room=room, base=100, pack=100)
    wish = ProbeRequest(micro_batch="auto", recompute="auto", packs=7)
    every = settings(
        layers=2,
        packs=7,
        length=max(len(pack.ids) for pack in packs),
        micro="auto",
        recompute="auto",
        memory="auto",
        compiled=False,
    )
    true = Estimate(1.0, [])
    fastest = first_that_fits(every, true.takes, 0.94 * room)
    assert fastest is not None
    found = on_card(made, packs, wish, tmp_path / "s", Estimate(off, []))
    (took,) = [
        one for one in every if (one.micro, one.recompute.said(2)) == (found.micro_batch, found.recompute)
    ]
    assert found.reserved == card.peak == true.takes(took) <= 0.94 * room
    assert took.cost * (1 - memory_probe.WORTH) <= fastest.cost
    assert len(card.tried) <= 3 * 4  # a trial has three micro batches


def test_a_card_that_is_full_sooner_than_estimated_is_tried_with_less(
    made: tuple[Any, TorchEngine], packs: Packs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Card(monkeypatch, *made, room=2000, base=100, pack=100, bend=4)
    wish = ProbeRequest(micro_batch="auto", recompute="none", packs=7)
    found = on_card(made, packs, wish, tmp_path / "s", Estimate(1.0, []))
    assert found.micro_batch == 3
    assert max(card.tried) == 7


def test_what_does_not_fit_is_refused_with_what_would(
    made: tuple[Any, TorchEngine], packs: Packs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[MicroBatch, float]] = []
    Card(monkeypatch, *made, room=120, base=100, pack=100)
    with pytest.raises(ConfigError, match=r"does not fit.*recompute=blocks.*algo.quant=nf4 \(~0.1 GiB\)"):
        on_card(
            made,
            packs,
            ProbeRequest(micro_batch="auto", recompute="auto", packs=7),
            tmp_path / "s",
            Estimate(1.0, asked),
        )
    ((found, room),) = asked
    assert found.setting.words(2) == "machine.micro_batch=1 machine.recompute=blocks"
    assert (found.accumulated, found.compiled) == (True, False)
    assert room == pytest.approx(0.94 * 120)
    assert found.tokens == max(len(pack.ids) for pack in packs)
    assert found.targets == max(pack.trained.sum() for pack in packs)


def test_recomputation_gives_the_same_gradient(tiny: Path, packs: Packs) -> None:
    found = []
    for on in (False, True):
        model, engine = make(tiny, lora=True)
        set_recompute(model, 99 * on)
        batch = collate([packs[0], packs[1]])
        engine.forward_backward([batch], len(batch.targets_M))
        found.append({name: gradient.clone() for name, gradient in engine.gradients()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any(gradient.abs().sum() > 0 for gradient in found[0].values())


def test_the_hardest_rows_are_found_by_tokens_and_by_targets(packs: Packs) -> None:
    sizes = [(len(pack.ids), int(pack.trained.sum())) for pack in packs]
    longest, fullest = hardest_micro_batches(sizes, 3)
    assert sum(sizes[i][0] for i in longest) == sum(sorted((tokens for tokens, _ in sizes), reverse=True)[:3])
    assert sum(sizes[i][1] for i in fullest) == sum(
        sorted((targets for _, targets in sizes), reverse=True)[:3]
    )


def test_a_fingerprint_sees_one_bit(made: tuple[Any, TorchEngine]) -> None:
    _, engine = made
    state = engine.state()
    before = fingerprint(state)
    assert fingerprint(state) == before
    first = next(iter(state.weights.values()))
    with torch.no_grad():
        first.view(-1)[3] = math.nextafter(float(first.view(-1)[3]), 2.0) + 1e-7
    assert fingerprint(state) != before


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_verdict_is_recalled(cache: Path) -> None:
    verdict = Verdict(
        micro_batch=4,
        recompute="blocks",
        reserved=10**10,
        expected=10**10,
        tokens_per_second=1.5,
        proofs={"packed": 1e-6},
    )
    assert recall("ab" * 32) is None
    remember("ab" * 32, verdict)
    assert recall("ab" * 32) == verdict
    next((cache / "tuner" / "preflight").iterdir()).write_text("{", encoding="utf-8")
    assert recall("ab" * 32) is None


def test_a_cache_that_cannot_be_written_is_passed_over(cache: Path) -> None:
    cache.write_text("a file", encoding="utf-8")
    remember("cd" * 32, Verdict(micro_batch=1, recompute="none"))
    assert recall("cd" * 32) is None


def test_a_key_knows_config_and_content(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"1")
    key = verdict_key({"r": 16}, [weights], CPU)
    assert key == verdict_key({"r": 16}, [weights], CPU)
    assert key != verdict_key({"r": 8}, [weights], CPU)
    weights.write_bytes(b"22")
    assert key != verdict_key({"r": 16}, [weights], CPU)
