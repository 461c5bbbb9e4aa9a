"""A base in 4 or 8 bits must be the same base when it trains, when it is merged into and when it is
measured.
"""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from tests.models.tiny import tiny_adapter, tiny_model
from tuner.errors import ConfigError, StageError
from tuner.files import write_json
from tuner.models import load, quantize
from tuner.models.checkpoint.config_files import write_config
from tuner.models.checkpoint.files import weight_files
from tuner.models.checkpoint.meta_model import meta_model
from tuner.models.checkpoint.safetensors import Checkpoint
from tuner.models.checkpoint.weight_names import checkpoint_names
from tuner.models.lora.add import add_lora
from tuner.models.lora.export import write_adapter
from tuner.models.lora.layers import adapter_config
from tuner.models.lora.merge import merge_adapter

bnb = pytest.importorskip("bitsandbytes")

# arXiv:2305.14314, appendix E
LEVELS = torch.tensor(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
)


def write(directory: Path, dtype: torch.dtype, *, tied: bool) -> Path:
    tiny_model(tied=tied).to(dtype).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("base"), torch.bfloat16, tied=False)


def restored(model: torch.nn.Module, tensor: str) -> torch.Tensor:
    """What a layer of a model in 4 bits multiplies with, asked of bitsandbytes."""
    weight = model.get_parameter(tensor)
    value: torch.Tensor = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    return value


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float32])
def test_dequantised_is_what_the_loaded_base_computes_with_bit_for_bit(
    tmp_path: Path, stored: torch.dtype, compute: torch.dtype
) -> None:
    directory = write(tmp_path, stored, tied=True)
    model, weights = (
        load.load_model(directory, dtype=compute, device="cpu", quant="nf4"),
        Checkpoint(weight_files(directory)),
    )
    held = quantize.quantised_tensors(directory)
    assert held == {name for name in weights.specs if name.endswith("_proj.weight")}
    for name in held:
        assert torch.equal(
            restored(model, name).bfloat16(), quantize.quantise_dequantise(weights[name], "nf4")
        ), name
    for name, parameter in model.named_parameters():
        if name not in held:
            assert parameter.dtype == compute
            assert torch.equal(parameter.float(), weights[name].bfloat16().float()), name


@given(st.integers(1, 9), st.integers(1, 130), st.floats(1e-3, 1e3))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_every_value_is_a_level_of_nf4_times_the_largest_of_its_block(
    outputs: int, inputs: int, scale: float
) -> None:
    # On a CPU, bitsandbytes 0.50 restores rows of 16, 32 or 48 more than a multiple of 64 by constants of
    # other blocks.
    assume(inputs % 16 or inputs % quantize.BLOCK == 0)
    weight = (
        torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(outputs * inputs)) * scale
    ).bfloat16()
    value = quantize.quantise_dequantise(weight, "nf4")
    assert (value.dtype, value.shape) == (torch.bfloat16, weight.shape)
    maxima = [block.abs().max().float() for block in weight.flatten().split(quantize.BLOCK)]
    widest = max(maxima)
    for block, back, largest in zip(
        weight.flatten().split(quantize.BLOCK), value.flatten().split(quantize.BLOCK), maxima, strict=True
    ):
        nearest = LEVELS[(block.float()[:, None] / largest - LEVELS).abs().argmin(dim=1)] * largest
        # The largest of a block is kept in 8 bits: its error is a share of the largest of all blocks.
        assert (back.float() - nearest).abs().max() <= 0.02 * widest


def test_without_quantisation_a_weight_is_itself() -> None:
    weight = torch.randn(3, 5)
    assert quantize.quantise_dequantise(weight, "none") is weight


def gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    model.zero_grad()
    ids = torch.arange(16)[None]
    model.train()
    model(input_ids=ids, position_ids=ids).logits.square().mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def measured_in_between(base: Path, *, trap: bool) -> tuple[bool, bool]:
    """Whether gradients, and whether weights, are the same before and after a forward pass in eval mode."""
    model = load.load_model(base, dtype=torch.bfloat16, device="cpu", quant="nf4")
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            assert not module.support_avx512bf16_for_cpu
            module.support_avx512bf16_for_cpu = trap
    tuned = add_lora(model, r=2, alpha=2, dropout=0.0, targets="all-linear", seed=0)
    modules = [
        tuned.get_submodule(f"base_model.model.{name.removesuffix('.weight')}").base_layer
        for name in sorted(quantize.quantised_tensors(base))
    ]

    def values() -> list[torch.Tensor]:
        return [
            bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            for module in modules
        ]

    def same(before: list[torch.Tensor], again: Callable[[], list[torch.Tensor]]) -> bool:
        try:
            return all(torch.equal(a, b) for a, b in zip(before, again(), strict=True))
        except RuntimeError:
            return False  # some shapes of a repacked weight can't even be read back; others give wrong values

    grads, weights = gradients(tuned), values()
    assert all(grad.isfinite().all() for grad in grads)
    assert any(grad.any() for grad in grads)
    with torch.no_grad():
        tuned.eval()(input_ids=torch.arange(16)[None], position_ids=torch.arange(16)[None])
    return same(grads, lambda: gradients(tuned)), same(weights, values)


def test_measuring_in_between_changes_neither_gradients_nor_weights(base: Path) -> None:
    assert measured_in_between(base, trap=False) == (True, True)


@pytest.mark.filterwarnings("ignore:.*gemv_4bit:UserWarning")
@pytest.mark.skipif(
    not bnb.nn.modules.has_avx512bf16(), reason="this processor is not one that weights are repacked for"
)
def test_it_would_where_the_processor_has_bf16_and_nothing_was_done(tmp_path: Path) -> None:
    # repacking takes multiples of 64 only
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    assert measured_in_between(tmp_path, trap=True) == (False, False)
    assert measured_in_between(tmp_path, trap=False) == (True, True)


def qlora(base: Path, directory: Path) -> torch.nn.Module:
    """A model in 4 bits with an adapter whose B is away from zero, which is also written to `directory`."""
    model = add_lora(
        load.load_model(base, dtype=torch.float32, device="cpu", quant="nf4"),
        r=4,
        alpha=6,
        dropout=0.0,
        targets="all-linear",
        seed=0,
    )
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    model.save_pretrained(directory)
    return model.eval()


def test_merged_it_is_the_model_that_trained(base: Path, tmp_path: Path) -> None:
    trained = qlora(base, tmp_path / "adapter")
    tuned = load.load_tuned(base, tmp_path / "adapter", dtype=torch.float32, device="cpu", quant="nf4")
    exact, full = (load.load_model(base, dtype=torch.float32, device="cpu") for _ in range(2))
    for name in quantize.quantised_tensors(base):
        lora = trained.get_submodule(f"base_model.model.{name.removesuffix('.weight')}")
        product = (lora.lora_B["default"].weight @ lora.lora_A["default"].weight).detach() * 1.5
        assert torch.equal(
            tuned.get_parameter(name),
            (restored(lora.base_layer, "weight").bfloat16().float() + product).bfloat16().float(),
        ), name
        exact.get_parameter(name).data = restored(lora.base_layer, "weight") + product
        full.get_parameter(name).data += product
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        logits, unrounded, merged, other = (
            model(input_ids=ids, position_ids=torch.arange(40)[None]).logits
            for model in (trained, exact, tuned, full)
        )
    assert (unrounded - logits).abs().max() < 1e-4
    # What is left is rounding weights to bf16. A base in 16 bits would be another model.
    assert (merged - logits).std() < 0.1 * (other - logits).std()


