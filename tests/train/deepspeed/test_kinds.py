"""Under DeepSpeed, what PEFT and bitsandbytes make of a model trains as it does on the torch engine; on a
GPU too.
"""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.lives import CPU, OPTIM, apart, distance, make_batches, make_settings, train, whole
from tests.train.ranks import in_processes
from tuner.models.load import load_model
from tuner.models.lora.add import add_lora
from tuner.train.deepspeed.engine import ZeroEngine
from tuner.train.distributed import World, single_process
from tuner.train.engine import Engine, TorchEngine, trainable_parameters
from tuner.train.held_out import measure_batches
from tuner.train.loss import summed_loss
from tuner.train.optimizers import build_optimizer, vocabulary_weights

KINDS: dict[str, dict[str, Any]] = {
    "recompute": {"recompute": True},
    "rows": {"new_token_ids": [6398, 6399]},
    "dora": {"dora": True},
    "nf4": {"quant": "nf4", "storage": torch.bfloat16},
    "nf4 recompute": {"quant": "nf4", "storage": torch.bfloat16, "recompute": True},
    "int8": {"quant": "int8"},
}


def kinds(world: World, given: dict[str, Any]) -> dict[str, Any]:
    """In one of several processes: the first steps under ZeRO 3 of what PEFT and bitsandbytes make of a
    model.
    """
    batches, targets = make_batches()
    found = {}
    for name, kind in given["kinds"].items():
        engine = ZeroEngine(
            make_kind(given["model"], **kind),
            world=world,
            settings=make_settings(3, world),
            optim=OPTIM,
            loss=summed_loss,
        )
        engine.forward_backward(batches[:4][world.rank :: world.size], targets[0])
        gradients = {name: gradient.clone() for name, gradient in engine.gradients()}
        engine.reset()
        norms = train(engine, world, 0, 3)
        found[name] = {"gradients": gradients, "norms": norms, "saved": whole(world, engine.state())}
    return found


def make_kind(
    directory: Path,
    quant: str = "none",
    storage: torch.dtype | None = None,
    recompute: bool = False,
    **lora: Any,
) -> torch.nn.Module:
    base = load_model(directory, dtype=torch.float32, device="cpu", quant=quant, storage=storage)
    model: Any = add_lora(base, r=4, alpha=8, dropout=0.0, targets="all-linear", seed=0, **lora)
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.02)
    if recompute:
        with warnings.catch_warnings():
            # a newer transformers calls it activation_checkpointing_enable
            warnings.filterwarnings("ignore", category=FutureWarning)
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    made: torch.nn.Module = model.train()
    return made


@pytest.mark.slow
def test_what_zero_3_shards_is_multiplied_as_if_whole(tiny: Path, tmp_path: Path) -> None:
    ranks = in_processes(
        f"{__name__}:kinds", {"kinds": KINDS, "model": tiny}, tmp_path / "ranks", size=2, bitsandbytes=True
    )
    batches, targets = make_batches()
    for name, kind in KINDS.items():
        model = make_kind(tiny, **kind | {"recompute": False})
        engine = TorchEngine(
            model,
            build_optimizer(
                trainable_parameters(model), OPTIM, device=CPU, vocabulary=vocabulary_weights(model)
            ),
            loss=summed_loss,
        )
        begin = whole(single_process(CPU), engine.state())
        engine.forward_backward(batches[:4], targets[0])
        gradients = {name: gradient.clone() for name, gradient in engine.gradients()}
        engine.reset()
        norms, end = train(engine, single_process(CPU), 0, 3), whole(single_process(CPU), engine.state())
        for found in (rank[name] for rank in ranks):
            assert distance(found["gradients"], gradients) < 1e-6, name
            assert found["norms"] == pytest.approx(norms, rel=1e-4), name
            assert apart(found["saved"].weights, end.weights, begin.weights) < 1e-4, name


