"""What a training can go through, on the engine of PyTorch and on DeepSpeed's, and how two of them are
held together.
"""

import math
import random
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from tests.train.conftest import make_pack
from tuner.config import deepspeed
from tuner.config.schema import Algo, Machine, Optim
from tuner.kernels.attention import IMPLEMENTATION, register_attention
from tuner.train.batch import Batch, collate, count_targets
from tuner.train.checkpoints import sharded, steps
from tuner.train.checkpoints.save import Saver
from tuner.train.deepspeed.engine import ZeroEngine
from tuner.train.deepspeed.settings import deepspeed_json
from tuner.train.distributed import World, single_process
from tuner.train.engine import Engine, State, TorchEngine, trainable_parameters
from tuner.train.held_out import measure_batches
from tuner.train.loss import summed_loss
from tuner.train.optimizers import build_optimizer, vocabulary_weights

OPTIM = Optim(lr=1e-3, weight_decay=0.01)
STEPS, HALF = 20, 16
WORDS, HIDDEN = 320, 32
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Saved:
    weights: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, torch.Tensor]


def make_model(adapter: str, hidden: int = HIDDEN) -> torch.nn.Module:
    """The same in every process: a Llama of two layers, with a tied head, and with tensors of which
    processes can't have equal parts.
    """
    torch.manual_seed(0)
    register_attention()
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=hidden,
        intermediate_size=hidden + 49,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=1.13 / hidden**0.5,
        attn_implementation=IMPLEMENTATION,
        use_cache=False,
    )
    model: torch.nn.Module = LlamaForCausalLM(config)
    if adapter == "lora":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT reads a renamed property
            model = get_peft_model(
                model,
                LoraConfig(
                    r=3 * hidden // HIDDEN, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM"
                ),
            )
        for name, p in model.named_parameters():  # B starts at zero, which would hide A's gradient
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.02)
    return model.train()


def torch_engine(adapter: str, autocast: torch.dtype | None = None, hidden: int = HIDDEN) -> TorchEngine:
    model = make_model(adapter, hidden)
    return TorchEngine(
        model,
        build_optimizer(trainable_parameters(model), OPTIM, device=CPU, vocabulary=vocabulary_weights(model)),
        autocast=autocast,
        loss=summed_loss,
    )


def zero_engine(
    adapter: str,
    world: World,
    stage: int,
    offload: str = "none",
    autocast: torch.dtype | None = None,
    hidden: int = HIDDEN,
    disk: Path | None = None,
) -> ZeroEngine:
    settings = make_settings(stage, world, offload, disk=disk)
    return ZeroEngine(
        make_model(adapter, hidden),
        world=world,
        settings=settings,
        optim=OPTIM,
        autocast=autocast,
        loss=summed_loss,
    )


def make_batches() -> tuple[list[Batch], list[int]]:
    """Four micro batches for each of some steps, and the targets of a step."""
    draw = random.Random(11)
    packs = [
        replace(pack, ids=pack.ids % WORDS) for pack in (make_pack(draw, index) for index in range(4 * STEPS))
    ]
    return [collate([pack]) for pack in packs], [
        count_targets(packs[4 * n : 4 * n + 4]) for n in range(STEPS)
    ]


def train(engine: Engine, world: World, first: int, last: int) -> list[float]:
    """Steps `first` to `last`, each process with its share of the micro batches; the norms of the
    gradients.
    """
    batches, targets = make_batches()
    norms = []
    for step in range(first, last):
        engine.forward_backward(batches[4 * step : 4 * step + 4][world.rank :: world.size], targets[step])
        norms.append(engine.step(1e-3, 1.0).item())
    return norms


def whole(world: World, state: State) -> Saved:
    """The state of all processes together, whole."""
    states: list[Any] = [state]
    if world.size > 1:
        states = [None] * world.size
        dist.all_gather_object(states, state)
    shapes = {name: shape for one in states for name, shape in one.shapes.items()}
    made: dict[str, dict[str, torch.Tensor]] = {}
    for kind in ("weights", "optimizer"):
        made[kind] = {
            name: value for one in states for name, value in getattr(one, kind).items() if "@" not in name
        }
        parts: dict[str, list[tuple[int, torch.Tensor]]] = {}
        for one in states:
            for path, value in getattr(one, kind).items():
                if "@" in path:
                    parts.setdefault(path.split("@")[0], []).append((int(path.split("@")[1]), value))
        for name, found in parts.items():
            made[kind][name] = torch.cat(
                [value for _, value in sorted(found, key=lambda part: part[0])]
            ).reshape(shapes[name])
    return Saved(
        **{kind: {name: value.clone() for name, value in tensors.items()} for kind, tensors in made.items()}
    )


