"""The linear layer with an adapter, against fp64 and against bitsandbytes' own bits."""

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Params4bit
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from tests.kernels.fused.conftest import ON_GPU
from tuner.kernels.apply import apply
from tuner.kernels.fused.adapter_linear import adapter_linear, reference
from tuner.kernels.fused.adapter_weight import adapter_weight, nf4_parts

DEVICE = "cuda" if ON_GPU else "cpu"
SHAPES = [(70, 128, 300), (65, 64, 4), (128, 192, 16), (97, 128, 1), (64, 320, 33)]
SHAPES += [(2048, 2048, 64), (1024, 4096, 16), (4097, 192, 128)] if ON_GPU else []
ROUNDING = 2**-8 if ON_GPU else 2**-7
"""by which bf16 may differ from what it rounds, relatively"""


def quantised(weight: Tensor) -> Params4bit:
    return Params4bit(weight.cpu(), requires_grad=False, quant_type="nf4", compress_statistics=True).to(
        DEVICE
    )


def drawn(out: int, width: int, rank: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """W, A and B, in fp32."""
    torch.manual_seed(seed)
    return (
        torch.randn(out, width, device=DEVICE) * 0.02,
        torch.randn(rank, width, device=DEVICE) / width**0.5,
        torch.randn(out, rank, device=DEVICE) * 0.02,
    )


def error(found: Tensor, true: Tensor) -> float:
    """‖found - true‖ / ‖true‖"""
    return ((found.double() - true.double()).norm() / true.double().norm()).item()


@pytest.mark.parametrize(("out", "width", "rank"), SHAPES)
def test_without_a_product_the_weight_has_bitsandbytes_bits(out: int, width: int, rank: int) -> None:
    weight, a, b = (x.bfloat16() for x in drawn(out, width, rank))
    packed = quantised(weight)
    found = adapter_weight(nf4_parts(packed), a, torch.zeros_like(b), 2.0, out, width, 0)
    restored = dequantize_4bit(packed.data, packed.quant_state).view(out, width)
    assert torch.equal(found, restored) if ON_GPU else error(found, restored) < ROUNDING
    assert torch.equal(adapter_weight([weight], a, torch.zeros_like(b), 2.0, out, width, 0), weight)


@pytest.mark.parametrize(("out", "width", "rank"), SHAPES)
@pytest.mark.parametrize("four", [True, False])
def test_the_sum_is_rounded_once(out: int, width: int, rank: int, four: bool) -> None:
    """Of the exact sum's two neighbours in bf16 it is the nearer one, but for sums of fp32 that round to the
    middle of the two.
    """
    weight, a, b = (x.bfloat16() for x in drawn(out, width, rank, seed=1))
    if four:
        packed = quantised(weight)
        parts, state = nf4_parts(packed), packed.quant_state
        state.dtype = torch.float32
        base = dequantize_4bit(packed.data, state).view(out, width)
    else:
        parts, base = [weight], weight
    exact = base.double() + 0.5 * (b.double() @ a.double())
    found = adapter_weight(parts, a, b, 0.5, out, width, 0)
    assert not ON_GPU or (found == exact.bfloat16()).double().mean() > 0.999
    assert ((found.double() - exact).abs() <= exact.abs() * ROUNDING * 1.01 + 2e-6).all()


@pytest.mark.parametrize(("out", "width", "rank"), SHAPES)
@pytest.mark.parametrize("biased", [True, False])
def test_forward_and_gradients_are_those_of_fp64(out: int, width: int, rank: int, biased: bool) -> None:
    weight, a, b = drawn(out, width, rank, seed=2)
    weight = weight.bfloat16()
    bias = torch.randn(out, device=DEVICE).bfloat16() if biased else None
    x = torch.randn(3, 50, width, device=DEVICE).bfloat16().requires_grad_()
    grad = torch.randn(3, 50, out, device=DEVICE).bfloat16()
    a.requires_grad_()
    b.requires_grad_()
    found = adapter_linear(x, [weight], a, b, 0.5, bias)
    found.backward(grad)
    exact = [t.detach().double().requires_grad_() for t in (x, a, b)]
    true = reference(
        exact[0], weight.double(), exact[1], exact[2], 0.5, None if bias is None else bias.double()
    )
    true.backward(grad.double())
    assert error(found, true) < 0.01
    for own, other in zip((x, a, b), exact, strict=True):
        assert own.grad is not None
        assert other.grad is not None
        assert own.grad.dtype == own.dtype
        assert error(own.grad, other.grad) < 0.01


def tiny(four: bool, **config: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "vocab_size": 96}
    model = LlamaForCausalLM(
        LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2, **config)
    ).bfloat16()
    if not four:
        return model.to(DEVICE)
    from transformers.integrations import replace_with_bnb_linear

    quant = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    replace_with_bnb_linear(model, modules_to_not_convert=["lm_head"], quantization_config=quant)
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear4bit":
            module.weight = quantised(weights[f"{name}.weight"])
            module.weight.quant_state.dtype = torch.bfloat16
        else:
            for own in dict(module.named_parameters(recurse=False)):
                setattr(module, own, torch.nn.Parameter(weights[f"{name}.{own}"].to(DEVICE)))
    return model.to(DEVICE)


def adapted(model: LlamaForCausalLM, **options: object) -> torch.nn.Module:
    torch.manual_seed(1)
    tuned = get_peft_model(
        model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    )
    for name, p in tuned.named_parameters():
        if "lora_" in name:
            p.data = p.data.float()
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.05)
    return tuned


@pytest.mark.parametrize("four", [True, False])
def test_a_model_with_fused_layers_computes_as_with_pefts(four: bool) -> None:
    """Loss and gradients, within bf16's rounding; PEFT's own are as far from fp32 as these are."""
    ids = torch.randint(0, 96, (2, 80), device=DEVICE)
    grads = {}
    for fused in (False, True):
        model = adapted(tiny(four)).train()
        if fused:
            assert apply(model).fused["adapter_linear"] == 14
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        grads[fused] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        grads[fused]["loss"] = loss.detach()
    assert grads[True].keys() == grads[False].keys()
    assert abs(grads[True]["loss"] - grads[False]["loss"]) < 2e-3
    for name, grad in grads[True].items():
        assert error(grad, grads[False][name]) < 0.05, name


def test_what_pefts_own_pass_is_needed_for_keeps_it() -> None:
    assert apply(adapted(tiny(False), lora_dropout=0.1)).aside == {"dropout": 14}
    assert apply(adapted(tiny(False), use_dora=True)).aside == {"DoRA": 14}
    assert apply(adapted(tiny(False).float())).aside == {"weights that are not bf16": 14}


def test_an_adapter_that_is_off_or_merged_is_not_added() -> None:
    ids = torch.randint(0, 96, (2, 80), device=DEVICE)
    own, pefts = adapted(tiny(False)).eval(), adapted(tiny(False)).eval()
    apply(own)
    with torch.no_grad():
        with own.disable_adapter(), pefts.disable_adapter():
            assert torch.equal(own(input_ids=ids).logits, pefts(input_ids=ids).logits)
        own.merge_adapter()
        pefts.merge_adapter()
        assert torch.equal(own(input_ids=ids).logits, pefts(input_ids=ids).logits)