def test_its_gradients_are_those_of_the_weights_that_it_multiplies_with(base: Path) -> None:
    def grads(model: torch.nn.Module) -> torch.Tensor:
        found = gradients(add_lora(model, r=2, alpha=2, dropout=0.0, targets="all-linear", seed=0))
        return torch.cat([grad.flatten() for grad in found])

    packed = load.load_model(base, dtype=torch.float32, device="cpu", quant="nf4")
    plain = load.load_model(base, dtype=torch.float32, device="cpu")
    for name in quantize.quantised_tensors(base):
        plain.get_parameter(name).data = restored(packed, name).float()
    ours, exact = grads(packed), grads(plain)
    assert exact.norm() > 0
    assert (ours - exact).norm() <= 1e-6 * exact.norm()


def test_measured_is_what_merging_writes_bit_for_bit(base: Path, tmp_path: Path) -> None:
    tiny_adapter(base).save_pretrained(tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    merge_adapter(
        base,
        tmp_path / "adapter",
        tmp_path / "merged",
        quant="nf4",
        quantised=quantize.quantised_tensors(base),
        names=checkpoint_names(base),
        limit=400_000,
    )
    write_config(base, tmp_path / "merged", "bfloat16")
    tuned = load.load_tuned(
        base, tmp_path / "adapter", dtype=torch.bfloat16, device="cpu", quant="nf4"
    ).state_dict()
    for name, tensor in (
        load.load_model(tmp_path / "merged", dtype=torch.bfloat16, device="cpu").state_dict().items()
    ):
        assert torch.equal(tuned[name], tensor), name


def test_in_fp32_merging_writes_what_the_base_in_4_bits_computes_with(base: Path, tmp_path: Path) -> None:
    peft = tiny_adapter(base)
    peft.save_pretrained(tmp_path / "adapter")
    held = load.load_model(base, dtype=torch.float32, device="cpu", quant="nf4")
    tuned = load.load_tuned(
        base, tmp_path / "adapter", dtype=torch.float32, device="cpu", rounded=torch.float32, quant="nf4"
    )
    for name in quantize.quantised_tensors(base):
        delta = peft.base_model.model.get_submodule(name.removesuffix(".weight")).get_delta_weight("default")
        assert torch.equal(tuned.get_parameter(name), restored(held, name).float() + delta), name


def test_a_tied_head_with_an_adapter_stays_unquantised_and_becomes_one_of_its_own(tmp_path: Path) -> None:
    base = write(tmp_path / "base", torch.bfloat16, tied=True)
    model = load.load_model(base, dtype=torch.float32, device="cpu", quant="nf4", attention="sdpa")
    peft = add_lora(model, r=4, alpha=8, dropout=0.0, targets=("q_proj", "lm_head"), seed=0).eval()
    draw = torch.Generator().manual_seed(1)
    for name, parameter in peft.named_parameters():
        if ".lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=draw) * 0.2
    weights = {
        name: tensor.contiguous()
        for name, tensor in get_peft_model_state_dict(peft, save_embedding_layers=False).items()
    }
    (tmp_path / "adapter").mkdir()
    save_file(weights, tmp_path / "weights.safetensors")
    write_json(tmp_path / "settings.json", adapter_config(peft))
    write_adapter(
        Checkpoint([tmp_path / "weights.safetensors"]),
        tmp_path / "settings.json",
        tmp_path / "adapter",
        "org/name",
        quant="nf4",
    )
    how = {
        "dtype": torch.float32,
        "rounded": torch.float32,
        "device": "cpu",
        "quant": "nf4",
        "attention": "sdpa",
    }
    tuned = load.load_tuned(base, tmp_path / "adapter", **how)  # type: ignore[arg-type]
    ids = torch.arange(100, 116)[None]
    torch.testing.assert_close(tuned(ids).logits, peft(ids).logits, atol=2e-4, rtol=2e-4)
    assert torch.equal(
        tuned.model.embed_tokens.weight,
        tiny_model(tied=True).to(torch.bfloat16).float().model.embed_tokens.weight,
    )


@pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")
@pytest.mark.parametrize("quant", ["nf4", "int8"])
def test_an_adapter_says_which_base_it_belongs_to(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quant: str
) -> None:
    model = load.load_model(base, dtype=torch.bfloat16, device="cpu", quant=quant, attention="sdpa")
    peft = add_lora(model, r=4, alpha=8, dropout=0.0, targets="all-linear", seed=0).eval()
    draw = torch.Generator().manual_seed(1)
    for name, parameter in peft.named_parameters():
        if ".lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=draw) * 0.2
    out = tmp_path / "out"
    out.mkdir()
    weights = {
        name: tensor.contiguous()
        for name, tensor in get_peft_model_state_dict(peft, save_embedding_layers=False).items()
    }
    save_file(weights, tmp_path / "weights.safetensors")
    write_json(tmp_path / "settings.json", adapter_config(peft))
    write_adapter(
        Checkpoint([tmp_path / "weights.safetensors"]),
        tmp_path / "settings.json",
        out,
        "org/name",
        quant=quant,
    )
    config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    # PEFT warns of keys that it does not know
    assert config.keys() - {"base_model_name_or_path"} <= adapter_config(peft).keys()
    text = (out / "README.md").read_text(encoding="utf-8")
    assert f"org/name in {quantize.BITS[quant]} bits" in " ".join(text.split())
    code = (
        text.partition("```python\n")[2]
        .partition("```")[0]
        .replace('"org/name"', f'"{base}", dtype="bfloat16"')
    )
    code = code.partition("tokenizer = ")[0]
    monkeypatch.chdir(out)
    found: dict[str, Any] = {}
    exec(code, found)
    loaded = found["model"].eval()
    for module in loaded.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            # a forward pass would repack weights, for which these are too narrow
            module.support_avx512bf16_for_cpu = False
    linear = loaded.base_model.model.model.layers[0].self_attn.q_proj.base_layer
    assert type(linear).__name__ == {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[quant]
    ours = quantize.quantization_config(meta_model(base), quant, compute=torch.bfloat16).to_dict()
    assert {key for key, value in found["settings"].to_dict().items() if value != ours[key]} == {
        "llm_int8_skip_modules"
    }
    ids = torch.arange(100, 116)[None]
    logits = loaded(ids.to(loaded.device)).logits  # on a GPU, where there is one
    torch.testing.assert_close(logits.float().cpu(), peft(ids).logits.float(), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("quant", ["nf4", "int8"])
def test_training_goes_down(base: Path, quant: str) -> None:
    model = add_lora(
        load.load_model(base, dtype=torch.bfloat16, device="cpu", quant=quant),
        r=4,
        alpha=8,
        dropout=0.0,
        targets="all-linear",
        seed=0,
    )
    assert all(
        parameter.dtype == torch.float32 for parameter in model.parameters() if parameter.requires_grad
    )
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=5e-3
    )
    ids, losses = torch.arange(100, 132)[None], []
    for _ in range(6):
        logits = model.train()(input_ids=ids, position_ids=torch.arange(32)[None]).logits
        loss = torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("quant", ["nf4", "int8"])
def test_experts_are_refused_with_their_share_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quant: str
) -> None:
    config = Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=48,
        num_experts=8,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        decoder_sparse_step=1,
    )
    model = Qwen3MoeForCausalLM(config)
    model.save_pretrained(tmp_path)
    share = 2 * 8 * 3 * 48 * 32 / sum(parameter.numel() for parameter in model.parameters())
    monkeypatch.setattr(Qwen3MoeForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("was loaded"))
    with pytest.raises(
        ConfigError,
        match=rf"{share:.0%} of the weights are in experts that bitsandbytes leaves.*algo\.quant=none",
    ):
        load.load_model(tmp_path, dtype=torch.bfloat16, device="cpu", quant=quant)