def same(one: Saved, other: Saved) -> bool:
    """Whether two states are equal to the bit."""
    pairs = ((one.weights, other.weights), (one.optimizer, other.optimizer))
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)


def distance(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of a tensor's, relative in the 2-norm."""
    assert one.keys() == other.keys()
    return max(
        float((one[name] - other[name]).norm() / other[name].norm().clamp(min=1e-30)) for name in other
    )


def apart(
    end: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor], begin: Mapping[str, torch.Tensor]
) -> float:
    """How far two trainings ended from each other, by how far the second went, over all tensors together."""
    assert end.keys() == other.keys() == begin.keys()
    gap = sum(float((end[name] - other[name]).double().pow(2).sum()) for name in end)
    way = sum(float((other[name] - begin[name]).double().pow(2).sum()) for name in end)
    return math.sqrt(gap / way)


def live(world: World, given: dict[str, Any]) -> dict[str, Any]:
    """In one of several processes: a training with all that can happen to it, for each case."""
    batches, targets = make_batches()
    lives: dict[str, dict[str, Any]] = {}
    for name, (adapter, stage, offload) in given["cases"].items():
        engine = zero_engine(adapter, world, stage, offload, hidden=given["hidden"], disk=given.get("disk"))
        losses = [
            loss
            for batch in batches[:4][world.rank :: world.size]
            for loss in engine.forward_backward([batch], targets[0]).tolist()
        ]
        gradients = {name: gradient.clone() for name, gradient in engine.gradients()}
        with pytest.raises(RuntimeError, match="step or reset"):
            engine.forward_backward(batches[:1], targets[0])
        engine.reset()
        measured = measure_batches(engine, batches[:4][world.rank :: world.size], summed_loss)
        norms = train(engine, world, 0, HALF)
        half = whole(world, engine.state())
        with Saver(given["out"] / name, rank=world.rank, of=world.size) as saver:
            world.barrier()  # the first process has removed what it found there
            saver.save(engine.state(), step=HALF, tokens=0, scores={}, optimizer=True)

        p = next(reversed(engine.named.values()))
        hook = p.register_hook(
            lambda gradient: gradient * (float("inf") if world.rank == world.size - 1 else 1.0)
        )  # type: ignore[no-untyped-call]
        engine.forward_backward(batches[:4][world.rank :: world.size], targets[0])
        hook.remove()
        poisoned = engine.step(1e-3, 1.0).item()
        unharmed = same(whole(world, engine.state()), half)

        norms += train(engine, world, HALF, STEPS)
        end = whole(world, engine.state())
        engine.load(sharded.open_step(steps.saved_steps(given["out"] / name)[-1]))
        restored = same(whole(world, engine.state()), half)
        train(engine, world, HALF, STEPS)
        again = same(whole(world, engine.state()), end)
        engine.load(given["half"][adapter])
        train(engine, world, HALF, STEPS)
        continued = whole(world, engine.state())
        engine.reset()
        state = whole(world, engine.state())
        forgot = same(replace(state, optimizer={}), replace(continued, optimizer={})) and not any(
            value.any() for value in state.optimizer.values()
        )
        lives[name] = {"losses": losses, "measured": measured, "norms": norms, "poisoned": poisoned}
        lives[name] |= {"unharmed": unharmed, "restored": restored, "again": again, "forgot": forgot}
        if world.first:
            lives[name] |= {"gradients": gradients, "half": half, "end": end, "continued": continued}
    return lives


def make_settings(
    stage: int, world: World, offload: str = "none", device: str = "cpu", disk: Path | None = None
) -> dict[str, Any]:
    machine = Machine(engine="deepspeed", zero=stage, offload=offload, offload_path=disk and str(disk))  # type: ignore[arg-type]
    case = deepspeed.combination_of(machine, Algo(optim=OPTIM), processes=world.size)
    assert deepspeed.why_refused(case) is None
    # several groups even of a small model
    own = {"zero_optimization": {"sub_group_size": 10**6}} if disk else None
    return deepspeed_json(case, device=device, trainable=10**6, hidden=HIDDEN, largest=10**6, own=own)


