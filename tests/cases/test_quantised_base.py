"""A base that is quantised already: FP8 and MXFP4 are trained as the bf16 weights that they stand for, all
others are refused with what to take.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROWS, Tuner, linked, write_rows
from tests.hub.server import Hub
from tests.models.checkpoint.held import rewrite, write_fp8, write_mxfp4
from tests.models.tiny import write_tiny
from tuner.models.checkpoint.files import checkpoint_files
from tuner.models.checkpoint.safetensors import Checkpoint
from tuner.train.checkpoints import sharded, steps

WORDS = [
    "data=local",
    "data.path=rows.jsonl",
    "data.length=64",
    "data.held_out=0",
    "algo.steps=2",
    "eval=none",
    "machine=cpu",
    "machine.threads=1",
    "machine.trackers=[]",
    "machine.preflight=false",
    "root=o",
]


def trained(tuner: Tuner, here: Path, model: Path, algo: str, *words: str) -> Path:
    """A run up to its merged model; returns its output root."""
    write_rows(here / "rows.jsonl", ROWS)
    tuner("model=local", f"model.path={model}", *WORDS, "until=merge", f"algo={algo}", f"root={algo}", *words)
    return here / algo


def weights(directory: Path) -> dict[str, torch.Tensor]:
    found = Checkpoint(
        path for name, path in checkpoint_files(directory).items() if name.endswith(".safetensors")
    )
    return {name: found[name] for name in found.specs}


def check_result(root: Path, bases: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The merged weights, after a look at what they must not be."""
    merged = weights(linked(root, "merge"))
    assert {name: tensor.shape for name, tensor in merged.items()} == {
        name: tensor.shape for name, tensor in bases.items()
    }
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    for stage in ("fetch_model", "merge"):
        assert "quantization_config" not in json.loads(
            (linked(root, stage) / "config.json").read_text(encoding="utf-8")
        )
    return merged


def check_full(root: Path) -> None:
    """Merged is what trained, rounded once, and near the base."""
    base = weights(linked(root, "fetch_model"))
    merged = check_result(root, base)
    last = sharded.open_step(steps.saved_steps(linked(root, "train"))[-1]).weights
    assert set(last) == set(merged)
    assert not [name for name in merged if not torch.equal(merged[name], last[name].to(torch.bfloat16))]
    assert [name for name in merged if not torch.equal(merged[name], base[name])]
    assert not [
        name
        for name in merged
        if (merged[name].float() - base[name].float()).norm() > 0.05 * base[name].float().norm() + 1e-2
    ]


def check_lora(root: Path) -> None:
    """Merged is the dequantised base plus the update, computed in fp32 and rounded once."""
    base, adapter = (
        weights(linked(root, "fetch_model")),
        load_file(linked(root, "convert") / "adapter_model.safetensors"),
    )
    settings = json.loads((linked(root, "convert") / "adapter_config.json").read_text(encoding="utf-8"))
    merged, scale = check_result(root, base), settings["lora_alpha"] / settings["r"]
    changed = set()
    for name, weight in base.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_B.weight" in adapter:
            update = scale * (
                adapter[f"{stem}.lora_B.weight"].float() @ adapter[f"{stem}.lora_A.weight"].float()
            )
            assert torch.allclose(
                merged[name].float(),
                (weight.float() + update).to(torch.bfloat16).float(),
                rtol=1e-2,
                atol=1e-6,
            ), name
            changed.add(name)
        else:
            assert torch.equal(merged[name], weight), name
    assert changed
    assert len(changed) * 2 == len(adapter)


def test_fp8_goes_through_lora(tuner: Tuner, tmp_path: Path) -> None:
    write_fp8(tmp_path / "held", block=(32, 32))
    root = trained(tuner, tmp_path, tmp_path / "held", "lora", "name=eight")
    check_lora(root)
    said = tuner("export", "eight", "original", f"root={root}", code=2).err
    assert "their publisher has them in FP8" in said
    assert re.search(r"python -m tuner export \w{8} model", said)