@pytest.mark.parametrize(("quant", "bits"), [("nf4", 4), ("int8", 8)])
def test_a_layer_that_is_left_out_is_named(
    base: Path, monkeypatch: pytest.MonkeyPatch, quant: str, bits: int
) -> None:
    original = quantize.quantization_config

    def forgetful(
        model: PreTrainedModel, quant: str, *, compute: torch.dtype, storage: torch.dtype | None
    ) -> object:
        found = original(model, quant, compute=compute, storage=storage)
        found.llm_int8_skip_modules.append("model.layers.1.mlp.up_proj")
        return found

    monkeypatch.setattr(quantize, "quantization_config", forgetful)
    with pytest.raises(
        StageError, match=rf"1 of 14 linear layers are not in {bits} bits.*layers\.1\.mlp\.up_proj"
    ):
        load.load_model(base, dtype=torch.bfloat16, device="cpu", quant=quant)


def test_without_bitsandbytes_it_says_what_to_install(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(quantize, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    for call in (
        lambda: load.load_model(base, dtype=torch.bfloat16, device="cpu", quant="nf4"),
        lambda: quantize.quantise_dequantise(torch.ones(2, 2), "nf4"),
    ):
        with pytest.raises(ConfigError, match=r"algo\.quant=nf4 .* pip install 'bitsandbytes>=0\.50'"):
            call()


def eight(model: torch.nn.Module, tensor: str) -> torch.Tensor:
    """What a layer in 8 bits holds, asked of bitsandbytes: at first beside the weight, and in a state of
    its own after the first forward pass.
    """
    layer = model.get_submodule(tensor.removesuffix(".weight"))
    layer = getattr(layer, "base_layer", layer)
    scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    value: torch.Tensor = bnb.functional.int8_vectorwise_dequant(layer.weight.data, scales)
    return value


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float32])
def test_a_base_in_8_bits_computes_with_what_merging_takes(
    tmp_path: Path, stored: torch.dtype, compute: torch.dtype
) -> None:
    directory = write(tmp_path, stored, tied=True)
    model, weights = (
        load.load_model(directory, dtype=compute, device="cpu", quant="int8"),
        Checkpoint(weight_files(directory)),
    )
    held = quantize.quantised_tensors(directory)
    assert len(held) == 14
    for name in held:
        value, weight = quantize.quantise_dequantise(weights[name], "int8"), weights[name].bfloat16().float()
        assert torch.equal(eight(model, name), value), name
        # arXiv:2208.07339, equation 3: a row's largest value is 127
        assert ((value - weight).abs() <= weight.abs().amax(1, keepdim=True) / 127 * 0.501).all()
    for name, tensor in model.state_dict().items():
        if "_proj" not in name:
            assert torch.equal(
                tensor,
                weights["model.embed_tokens.weight" if name == "lm_head.weight" else name]
                .bfloat16()
                .to(compute),
            ), name


