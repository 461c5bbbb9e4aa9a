import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import Parameter

from tuner.config.schema import Optim
from tuner.errors import ConfigError
from tuner.models.load import load_model
from tuner.train import optimizers
from tuner.train.optimizers import (
    build_optimizer,
    moments,
    parameter_groups,
    reset_moments,
    restore_moments,
    set_lr,
    vocabulary_weights,
)

SHAPES = {
    "embed.weight": (96, 64),
    "layer.weight": (64, 130),
    "layer.lora_A.weight": (4, 64),
    "layer.lora_B.weight": (130, 4),
    "norm.weight": (64,),
}
ENDS = frozenset({"embed.weight"})
LR = 1e-3
CPU = torch.device("cpu")
HERE = ["adamw", "adamw_8bit", "adafactor", "muon"]
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
EVERYWHERE = [(name, "cpu") for name in HERE] + [
    pytest.param(name, "cuda", marks=gpu) for name in (*HERE, "paged_adamw", "paged_adamw_8bit")
]


def parameters(device: str = "cpu", shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, Parameter]:
    """Random but for B, which begins at zero as PEFT has it."""
    draw = torch.Generator().manual_seed(0)
    values = {
        name: torch.zeros(shape) if "lora_B" in name else torch.randn(shape, generator=draw) * 0.05
        for name, shape in shapes.items()
    }
    return {name: Parameter(value.to(device)) for name, value in values.items()}


def gradients(steps: range, shapes: dict[str, tuple[int, ...]] = SHAPES) -> Iterator[dict[str, torch.Tensor]]:
    for step in steps:
        draw = torch.Generator().manual_seed(step + 1)
        yield {name: torch.randn(shape, generator=draw) * 1e-3 for name, shape in shapes.items()}


def follow(
    named: dict[str, Parameter],
    optimizer: torch.optim.Optimizer,
    steps: range,
    shapes: dict[str, tuple[int, ...]] = SHAPES,
) -> None:
    for step, found in zip(steps, gradients(steps, shapes), strict=True):
        for name, p in named.items():
            p.grad = found[name].to(p.device)
        set_lr(optimizer, LR / (1 + step))
        optimizer.step()
        optimizer.zero_grad()


def make(
    named: dict[str, Parameter], name: str, lora_plus: float | None = None, weight_decay: float = 0.1
) -> torch.optim.Optimizer:
    optim = Optim(name=name, weight_decay=weight_decay)  # type: ignore[arg-type]
    return build_optimizer(
        named, optim, device=next(iter(named.values())).device, lora_plus=lora_plus, vocabulary=ENDS
    )


def moved(name: str, lora_plus: float | None = None, weight_decay: float = 0.0) -> dict[str, torch.Tensor]:
    """What the first step subtracts from each parameter, as multiples of its learning rate."""
    named = parameters()
    before = {name: p.detach().clone() for name, p in named.items()}
    follow(named, make(named, name, lora_plus, weight_decay), range(1))
    return {name: (before[name] - p.detach()) / LR for name, p in named.items()}


def rms(tensor: torch.Tensor) -> float:
    return tensor.square().mean().sqrt().item()


def test_adamw_is_the_formula() -> None:
    """Algorithm 2 of arXiv:1711.05101, in fp64."""
    named = parameters()
    follow(named, make(named, "adamw"), range(12))
    for name, start in parameters().items():
        x = start.detach().double()
        m, v = torch.zeros_like(x), torch.zeros_like(x)
        for step, found in enumerate(gradients(range(12))):
            g, t = found[name].double(), step + 1
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            decay = 0.1 if x.ndim == 2 else 0.0
            x = x - LR / t * ((m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8) + decay * x)
        assert torch.allclose(named[name].detach().double(), x, rtol=1e-6, atol=1e-8), name


def test_adafactor_is_the_formula() -> None:
    """Algorithm 4 of arXiv:1804.04235 with its decay 1 - t^-0.8, clipping at 1, and the learning rate for
    the relative step, in fp64.
    """
    named = parameters()
    optimizer = make(named, "adafactor")
    follow(named, optimizer, range(12))
    for name, start in parameters().items():
        x = start.detach().double()
        v = r = c = torch.zeros((), dtype=torch.float64)
        for step, found in enumerate(gradients(range(12))):
            g, t = found[name].double(), step + 1
            beta = 1 - t**-0.8
            if g.ndim == 2:
                r = beta * r + (1 - beta) * g.square().sum(1, keepdim=True)
                c = beta * c + (1 - beta) * g.square().sum(0, keepdim=True)
                v = r * c / r.sum()
                x = x * (1 - LR / t * 0.1)
            else:
                v = beta * v + (1 - beta) * g.square()
            u = g / v.sqrt()
            x = x - LR / t * u / max(1.0, rms(u))
        assert torch.allclose(named[name].detach().double(), x, rtol=1e-5, atol=1e-7), name