@pytest.mark.slow
@pytest.mark.parametrize(
    "write",
    [write_fp8, lambda path: write_fp8(path, block=None), write_mxfp4],
    ids=["fp8 in blocks", "fp8 by tensor", "mxfp4"],
)
def test_fp8_and_mxfp4_go_through_full_and_lora(
    tuner: Tuner, tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    write(tmp_path / "held")
    for algo, check in (("full", check_full), ("lora", check_lora)):
        check(trained(tuner, tmp_path, tmp_path / "held", algo))


def int4(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """As AutoAWQ writes it."""
    stem, rows, columns = name.removesuffix(".weight"), *weight.shape
    return {
        f"{stem}.qweight": torch.zeros(columns, rows // 8, dtype=torch.int32),
        f"{stem}.qzeros": torch.zeros(1, rows // 8, dtype=torch.int32),
        f"{stem}.scales": torch.ones(1, rows).half(),
    }


def test_other_methods_are_refused_before_anything_runs(tuner: Tuner, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", ROWS)
    rewrite(write_tiny(tmp_path / "mine"), {"quant_method": "awq", "bits": 4, "group_size": 64}, int4)
    (tmp_path / "mine" / "README.md").write_text(
        "---\nbase_model: org/Tiny-Instruct\n---\n", encoding="utf-8"
    )
    for verb in ([], ["plan"]):
        done = tuner(*verb, "model=local", "model.path=mine", *WORDS, code=2)
        assert (
            "mine is quantised already: AWQ, 4 bits, as quantization_config in config.json tells" in done.err
        )
        assert done.err.rstrip().endswith("model=hub model.repo=org/Tiny-Instruct algo=qlora")
        assert "Traceback" not in done.err
        assert "tokenize" not in done.err + done.out
    assert not list((tmp_path / "o").glob("store/*model*"))
    silent = json.loads((tmp_path / "mine" / "config.json").read_text(encoding="utf-8"))
    del silent["quantization_config"]
    (tmp_path / "mine" / "config.json").write_text(json.dumps(silent), encoding="utf-8")
    assert (
        "as the tensor model.layers.0.mlp.down_proj.qweight tells"
        in tuner("model=local", "model.path=mine", *WORDS, code=2).err
    )
    called = tuner(
        "plan", "model=hub", "model.repo=unsloth/Tiny-Instruct-unsloth-bnb-4bit", *WORDS, code=2
    ).err
    assert "unsloth/Tiny-Instruct (a guess from its name)" in called
    assert called.rstrip().endswith("model=hub model.repo=unsloth/Tiny-Instruct algo=qlora")
    # what is printed can be typed
    assert tuner("plan", "model=hub", "model.repo=unsloth/Tiny-Instruct", "algo=qlora", *WORDS).out


def test_a_plan_shows_sizes_in_bf16(tuner: Tuner, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", ROWS)
    write_tiny(tmp_path / "plain")
    write_fp8(tmp_path / "held")

    def disk(model: str, *words: str) -> float:
        said: dict[str, Any] = json.loads(
            tuner("plan", "--json", "model=local", f"model.path={model}", *WORDS, *words).out
        )
        number, unit = said["estimate"]["of disk"].removeprefix("~").split()
        assert unit == "MB"
        return float(number)

    plain, held = disk("plain", "algo=full"), disk("held", "algo=full")
    assert held > plain  # the bf16 copy of what is referenced otherwise
    assert disk("held", "algo=full", "until=fetch") == pytest.approx(held - plain, abs=0.06)


def test_a_hubs_fp8_is_known_to_the_plan_once_the_lock_says_it(tuner: Tuner, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", ROWS)
    held = write_fp8(tmp_path / "held")
    with Hub() as hub:
        hub.add("org/Tiny-FP8", {path.name: path.read_bytes() for path in held.iterdir()}, kind="models")
        words = ["model=hub", "model.repo=org/Tiny-FP8", *WORDS, "algo=full"]
        env = {**hub.env, "HF_HUB_CACHE": str(tmp_path / "cache")}
        tuner(*words, "until=fetch", env=env)
        # as locks were before they said it
        older = (tmp_path / "tuner.lock").read_text(encoding="utf-8").replace('"quantised": "fp8",', "")
        (tmp_path / "older.lock").write_text(older, encoding="utf-8")
        stale = tuner(*words, "lock=older.lock", "root=other", env=env, code=2).err
    assert (
        "org/Tiny-FP8 is quantised, FP8, as quantization_config in config.json tells, which was not known "
        "before" in stale
    )
    assert "Remove its entry from older.lock, so that the next run asks the hub again." in stale
    lock = json.loads((tmp_path / "tuner.lock").read_text(encoding="utf-8"))["pins"][
        "model hub org/Tiny-FP8@main"
    ]
    assert (lock["quantised"], lock["template"]) == ("fp8", "minimind")
    made = linked(tmp_path / "o", "fetch_model")
    assert Checkpoint([made / "model.safetensors"]).specs["model.layers.0.mlp.up_proj.weight"].dtype == "BF16"
    assert not list(made.glob(".hub"))
    fetched = (made / "model.safetensors").stat().st_size
    said = json.loads(tuner("plan", "--json", *words, "store=elsewhere").out)
    assert said["told"] == ["chat template minimind: as tuner.lock says of its tokenizer"]
    megabytes = float(said["estimate"]["of disk"].removeprefix("~").replace(",", "").split()[0])
    assert said["estimate"]["of disk"].endswith(" kB") or megabytes * 1e6 > 3 * fetched
