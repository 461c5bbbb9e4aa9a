"""A model directory whose small files, or weights, have changed bytes: each is read, or refused in a
paragraph; never a fault of ours.
"""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from tuner.config.build import build_config
from tuner.config.view import View
from tuner.data.chat.choice import choose_template
from tuner.data.tokenizer.load import load_vocabulary
from tuner.hardware.mistakes import mistake
from tuner.models.checkpoint.safetensors import read_specs
from tuner.pipeline.stage import Context
from tuner.stages import fetch_model

TRIED = 500 if os.environ.get("TUNER_TEST_ALL") else 20
SEED = int(os.environ.get("TUNER_TEST_SEED") or random.SystemRandom().randrange(10**6))
PIECES = (
    b"null",
    b"[]",
    b"{}",
    b"-1",
    b"1e999",
    b"9" * 400,
    b'"',
    b"[" * 2000,
    b"\xff",
    b"\0",
    b"true",
    b'""',
)


def damaged(text: bytes, dice: random.Random) -> bytes:
    """With a few bytes changed, a piece of something else in place of some, or cut off."""
    found = bytearray(text)
    for _ in range(dice.randint(1, 3)):
        at = dice.randrange(len(found) + 1)
        match dice.randrange(4):
            case 0:
                found[at : at + 1] = bytes([dice.randrange(256)])
            case 1:
                found[at : at + dice.randrange(8)] = dice.choice(PIECES)
            case 2:
                end = found.find(b":", at) + 1 or len(found)
                found[end : end + dice.randrange(12)] = dice.choice(PIECES)
            case _:
                del found[at : at + dice.randrange(40)]
    return bytes(found[: dice.randrange(len(found) + 1)] if dice.random() < 0.1 else found)


def outcome(work: Callable[[], object]) -> str | None:
    """Why it was refused; None where it went well. Raises what is nobody's fault but ours."""
    try:
        work()
    except BaseException as error:
        if (known := mistake(error)) is None:
            raise
        return str(known)
    return None


def test_small_files(tiny_model: Path, tmp_path: Path) -> None:
    print("seed", SEED)
    dice = random.Random(SEED)
    names = ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]
    refused = 0
    for number in range(TRIED):
        model = shutil.copytree(tiny_model, tmp_path / str(number))
        name = names[number % len(names)]
        (model / name).write_bytes(damaged((model / name).read_bytes(), dice))
        config = build_config({"model": {"source": "path", "path": str(model)}}, whole=False)
        view = View(config, "fetch_model")
        told = f"seed {SEED}, directory {number}, {name}"

        def read(view: View = view, model: Path = model, out: Path = tmp_path / "out") -> None:
            fetch_model.check(view)
            fetch_model.run(Context(config=view, inputs={}, out=out, say=lambda _: None))
            choose_template(model)
            load_vocabulary(model)

        why = outcome(read)
        refused += why is not None
        assert why is None or len(why) < 2000, told
        shutil.rmtree(model)
    print(refused, "of", TRIED, "were refused")
    assert refused


def test_weights(tmp_path: Path) -> None:
    print("seed", SEED)
    dice = random.Random(SEED)
    path = tmp_path / "model.safetensors"
    save_file({f"layer.{i}.weight": torch.zeros(4, 8) for i in range(4)}, path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for number in range(TRIED):
        path.write_bytes(damaged(whole[: header + 8], dice) + whole[header + 8 :])
        why = outcome(lambda: read_specs(path))
        refused += why is not None
        assert why is None or len(why) < 1000, f"seed {SEED}, file {number}"
    print(refused, "of", TRIED, "were refused")
    assert refused
