"""Adapters must be PEFT's, begin at the base, and be usable on the plain base whatever they began with."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.models.tiny import SIZES
from tuner.errors import ConfigError, StageError
from tuner.models import load
from tuner.models.checkpoint.safetensors import Checkpoint
from tuner.models.full_finetune import count_trainable
from tuner.models.lora.add import add_lora
from tuner.models.lora.export import write_adapter
from tuner.models.lora.initial import decompose, load_adapter, write_initial
from tuner.models.lora.layers import adapted_layers, adapter_config
from tuner.models.targets import target_modules

# PEFT asks transformers by a name that is going away.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

IDS = torch.arange(5, 25)[None]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny-llama")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.2)).save_pretrained(directory)
    return directory


def lora(base: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> PeftModel:
    model = load.load_model(base, dtype=dtype, device="cpu")
    return add_lora(
        model, **{"r": 4, "alpha": 6.0, "dropout": 0.0, "targets": "all-linear", "seed": 0} | settings
    )


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(
            input_ids=IDS, position_ids=torch.arange(IDS.shape[1])[None]
        ).logits
    return found


def test_lora(tiny: Path) -> None:
    base = load.load_model(tiny, dtype=torch.bfloat16, device="cpu")
    model = add_lora(base, r=4, alpha=8.0, dropout=0.0, targets="all-linear", seed=3)
    trains = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert count_trainable(model) == sum(p.numel() for p in trains.values())
    assert len(trains) == 2 * 7 * 2
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in trains.items())
    assert not any("lm_head" in name for name in trains)
    again = add_lora(
        load.load_model(tiny, dtype=torch.float32, device="cpu"),
        r=4,
        alpha=8.0,
        dropout=0.0,
        targets="all-linear",
        seed=3,
    )
    assert all(
        torch.equal(p, dict(again.named_parameters())[name].bfloat16().float()) for name, p in trains.items()
    )
    assert adapter_config(model) == adapter_config(again)
    assert adapter_config(model)["lora_alpha"] == 8


@pytest.mark.parametrize("layers", [2, 4])
def test_all_linear_is_written_as_peft_writes_it(layers: int) -> None:
    config = LlamaConfig(**SIZES | {"num_hidden_layers": layers})
    ours = add_lora(LlamaForCausalLM(config), r=2, alpha=2, dropout=0.0, targets="all-linear", seed=0)
    theirs = get_peft_model(
        LlamaForCausalLM(config),
        LoraConfig(r=2, lora_alpha=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    assert adapter_config(ours) == adapter_config(theirs)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]


def test_targets(tiny: Path) -> None:
    model = add_lora(
        load.load_model(tiny, dtype=torch.float32, device="cpu"),
        r=2,
        alpha=2,
        dropout=0.0,
        targets="q_proj",
        seed=0,
    )
    assert adapter_config(model)["target_modules"] == ["q_proj"]
    with pytest.raises(
        ConfigError, match=r"algo\.targets=.*nope.*linear layers are down_proj, gate_proj, k_proj, lm_head"
    ):
        add_lora(
            load.load_model(tiny, dtype=torch.float32, device="cpu"),
            r=2,
            alpha=2,
            dropout=0.0,
            targets=("nope",),
            seed=0,
        )
    with pytest.raises(
        ConfigError, match=r"algo\.targets=\[q is neither a module's name nor a regular expression"
    ):
        add_lora(
            load.load_model(tiny, dtype=torch.float32, device="cpu"),
            r=2,
            alpha=2,
            dropout=0.0,
            targets="[q",
            seed=0,
        )
    with pytest.raises(ConfigError, match=r"algo\.targets=self_attn can't have adapters"):
        add_lora(
            load.load_model(tiny, dtype=torch.float32, device="cpu"),
            r=2,
            alpha=2,
            dropout=0.0,
            targets="self_attn",
            seed=0,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("init", ["default", "gaussian", "orthogonal"])
def test_dora_begins_at_the_base(tiny: Path, dtype: torch.dtype, init: str) -> None:
    base = load.load_model(tiny, dtype=dtype, device="cpu")
    tuned = lora(tiny, dtype, dora=True, init=init)
    assert all(p.dtype == torch.float32 for p in tuned.parameters() if p.requires_grad)
    assert sum("magnitude" in name for name, p in tuned.named_parameters() if p.requires_grad) == 14
    if init == "orthogonal":  # its product is zero to rounding
        torch.testing.assert_close(
            logits(tuned), logits(base), atol=1e-5 if dtype == torch.float32 else 0.05, rtol=0
        )
    else:
        assert torch.equal(logits(tuned), logits(base))


@pytest.mark.parametrize("init", ["default", "gaussian", "orthogonal", "olora", "pissa", "pissa_niter_3"])
def test_first_values_are_those_of_the_seed(tiny: Path, init: str) -> None:
    first, again, other = (get_peft_model_state_dict(lora(tiny, init=init, seed=seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = any(not torch.equal(first[name], other[name]) for name in first)
    assert drawn is (init not in ("olora", "pissa"))  # these two are what the weight says


def test_gaussian_and_orthogonal_are_what_they_are_called(tiny: Path) -> None:
    for name, layer in adapted_layers(lora(tiny, r=16, init="gaussian")):
        assert layer.lora_A["default"].weight.std().item() == pytest.approx(1 / 16, rel=0.15), name
        assert not layer.lora_B["default"].weight.any()
    for name, layer in adapted_layers(lora(tiny, torch.bfloat16, r=8, init="orthogonal")):
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert torch.linalg.matrix_rank(a) == torch.linalg.matrix_rank(b) == 4, name
        assert (b @ a).norm() < 1e-6 * b.norm() * a.norm()


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("init", ["olora", "pissa"])
def test_parts_of_the_weight_are_those_that_peft_takes(tiny: Path, init: str, rslora: bool) -> None:
    ours = dict(adapted_layers(lora(tiny, init=init, rslora=rslora)))
    plain = LlamaForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=target_modules(plain, "all-linear"),
        task_type="CAUSAL_LM",
        init_lora_weights=init,
        use_rslora=rslora,
    )
    for name, theirs in adapted_layers(get_peft_model(plain, config)):
        layer = ours[name]
        torch.testing.assert_close(
            layer.get_delta_weight("default"), theirs.get_delta_weight("default"), atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(layer.base_layer.weight, theirs.base_layer.weight, atol=1e-5, rtol=1e-4)
        for half in ("lora_A", "lora_B"):
            torch.testing.assert_close(
                getattr(layer, half)["default"].weight.abs(),
                getattr(theirs, half)["default"].weight.abs(),
                atol=1e-4,
                rtol=1e-3,
            )


def test_power_iterations_come_near_the_largest_singular_values() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = (
        torch.randn(60, 40, generator=generator)
        @ torch.diag(0.8 ** torch.arange(40.0))
        @ torch.randn(40, 50, generator=generator)
    )
    best = torch.linalg.svdvals(weight)[:4].square().sum()
    a, b = decompose(weight, 4, "pissa_niter_8", scale=0.5, generator=generator)
    assert (0.5 * (b @ a)).square().sum() == pytest.approx(best.item(), rel=1e-3)
    few = decompose(weight, 4, "pissa_niter_0", scale=0.5, generator=torch.Generator().manual_seed(0))
    assert 0.5 * best < (0.5 * (few[1] @ few[0])).square().sum() < best


def learn(model: PeftModel) -> None:
    """Move what trains."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(("rslora", "dora"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("init", ["olora", "pissa", "pissa_niter_2"])
