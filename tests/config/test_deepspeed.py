"""What is legal with DeepSpeed, and the JSON that follows from the fields."""

import itertools
import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from tuner.config.deepspeed import Combination, combination_of, nearest_legal, process_count, why_refused
from tuner.config.schema import Algo, Machine, Optim
from tuner.errors import ConfigError
from tuner.train.deepspeed.settings import deepspeed_json, read_own

DEFAULT = Combination(
    engine="deepspeed",
    processes=1,
    zero=0,
    offload="none",
    offload_path=None,
    sequence_parallel=1,
    own_json=False,
    quant="none",
    optimizer="adamw",
    dora=False,
)
GRID = {
    "engine": ("torch", "deepspeed"),
    "processes": (1, 2, 6),
    "zero": (0, 1, 2, 3),
    "offload": ("none", "optimizer", "all"),
    "offload_path": (None, "/nvme"),
    "sequence_parallel": (1, 2, 4),
    "own_json": (False, True),
    "quant": ("none", "nf4", "int8"),
    "optimizer": ("adamw", "adamw_8bit", "muon"),
    "dora": (False, True),
}
EVERY = [Combination(**dict(zip(GRID, values, strict=True))) for values in itertools.product(*GRID.values())]  # type: ignore[arg-type]


def make(combination: Combination, **more: Any) -> dict[str, Any]:
    return deepspeed_json(combination, device="cuda", trainable=10**9, hidden=4096, largest=10**8, **more)


def test_the_grid_has_every_field() -> None:
    assert list(GRID) == [f.name for f in fields(Combination)]


def test_a_combination_is_legal_or_names_a_legal_one() -> None:
    legal = [combination for combination in EVERY if why_refused(combination) is None]
    assert len(legal) > 100
    assert all(nearest_legal(combination) == combination for combination in legal)
    for combination in set(EVERY) - set(legal):
        said = why_refused(combination)
        assert said
        words = dict(re.findall(r"machine\.(\w+)=(\S+)", said.rpartition(": set ")[2].removesuffix(".")))
        assert words, said
        typed: dict[str, Any] = {
            name: None if word == "null" else int(word) if word.isdecimal() else word
            for name, word in words.items()
        }
        changed = replace(combination, **typed)
        assert why_refused(changed) is None, f"{said} is no help for {combination}"
        assert changed == nearest_legal(combination)


@pytest.mark.parametrize(
    ("row", "kinds"),
    [
        ("all weights, or adapters on an unquantised base", [{}, {"dora": True}]),
        ("adapters on a base in 4 bits, which ZeRO 3 stores as bf16", [{"quant": "nf4"}]),
        (
            "adapters on a base in 8 bits; DoRA on a quantised base",
            [{"quant": "int8"}, {"quant": "int8", "dora": True}, {"quant": "nf4", "dora": True}],
        ),
        (
            "anything, with another optimizer than `adamw`",
            [{"optimizer": "muon"}, {"optimizer": "adamw_8bit", "quant": "nf4"}],
        ),
    ],
)
def test_the_documentation_has_the_rules_as_a_table(row: str, kinds: list[dict[str, Any]]) -> None:
    columns: list[list[dict[str, Any]]] = [
        [{}],
        [{"offload": "optimizer"}],
        [{"offload": "all"}],
        [{"offload": offload, "offload_path": "/nvme"} for offload in ("optimizer", "all")],
    ]
    written = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    for kind in kinds:
        cells = []
        for places in columns:
            (legal,) = {
                tuple(n for n in range(4) if why_refused(replace(DEFAULT, zero=n, **kind, **where)) is None)
                for where in places
            }
            cells.append(
                "–" if not legal else str(legal[0]) if len(legal) == 1 else f"{legal[0]}–{legal[-1]}"
            )
            assert not legal or legal == tuple(range(legal[0], legal[-1] + 1))
        assert f"| {row} | {' | '.join(cells)} |" in written


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"engine": "torch", "processes": 2}, "in one process.*set machine.engine=deepspeed"),
        ({"engine": "torch", "zero": 2}, "set machine.engine=deepspeed"),
        ({"offload": "optimizer"}, "set machine.zero=2"),
        ({"zero": 2, "offload": "all"}, "set machine.zero=3"),
        ({"zero": 2, "offload": "optimizer", "offload_path": "/nvme"}, "set machine.zero=3"),
        ({"zero": 3, "quant": "int8"}, "nothing would be gained.*set machine.zero=2"),
        ({"zero": 3, "offload": "all", "quant": "int8"}, "set machine.zero=2 machine.offload=optimizer"),
        ({"zero": 3, "dora": True, "quant": "nf4"}, "set machine.zero=2"),
        ({"zero": 2, "optimizer": "muon"}, "algo.optim.name=adamw.*set machine.zero=0"),
        ({"processes": 6, "sequence_parallel": 4}, "set machine.sequence_parallel=3"),
    ],
)
def test_the_answer_says_why_and_what(changes: dict[str, Any], said: str) -> None:
    assert re.search(said, why_refused(replace(DEFAULT, **changes)) or "")


