"""A stage run as the pipeline runs it: a view of the config, inputs by name, an empty directory."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import get_peft_model_state_dict
from transformers import LlamaForCausalLM

from tests.models.tiny import CHATML, tiny_adapter
from tuner.config.schema import Algo, Config, Eval, Machine, Model
from tuner.config.view import View
from tuner.data.packs import Pack, write_packs
from tuner.files import write_json
from tuner.models.lora.layers import adapter_config
from tuner.pipeline.stage import Context, Input, Stage
from tuner.train.checkpoints import save as checkpoint
from tuner.train.engine import State


def config(**algo: Any) -> Config:
    prompts = ("Who are you?", "你是谁？", "What is the capital of France?")
    return Config(
        model=Model(chat=CHATML, repo="org/tiny"),
        algo=Algo(**({"precision": "fp32"} | algo)),
        machine=Machine(device="cpu"),
        eval=Eval(prompts=prompts, max_new_tokens=8),
    )


def run(
    stage: Stage, config: Config, out: Path, said: list[str] | None = None, **inputs: Path
) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    artifacts = {
        name: Input(
            dir=path,
            files={p.relative_to(path).as_posix(): p for p in sorted(path.rglob("*")) if p.is_file()},
            facts={},
        )
        for name, path in inputs.items()
    }
    assert set(artifacts) == set(stage.upstream)
    stage.check(View(config, stage.name))
    stage.versions(View(config, stage.name))
    return stage.run(
        Context(
            config=View(config, stage.name),
            inputs=artifacts,
            out=out,
            say=(said if said is not None else []).append,
        )
    )


def trained_lora(base: Path, out: Path) -> Path:
    """What train leaves of a LoRA."""
    out.mkdir()
    peft = tiny_adapter(base)
    checkpoint.save(
        out,
        State(weights=get_peft_model_state_dict(peft), optimizer={}),
        step=3,
        tokens=99,
        scores={"loss": 2.0},
        optimizer=False,
    )
    write_json(out / "adapter_config.json", adapter_config(peft))
    return out


def trained_full(base: Path, out: Path) -> Path:
    """What train leaves of a full fine-tuning: fp32 masters, a tied head once."""
    out.mkdir()
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    weights = {name: p.detach() + 0.01 for name, p in model.named_parameters()}
    checkpoint.save(
        out, State(weights=weights, optimizer={}), step=3, tokens=99, scores={"loss": 2.0}, optimizer=False
    )
    return out


def held_out(directory: Path, *, packs: int = 3) -> Path:
    """What tokenize leaves, as far as a measurement reads it: packs of two documents, unlike in their
    number of trained tokens.
    """
    directory.mkdir()
    draw = np.random.default_rng(0)

    def pack(index: int) -> Pack:
        lengths = np.array([5 + index, 7], dtype=np.int32)
        ids = draw.integers(10, 6400, int(lengths.sum()), dtype=np.int32)
        trained = np.concatenate([np.arange(n) >= 2 for n in lengths])
        where = np.zeros(2, dtype=np.int32)
        return Pack(ids=ids, trained=trained, lengths=lengths, files=where, lines=where + 1)

    write_packs(directory / "held_out.arrow", [pack(index) for index in range(packs)])
    return directory