def test_measuring_in_between_changes_nothing_in_8_bits(base: Path) -> None:
    model = load.load_model(base, dtype=torch.bfloat16, device="cpu", quant="int8")
    tuned = add_lora(model, r=2, alpha=2, dropout=0.0, targets="all-linear", seed=0)
    names = sorted(quantize.quantised_tensors(base))
    before, weights = gradients(tuned), [eight(model, name) for name in names]
    with torch.no_grad():
        tuned.eval()(input_ids=torch.arange(16)[None], position_ids=torch.arange(16)[None])
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(tuned), strict=True))
    assert all(torch.equal(a, eight(model, name)) for a, name in zip(weights, names, strict=True))


@pytest.mark.parametrize(("quant", "dora"), [("int8", False), ("nf4", True)])
def test_merged_in_8_bits_or_with_dora_it_is_the_model_that_trained(
    base: Path, tmp_path: Path, quant: str, dora: bool
) -> None:
    frozen = load.load_model(base, dtype=torch.float32, device="cpu", quant=quant)
    trained = add_lora(frozen, r=4, alpha=6, dropout=0.0, targets="all-linear", seed=0, dora=dora).train()
    generator = torch.Generator().manual_seed(1)
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
    trained.save_pretrained(tmp_path)
    ids = torch.arange(5, 45)[None]
    positions = torch.arange(40)[None]
    tuned, other = (
        load.load_tuned(base, tmp_path, dtype=torch.float32, device="cpu", quant=held)
        for held in (quant, "none")
    )
    with torch.no_grad():
        logits, merged, wrong = (
            model(input_ids=ids, position_ids=positions).logits for model in (trained, tuned, other)
        )
    # What is left is rounding weights to bf16. A base in 16 bits would be another model.
    assert (merged - logits).std() < (0.1 if quant == "nf4" else 0.5) * (wrong - logits).std()