def quantised(world: World, given: dict[str, Any]) -> dict[Any, list[float]]:
    """In one of several processes: losses of nf4 under DeepSpeed. A warning is an error, as in the tests
    on a GPU.
    """
    found = {}
    for stage, offload in given["cases"]:
        model = make_kind(given["model"], quant="nf4", storage=torch.bfloat16 if stage == 3 else None)
        engine = ZeroEngine(
            model, world=world, settings=make_settings(stage, world, offload), optim=OPTIM, loss=summed_loss
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # as the engine does
            warnings.filterwarnings(
                "ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger"
            )
            found[stage, offload] = losses_of(engine, world)
    return found


def losses_of(engine: Engine, world: World) -> list[float]:
    """Of three steps, and of what is measured after them, over all processes."""
    batches, targets = make_batches()
    losses = []
    for step in range(3):
        losses.append(
            sum(
                engine.forward_backward(
                    batches[4 * step : 4 * step + 4][world.rank :: world.size], targets[step]
                ).tolist()
            )
        )
        engine.step(1e-3, 1.0)
    return world.sum(
        [*losses, measure_batches(engine, batches[-4:][world.rank :: world.size], summed_loss)[0]]
    )


@pytest.mark.parametrize("size", [2, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_nf4_is_the_same_under_every_stage(size: int, tiny: Path, tmp_path: Path) -> None:
    cases = [(0, "none"), (1, "none"), (2, "none"), (3, "none"), (2, "optimizer"), (3, "all")]
    ranks = in_processes(
        f"{__name__}:quantised",
        {"cases": cases, "model": tiny},
        tmp_path / "ranks",
        size=size,
        bitsandbytes=True,
    )
    model = make_kind(tiny, quant="nf4")
    true = losses_of(
        TorchEngine(
            model,
            build_optimizer(
                trainable_parameters(model), OPTIM, device=CPU, vocabulary=vocabulary_weights(model)
            ),
            loss=summed_loss,
        ),
        single_process(CPU),
    )
    assert true[0] != true[1]
    for case in cases:
        assert ranks[0][case] == pytest.approx(true, rel=1e-6), case


GPU = [
    (*kind, stage, offload)
    for kind in (("none", "none"), ("lora", "none"), ("lora", "nf4"))
    for stage, offload in ((1, "none"), (2, "none"), (3, "none"), (2, "optimizer"), (3, "all"))
]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.filterwarnings("ignore:inner dimension")  # bitsandbytes', of a model this small
@pytest.mark.parametrize(("adapter", "quant", "stage", "offload"), GPU)
def test_on_a_gpu_it_trains_in_bf16_as_the_torch_engine_does(
    tiny: Path, adapter: str, quant: str, stage: int, offload: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOCAL_RANK", "DS_ACCELERATOR"):  # which the engine sets
        monkeypatch.delenv(name, raising=False)
    world = single_process(torch.device("cuda", 0))
    batches, targets = make_batches()
    full = adapter == "none"
    curves = []
    for sharded in (False, True):
        # ZeRO 3 takes a model from the host, a tensor at a time
        place = "cpu" if sharded and stage == 3 and quant == "none" else "cuda"
        storage = torch.bfloat16 if sharded and stage == 3 and quant == "nf4" else None
        model: Any = load_model(
            tiny, dtype=torch.float32 if full else torch.bfloat16, device=place, quant=quant, storage=storage
        )
        model = (
            model.train()
            if full
            else add_lora(model, r=4, alpha=8, dropout=0.0, targets="all-linear", seed=0).train()
        )
        autocast = torch.bfloat16 if full else None
        engine: Engine
        if sharded:
            engine = ZeroEngine(
                model,
                world=world,
                settings=make_settings(stage, world, offload, "cuda"),
                optim=OPTIM,
                autocast=autocast,
                loss=summed_loss,
            )
        else:
            engine = TorchEngine(
                model,
                build_optimizer(
                    trainable_parameters(model),
                    OPTIM,
                    device=world.device,
                    vocabulary=vocabulary_weights(model),
                ),
                autocast=autocast,
                loss=summed_loss,
            )
        seen: set[torch.dtype] = set()
        layer = next(module for name, module in model.named_modules() if name.endswith("q_proj"))
        layer.register_forward_hook(lambda _module, _args, out, seen=seen: seen.add(out.dtype))
        losses = []
        for step in range(6):
            found = engine.forward_backward(batches[4 * step : 4 * step + 4], targets[step]).tolist()
            losses.append(sum(found) / targets[step])
            assert engine.step(1e-3, 1.0).isfinite()
        held_out, count = measure_batches(engine, batches[-4:], summed_loss)
        assert engine.state().weights
        assert seen == {torch.bfloat16}
        curves.append([*losses, held_out / count])
    assert curves[0][0] != curves[0][-1]
    assert curves[1] == pytest.approx(curves[0], rel=1e-2)