def true_life(adapter: str, hidden: int = HIDDEN) -> dict[str, Any]:
    """What the torch engine makes of the same."""
    batches, targets = make_batches()
    engine = torch_engine(adapter, hidden=hidden)
    losses = engine.forward_backward(batches[:4], targets[0]).tolist()
    gradients = {name: gradient.clone() for name, gradient in engine.gradients()}
    engine.reset()
    begin, measured = (
        whole(single_process(CPU), engine.state()),
        measure_batches(engine, batches[:4], summed_loss),
    )
    norms = train(engine, single_process(CPU), 0, HALF)
    half = whole(single_process(CPU), engine.state())
    norms += train(engine, single_process(CPU), HALF, STEPS)
    end = whole(single_process(CPU), engine.state())
    found = {"losses": losses, "gradients": gradients, "measured": measured, "norms": norms}
    return found | {"begin": begin, "half": half, "end": end}


def hold_to(true: dict[str, Any], lives: list[dict[str, Any]], name: str) -> None:
    """Compare what processes went through with what the torch engine did."""
    first, begin, end, size = lives[0], true["begin"].weights, true["end"], len(lives)
    assert [life["losses"] for life in lives] == [
        pytest.approx(true["losses"][rank::size], rel=1e-6) for rank in range(size)
    ], name
    assert distance(first["gradients"], true["gradients"]) < 1e-6, name
    assert sum(life["measured"][0] for life in lives) == pytest.approx(true["measured"][0], rel=1e-6), name
    assert sum(life["measured"][1] for life in lives) == true["measured"][1], name
    assert all(life["norms"] == first["norms"] for life in lives), name
    assert first["norms"] == pytest.approx(true["norms"], rel=1e-4), name
    assert apart(first["end"].weights, end.weights, begin) < 1e-4, name
    assert first["end"].optimizer.keys() == end.optimizer.keys(), name
    assert not any(math.isfinite(life["poisoned"]) for life in lives), (
        f"{name}: a gradient that is not finite is told by all"
    )
    assert all(life["unharmed"] for life in lives), f"{name}: and nothing is applied"
    assert all(life["restored"] and life["again"] for life in lives), (
        f"{name}: a step that is gone on from gives the same bits"
    )
    assert all(life["forgot"] for life in lives), f"{name}: reset leaves the weights and forgets the rest"
    assert apart(first["continued"].weights, end.weights, begin) < 1e-4, (
        f"{name}: it goes on from the torch engine's step"
    )


class Sometimes(torch.nn.Module):
    """A layer that takes part or does not, as an expert with or without tokens."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer, self.idle = layer, False

    def forward(self, hidden: torch.Tensor, **others: Any) -> torch.Tensor:
        found: torch.Tensor = hidden if self.idle else self.layer(hidden, **others)
        return found


def with_idle_layer(hidden: int = HIDDEN) -> tuple[torch.nn.Module, Sometimes]:
    model: Any = make_model("none", hidden)
    layer = model.model.layers[0] = Sometimes(model.model.layers[0])
    return model, layer


def train_idle(engine: Any, layer: Sometimes, world: World) -> list[float]:
    """Four steps: the layer has no gradient in the second, and in the fourth none before its last micro
    batch.
    """
    batches, targets = make_batches()
    norms = []
    for step in range(4):
        own = batches[4 * step : 4 * step + 4][world.rank :: world.size]
        for number, batch in enumerate(own):
            layer.idle = step == 1 or (step == 3 and number < len(own) - 1)
            engine.forward_backward([batch], targets[step])
        norms.append(engine.step(1e-3, 1.0).item())
    return norms


def idles(world: World, given: dict[str, Any]) -> dict[tuple[int, str], Any]:
    found = {}
    for stage, offload in given["cases"]:
        model, layer = with_idle_layer(given["hidden"])
        engine = ZeroEngine(
            model,
            world=world,
            settings=make_settings(stage, world, offload, disk=given.get("disk")),
            optim=OPTIM,
            loss=summed_loss,
        )
        found[stage, offload] = train_idle(engine, layer, world), whole(world, engine.state())
    return found


def fill_gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad


def hold_to_idle(norms: list[float], saved: Saved, name: str, hidden: int = HIDDEN) -> None:
    model, layer = with_idle_layer(hidden)
    optimizer = build_optimizer(
        trainable_parameters(model), OPTIM, device=CPU, vocabulary=vocabulary_weights(model)
    )
    # Shards step on zeros where there is no gradient: weights decay, and moments fade.
    optimizer.register_step_pre_hook(fill_gradients)
    engine = TorchEngine(model, optimizer, loss=summed_loss)
    begin = whole(single_process(CPU), engine.state()).weights
    assert norms == pytest.approx(train_idle(engine, layer, single_process(CPU)), rel=1e-4), name
    assert apart(saved.weights, whole(single_process(CPU), engine.state()).weights, begin) < 1e-4, name