def test_4_bits_in_bf16_are_the_same_bits(base: Path) -> None:
    model, plain = (
        load.load_model(base, dtype=torch.bfloat16, device="cpu", quant="nf4", storage=storage)
        for storage in (torch.bfloat16, None)
    )
    for name in quantize.quantised_tensors(base):
        assert model.get_parameter(name).dtype == torch.bfloat16
        assert torch.equal(
            model.get_parameter(name).data.view(torch.uint8).flatten(),
            plain.get_parameter(name).data.flatten(),
        )
        assert torch.equal(restored(model, name), restored(plain, name))
    ours, theirs = (
        gradients(add_lora(m, r=2, alpha=2, dropout=0.0, targets="all-linear", seed=0))
        for m in (model, plain)
    )
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.filterwarnings("ignore:inner dimension")  # bitsandbytes', of a model this small
def test_a_gpu_holds_the_base_that_merging_on_the_processor_takes(base: Path) -> None:
    model, weights = (
        load.load_model(base, dtype=torch.bfloat16, device="cuda", quant="nf4"),
        Checkpoint(weight_files(base)),
    )
    for name in quantize.quantised_tensors(base):
        there, here = (
            restored(model, name).cpu().float(),
            quantize.quantise_dequantise(weights[name], "nf4").float(),
        )
        assert torch.equal(there, quantize.quantise_dequantise(weights[name].cuda(), "nf4").cpu().float())
        assert (there != here).float().mean() < 0.05
        assert ((there - here).abs() <= 0.05 * here.abs()).all()
        assert (there - here).norm() < 2**-9 * here.norm()
    assert all(parameter.device.type == "cuda" for parameter in model.parameters())
    tuned = add_lora(model, r=2, alpha=2, dropout=0.0, targets="all-linear", seed=0)
    ids = torch.arange(16, device="cuda")[None]
    before = tuned.eval()(input_ids=ids, position_ids=ids).logits
    before.float().square().mean().backward()
    assert all(
        parameter.grad.isfinite().all() for parameter in tuned.parameters() if parameter.grad is not None
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_holds_in_8_bits_what_merging_on_the_processor_takes(base: Path) -> None:
    model, weights = (
        load.load_model(base, dtype=torch.bfloat16, device="cuda", quant="int8"),
        Checkpoint(weight_files(base)),
    )
    for name in quantize.quantised_tensors(base):
        there, here = eight(model, name).cpu(), quantize.quantise_dequantise(weights[name], "int8")
        assert (there != here).float().mean() < 0.01
        assert (there - here).norm() < 2**-9 * here.norm()
    tuned = add_lora(model, r=2, alpha=2, dropout=0.0, targets="all-linear", seed=0)
    ids = torch.arange(16, device="cuda")[None]
    tuned.train()(input_ids=ids, position_ids=ids).logits.float().square().mean().backward()
    assert all(
        parameter.grad.isfinite().all() for parameter in tuned.parameters() if parameter.grad is not None
    )