def test_what_began_as_a_part_of_the_base_is_handed_on_for_the_plain_base(
    tiny: Path, tmp_path: Path, init: str, rslora: bool, dora: bool
) -> None:
    plain, tuned = (
        logits(load.load_model(tiny, dtype=torch.float32, device="cpu")),
        lora(tiny, init=init, rslora=rslora, dora=dora),
    )
    torch.testing.assert_close(logits(tuned), plain, atol=1e-4, rtol=1e-4)
    write_initial(tuned, tmp_path / "initial.safetensors")
    learn(tuned)
    save_file(get_peft_model_state_dict(tuned), tmp_path / "weights.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter_config(tuned)), encoding="utf-8")
    (tmp_path / "out").mkdir()
    weights = Checkpoint([tmp_path / "weights.safetensors"])
    write_adapter(
        weights,
        tmp_path / "adapter_config.json",
        tmp_path / "out",
        "org/name",
        initial=tmp_path / "initial.safetensors",
    )
    loaded = PeftModel.from_pretrained(
        LlamaForCausalLM.from_pretrained(tiny, dtype=torch.float32), tmp_path / "out"
    )
    assert (logits(loaded) - plain).abs().max() > 0.1
    torch.testing.assert_close(logits(loaded), logits(tuned), atol=1e-4, rtol=1e-4)
    merged = load.load_tuned(tiny, tmp_path / "out", dtype=torch.float32, device="cpu")
    for name, layer in adapted_layers(loaded):
        layer.merge()
        assert torch.equal(
            layer.base_layer.weight.bfloat16().float(), merged.get_parameter(f"{name}.weight")
        ), name


def test_without_the_first_values_the_difference_is_unknown(tiny: Path, tmp_path: Path) -> None:
    tuned = lora(tiny, init="pissa")
    write_initial(tuned, tmp_path / "initial.safetensors")
    weights = load_file(tmp_path / "initial.safetensors")
    save_file(weights, tmp_path / "weights.safetensors")
    save_file(
        {name: tensor for name, tensor in weights.items() if "layers.1." not in name},
        tmp_path / "initial.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter_config(tuned)), encoding="utf-8")
    with pytest.raises(
        StageError, match=r"values with which .*layers\.1\.mlp\.down_proj\.lora_A\.weight began are lost"
    ):
        write_adapter(
            Checkpoint([tmp_path / "weights.safetensors"]),
            tmp_path / "adapter_config.json",
            tmp_path,
            "",
            initial=tmp_path / "initial.safetensors",
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_training_that_goes_on_takes_out_what_it_took_out_when_it_began(
    tiny: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    began = lora(tiny, dtype, init="pissa_niter_1", seed=1)
    write_initial(began, tmp_path / "initial.safetensors")
    again = lora(tiny, dtype, init="pissa_niter_1", seed=2, first=tmp_path / "initial.safetensors")
    for (name, a), b in zip(began.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"init": "pizza"}, r"algo\.lora_init is 'pizza', but must be one of .* Did you mean pissa\?"),
        ({"init": "orthogonal", "r": 3}, r"algo\.r is 3: make it even"),
        (
            {"init": "pissa", "r": 40},
            r"algo\.r=40 is more than model\.layers\.0\.self_attn\.q_proj can be taken apart into",
        ),
    ],
)
def test_inits_that_can_not_be(tiny: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        lora(tiny, **settings)


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True:UserWarning")
def test_a_head_that_is_the_embedding_keeps_its_values() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True))
    before = model.lm_head.weight.clone()
    with pytest.raises(ConfigError, match=r"algo\.lora_init=olora would change the embedding with lm_head"):
        add_lora(model, r=2, alpha=2, dropout=0.0, targets="lm_head", seed=0, init="olora")
    assert torch.equal(model.get_input_embeddings().weight, before)