def test_adafactor_remembers_a_row_and_a_column() -> None:
    named = parameters()
    optimizer = make(named, "adafactor")
    follow(named, optimizer, range(1))
    found = {
        path: tuple(value.shape)
        for path, value in moments(optimizer, named).items()
        if not path.endswith("/step")
    }
    assert found == {
        f"{name}/{moment}": size
        for name, shape in SHAPES.items()
        for moment, size in (
            {"row_var": (shape[0], 1), "col_var": (1, shape[1])} if len(shape) == 2 else {"variance": shape}
        ).items()
    }


def test_muon_makes_all_directions_of_a_matrix_equally_long() -> None:
    """The update is about U V^T of the momentum's U S V^T, times 0.2 sqrt(max(rows, columns))
    (arXiv:2502.16982, section 2.2).
    """
    steps, (first,) = moved("muon"), gradients(range(1))
    for name in ("layer.weight", "layer.lora_A.weight", "layer.lora_B.weight"):
        u, s, v = torch.linalg.svd(first[name], full_matrices=False)
        along = (u.T @ steps[name] @ v.T) / (0.2 * math.sqrt(max(SHAPES[name])))
        assert s.max() / s.min() > 1.2, "the gradient itself is no such matrix"
        assert 0.65 < along.diagonal().min() < along.diagonal().max() < 1.25
        assert (along - along.diagonal().diag()).abs().max() < 0.05
    assert rms(steps["layer.weight"]) == pytest.approx(0.2, rel=0.15)


def test_muon_leaves_embeddings_and_vectors_to_adamw() -> None:
    muon, adamw = moved("muon"), moved("adamw")
    for name in ("embed.weight", "norm.weight"):
        assert torch.equal(muon[name], adamw[name])
        assert rms(adamw[name]) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("name", HERE)
def test_the_second_matrix_of_an_adapter_learns_faster_by_lora_plus(name: str) -> None:
    plain, plus = moved(name), moved(name, lora_plus=16.0)
    for parameter in SHAPES:
        ratio = 16.0 if "lora_B" in parameter else 1.0
        assert torch.allclose(plus[parameter], plain[parameter] * ratio, rtol=1e-3, atol=1e-3), parameter


@pytest.mark.parametrize("name", HERE)
def test_every_step_is_about_as_long_as_adamws(name: str) -> None:
    """So that a learning rate means the same: a B that begins at zero moves too. AdamW's is 1 at first,
    and 0.2 to 0.4 later (arXiv:2502.16982).
    """
    for parameter, step in moved(name).items():
        assert (0.15 if name == "muon" else 0.8) < rms(step) < 1.2, parameter


@pytest.mark.parametrize("name", HERE)
def test_matrices_decay_and_vectors_do_not(name: str) -> None:
    plain, decaying, start = moved(name), moved(name, weight_decay=0.5), parameters()
    for parameter, p in start.items():
        expected = 0.5 * p.detach() if p.ndim == 2 else torch.zeros_like(p)
        assert torch.allclose(decaying[parameter] - plain[parameter], expected, atol=1e-3), parameter


def test_groups_are_few() -> None:
    assert [
        (g["weight_decay"], g["scale"], len(g["params"]))
        for g in parameter_groups(parameters(), weight_decay=0.1, lora_plus=2.0)
    ] == [
        (0.1, 1.0, 3),
        (0.1, 2.0, 1),
        (0.0, 1.0, 1),
    ]
    assert len(parameter_groups(parameters(), weight_decay=0.0, lora_plus=None)) == 1


@pytest.mark.parametrize(("name", "device"), EVERYWHERE)
def test_steps_saved_and_continued_are_the_same_bits(name: str, device: str, tmp_path: Path) -> None:
    """Large enough to page: 100,000 numbers is where bitsandbytes begins to."""
    shapes = SHAPES | ({"wide.weight": (400, 300)} if device == "cuda" else {})
    whole, half, other = (parameters(device, shapes) for _ in range(3))
    one, two, three = (make(named, name, lora_plus=4.0) for named in (whole, half, other))
    follow(whole, one, range(8), shapes)
    follow(half, two, range(4), shapes)
    save_file(moments(two, half), tmp_path / "optimizer.safetensors")
    follow(other, three, range(2, 3), shapes)  # what is there is replaced
    for a, b in zip(other.values(), half.values(), strict=True):
        a.data.copy_(b.data)
    restore_moments(three, other, load_file(tmp_path / "optimizer.safetensors"))
    follow(other, three, range(4, 8), shapes)
    assert all(torch.equal(whole[key], other[key]) for key in shapes)
    expected, found = moments(one, whole), moments(three, other)
    assert expected.keys() == found.keys()
    for path, value in expected.items():
        assert torch.equal(value, found[path]), path
        assert (value.dtype, value.device) == (found[path].dtype, found[path].device), path