@pytest.mark.parametrize(
    "changes",
    [
        {"zero": 3, "quant": "nf4", "processes": 8},
        {"zero": 3, "dora": True, "offload": "all"},
        {"zero": 2, "quant": "int8", "offload": "optimizer"},
        {"zero": 3, "offload": "all", "offload_path": "/nvme"},
        {"zero": 0, "optimizer": "muon", "processes": 4},
        {"zero": 0, "optimizer": "adamw_8bit", "quant": "nf4", "processes": 2},
        {"zero": 1, "processes": 8, "sequence_parallel": 4},
    ],
)
def test_legal(changes: dict[str, Any]) -> None:
    assert why_refused(replace(DEFAULT, **changes)) is None


@pytest.mark.parametrize(
    ("machine", "algo", "count", "found"),
    [
        (Machine(), Algo(), 1, ("torch", 0)),
        (Machine(), Algo(), 4, ("deepspeed", 2)),
        (Machine(zero=1), Algo(), 1, ("deepspeed", 1)),
        (Machine(engine="deepspeed"), Algo(), 1, ("deepspeed", 0)),
        (Machine(offload="optimizer"), Algo(), 1, ("deepspeed", 2)),
        (Machine(offload="all"), Algo(), 2, ("deepspeed", 3)),
        (Machine(offload="optimizer", offload_path="/nvme"), Algo(), 2, ("deepspeed", 3)),
        (Machine(deepspeed="own.json"), Algo(), 1, ("deepspeed", 0)),
        (Machine(), Algo(quant="int8"), 2, ("deepspeed", 2)),
        (Machine(), Algo(optim=Optim(name="muon")), 2, ("deepspeed", 0)),
        (Machine(), Algo(optim=Optim(name="muon")), 1, ("torch", 0)),
    ],
)
def test_auto_is_legal_and_as_documented(
    machine: Machine, algo: Algo, count: int, found: tuple[str, int]
) -> None:
    combination = combination_of(machine, algo, processes=count)
    assert (combination.engine, combination.zero) == found
    assert why_refused(combination) is None


def test_a_wish_that_can_not_be_met_stays_a_wish() -> None:
    assert why_refused(combination_of(Machine(engine="torch"), Algo(), processes=2))
    assert why_refused(combination_of(Machine(zero=3), Algo(optim=Optim(name="adafactor")), processes=2))


@pytest.mark.parametrize(
    ("machine", "count"),
    [
        (Machine(), 1),
        (Machine(gpus=4), 4),
        (Machine(gpus=(0, 3), nodes=2), 4),
        (Machine(device="cpu", processes=2), 2),
        (Machine(device="cpu", gpus=4), 1),
        (Machine(gpus=2, processes=1), 1),
    ],
)
def test_processes(machine: Machine, count: int) -> None:
    assert process_count(machine) == count


DISTINCT = {
    (combination.zero, combination.offload, combination.offload_path): combination
    for combination in EVERY
    if why_refused(combination) is None and combination.engine == "deepspeed"
}