@pytest.mark.parametrize(
    ("quant", "settings", "says"),
    [
        ("nf4", {"init": "olora"}, r"algo\.lora_init=olora takes a part out of the base, .* 4 or 8 bits"),
        ("int8", {"init": "pissa"}, r"algo\.lora_init=pissa takes a part out of the base, .* 4 or 8 bits"),
        ("int8", {"dora": True}, r"algo\.dora=true .* in 8 bits: take algo\.quant=nf4 or none"),
    ],
)
def test_what_a_quantised_base_does_not_allow(
    tiny: Path, quant: str, settings: dict[str, Any], says: str
) -> None:
    pytest.importorskip("bitsandbytes")
    model = load.load_model(tiny, dtype=torch.float32, device="cpu", quant=quant)
    with pytest.raises(ConfigError, match=says):
        add_lora(
            model, **{"r": 2, "alpha": 2.0, "dropout": 0.0, "targets": "all-linear", "seed": 0} | settings
        )


@pytest.mark.parametrize("settings", [{"dora": True}, {"rslora": True, "init": "orthogonal"}])
def test_all_that_trains_goes_on(tiny: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    made = lora(tiny, **settings)
    learn(made)
    made.save_pretrained(tmp_path)
    again = lora(tiny, seed=5, **settings)
    load_adapter(again, tmp_path)
    for (name, a), b in zip(made.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("init", ["default", "gaussian", "orthogonal", "olora", "pissa", "pissa_niter_3"])
def test_first_values_are_those_of_the_processor(tiny: Path, init: str) -> None:
    there = add_lora(
        load.load_model(tiny, dtype=torch.float32, device="cuda"),
        r=4,
        alpha=6,
        dropout=0.0,
        targets="all-linear",
        seed=0,
        init=init,
    )
    here = get_peft_model_state_dict(lora(tiny, init=init))
    for name, tensor in get_peft_model_state_dict(there).items():
        if init in ("default", "gaussian", "orthogonal"):
            assert torch.equal(tensor.cpu(), here[name]), name
        else:
            torch.testing.assert_close(tensor.cpu(), here[name], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "other", [{"r": 2}, {"alpha": 8.0}, {"rslora": True}, {"dora": True}, {"targets": "q_proj"}]
)
def test_going_on_with_an_adapter_of_another_make_is_refused(
    tiny: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    made = lora(tiny)
    learn(made)
    made.save_pretrained(tmp_path)
    same = lora(tiny, seed=5)
    load_adapter(same, tmp_path)
    assert torch.equal(logits(same), logits(made))
    with pytest.raises(
        ConfigError, match=r"algo\.init=continue goes on from has other layers, another rank or another scale"
    ):
        load_adapter(lora(tiny, **other), tmp_path)