@pytest.mark.parametrize(("name", "device"), EVERYWHERE)
def test_what_is_forgotten_leaves_no_trace(name: str, device: str) -> None:
    named, fresh = parameters(device), parameters(device)
    optimizer = make(named, name)
    follow(named, optimizer, range(3))
    reset_moments(optimizer)
    for p, q in zip(named.values(), fresh.values(), strict=True):
        p.data.copy_(q.data)
    follow(named, optimizer, range(3))
    follow(fresh, make(fresh, name), range(3))
    assert all(torch.equal(p, fresh[key]) for key, p in named.items())


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("adamw_8bit", "cpu"),
        *(
            pytest.param(f"{page}adamw{bits}", "cuda", marks=gpu)
            for page, bits in (("", "_8bit"), ("paged_", ""), ("paged_", "_8bit"))
        ),
    ],
)
def test_bitsandbytes_goes_where_adamw_goes(name: str, device: str) -> None:
    pytest.importorskip("bitsandbytes")
    exact, other = parameters(device), parameters(device)
    start = {key: p.detach().clone() for key, p in exact.items()}
    follow(exact, make(exact, "adamw"), range(20))
    follow(other, make(other, name), range(20))
    for key, p in exact.items():
        tolerance = 0.05 if "8bit" in name and p.numel() >= 4096 and key not in ENDS else 1e-3
        assert (p - other[key]).norm() < tolerance * (p - start[key]).norm(), key


def test_eight_bits_are_kept_of_large_matrices_of_layers_only() -> None:
    pytest.importorskip("bitsandbytes")
    named = parameters()
    optimizer = make(named, "adamw_8bit")
    follow(named, optimizer, range(1))
    found = moments(optimizer, named)
    assert {name for name in SHAPES if found[f"{name}/state1"].dtype == torch.uint8} == {"layer.weight"}
    assert not [path for path in found if "qmap" in path]


@pytest.mark.parametrize("name", ["paged_adamw", "paged_adamw_8bit"])
def test_nothing_pages_on_the_processor(name: str) -> None:
    pytest.importorskip("bitsandbytes")
    with pytest.raises(
        ConfigError, match=rf"computes on the cpu\. Set algo\.optim\.name={name.removeprefix('paged_')},"
    ):
        make(parameters(), name)


def test_without_bitsandbytes_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda _: None)
    with pytest.raises(
        ConfigError,
        match=r"algo\.optim\.name=adamw_8bit is computed by bitsandbytes.*pip install 'bitsandbytes>=0\.50'",
    ):
        make(parameters(), "adamw_8bit")


def test_moments_of_other_parameters_are_refused() -> None:
    named = parameters()
    optimizer = make(named, "adamw")
    with pytest.raises(ValueError, match=r"gone\.weight does not train here"):
        restore_moments(optimizer, named, {"gone.weight/exp_avg": torch.zeros(2)})


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="unknown optimizer sgd"):
        make(parameters(), "sgd")


def test_ends_are_embeddings_and_head_but_no_adapters(tiny: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = load_model(tiny, dtype=torch.float32, device="cpu")
    assert vocabulary_weights(model) == {"model.embed_tokens.weight"}  # tied
    model.lm_head.weight, model.config.tie_word_embeddings = (
        Parameter(model.lm_head.weight.detach().clone()),
        False,
    )
    assert vocabulary_weights(model) == {"model.embed_tokens.weight", "lm_head.weight"}
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    assert vocabulary_weights(adapted) == {
        "base_model.model.model.embed_tokens.weight",
        "base_model.model.lm_head.base_layer.weight",
    }


def test_muon_takes_both_matrices_of_adapters(tiny: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        load_model(tiny, dtype=torch.float32, device="cpu"),
        LoraConfig(r=2, target_modules=["q_proj"], use_dora=True),
    )
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = build_optimizer(named, Optim(name="muon"), device=CPU, vocabulary=vocabulary_weights(model))
    kinds = {
        type(part).__name__: sum(len(group["params"]) for group in part.param_groups)
        for part in optimizer.parts
    }  # type: ignore[attr-defined]
    assert kinds == {"Muon": 4, "AdamW": 2}  # A and B, and DoRA's magnitudes, of two layers