@pytest.mark.parametrize(
    "combination",
    DISTINCT.values(),
    ids=lambda c: f"{c.zero}-{c.offload}-{'disk' if c.offload_path else 'memory'}",
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_deepspeed_takes_the_json_and_fills_in_nothing(combination: Combination, device: str) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    made = deepspeed_json(combination, device=device, trainable=1001, hidden=64, largest=999)
    assert json.loads(json.dumps(made)) == made
    assert '"auto"' not in json.dumps(made)
    config = DeepSpeedConfig(made)
    section = config.zero_config.model_dump(mode="json", by_alias=True)
    for key, value in made["zero_optimization"].items():
        if isinstance(value, dict):
            assert value.items() <= section[key].items()
        else:
            assert section[key] == value, key
    assert (config.gradient_accumulation_steps, config.gradient_clipping) == (1, 0.0)
    assert not config.bfloat16_config.enabled
    assert section["allgather_bucket_size"] % 2 == 0


def test_buckets_follow_the_model() -> None:
    small, large = (
        deepspeed_json(replace(DEFAULT, zero=3), device="cuda", trainable=n, hidden=h, largest=1)
        for n, h in ((10**6, 2048), (10**10, 8192))
    )
    assert small["zero_optimization"]["reduce_bucket_size"] == 10**6  # no more than there is to reduce
    assert large["zero_optimization"]["reduce_bucket_size"] == 8192**2
    assert (
        large["zero_optimization"]["stage3_prefetch_bucket_size"]
        < large["zero_optimization"]["stage3_max_live_parameters"]
    )


def test_only_the_gpu_overlaps_and_pins() -> None:
    for device in ("cpu", "cuda"):
        section = deepspeed_json(
            replace(DEFAULT, zero=3, offload="all"), device=device, trainable=9, hidden=9, largest=9
        )["zero_optimization"]
        assert (
            section["overlap_comm"]
            == section["offload_optimizer"]["pin_memory"]
            == section["offload_param"]["pin_memory"]
            == (device == "cuda")
        )


def test_a_disk_is_read_in_parts_that_buffers_hold() -> None:
    combination = replace(DEFAULT, zero=3, offload="all", offload_path="/nvme", processes=8)
    memory, disk = (
        make(c)["zero_optimization"] for c in (replace(combination, offload_path=None), combination)
    )
    assert disk["offload_param"]["buffer_size"] == 10**8 // 8  # of the largest tensor, what this process has
    assert disk["offload_param"]["nvme_path"] == disk["offload_optimizer"]["nvme_path"] == "/nvme"
    assert disk["sub_group_size"] < memory["sub_group_size"]
    assert (
        disk["stage3_prefetch_bucket_size"]
        == disk["stage3_max_reuse_distance"]
        == 0
        < memory["stage3_prefetch_bucket_size"]
    )


def test_an_own_json_is_merged_over(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text(
        json.dumps(
            {
                "train_batch_size": "auto",
                "gradient_clipping": "auto",
                "bf16": {"enabled": "auto"},
                "fp16": {"enabled": "auto", "loss_scale": "auto"},
                "wall_clock_breakdown": True,
                "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000, "overlap_comm": "auto"},
                "comms_logger": {"enabled": False},
            }
        ),
        encoding="utf-8",
    )
    plain, merged = (
        make(replace(DEFAULT, zero=2), own=own) for own in (None, read_own(str(tmp_path / "own.json")))
    )
    expected = json.loads(json.dumps(plain)) | {
        "wall_clock_breakdown": True,
        "comms_logger": {"enabled": False},
    }
    expected["zero_optimization"]["reduce_bucket_size"] = 1000
    assert merged == expected


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"train_batch_size": 64}, "train_batch_size follows from algo.batch_tokens"),
        ({"optimizer": {"type": "AdamW"}}, "optimizer follows from algo.optim"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler follows from algo.schedule"),
        ({"gradient_clipping": 1.0}, "gradient_clipping follows from algo.clip"),
        ({"bf16": {"enabled": True}}, "bf16 follows from algo.precision"),
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage follows from machine.zero"),
        (
            {"zero_optimization": {"offload_param": {"device": "cpu"}}},
            "offload_param.device follows from machine.offload",
        ),
        ({"zero_optimization": {"round_robin_gradients": True}}, "round_robin_gradients"),
        ({"optimizer": {"type": "Lion"}, "scheduler": {}}, "machine.deepspeed has optimizer"),
    ],
)
def test_what_fields_say_is_refused_in_the_own_json(own: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        make(replace(DEFAULT, zero=2), own=own)


@pytest.mark.parametrize(
    ("text", "said"), [("{", "can't be read as JSON"), ("[1]", "a JSON list"), (None, "can't be read")]
)
def test_a_file_that_is_no_json_is_told(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "own.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        read_own(str(tmp_path / "own.json"))
