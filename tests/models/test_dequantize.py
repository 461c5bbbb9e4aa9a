"""A checkpoint in FP8 or MXFP4 becomes the bf16 weights that transformers gives while loading it, bit for
bit, and says nothing of it any more.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, Mxfp4Config

from tests.models.checkpoint.held import FP8, blocks, rewrite, write_fp8, write_mxfp4
from tests.models.tiny import write_tiny
from tuner.errors import DataError
from tuner.models import dequantize
from tuner.models.checkpoint.files import checkpoint_files
from tuner.models.checkpoint.quantised import of_directory, plain_shapes
from tuner.models.checkpoint.safetensors import Checkpoint, Spec


def undone(directory: Path, out: Path) -> dict[str, torch.Tensor]:
    found = of_directory(directory)
    assert found is not None
    out.mkdir()
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    dequantize.dequantize_checkpoint(checkpoint_files(directory), found.method, out, say=lambda _: None)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    assert of_directory(out) is None
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize(
    ("write", "asked"),
    [
        (
            lambda path: write_fp8(path, block=(32, 32)),
            FineGrainedFP8Config(weight_block_size=(32, 32), dequantize=True),
        ),
        (
            lambda path: write_fp8(path, block=None),
            FineGrainedFP8Config(weight_block_size=None, activation_scheme="static", dequantize=True),
        ),
        (write_mxfp4, Mxfp4Config(modules_to_not_convert=["lm_head"], dequantize=True)),
    ],
    ids=["fp8 in blocks", "fp8 by tensor", "mxfp4"],
)
def test_transformers_gives_the_same_bits(
    write: Callable[[Path], Path], asked: FineGrainedFP8Config | Mxfp4Config, tmp_path: Path
) -> None:
    write(tmp_path / "held")
    tensors = undone(tmp_path / "held", tmp_path / "out")
    theirs = dict(
        AutoModelForCausalLM.from_pretrained(
            tmp_path / "held", dtype=torch.bfloat16, quantization_config=asked
        ).named_parameters()
    )
    ours = dict(
        AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16).named_parameters()
    )
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not [name for name in tensors if "scale" in name or name.endswith("_blocks")]
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_blocks_at_the_border_are_smaller(tmp_path: Path) -> None:
    """160 rows and 64 columns in blocks of 128 and 48, which transformers refuses or, where it can't tell,
    cuts otherwise.
    """
    directory = write_tiny(tmp_path / "held")
    before = load_file(directory / "model.safetensors")
    held: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def change(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        held[name] = blocks(weight, (128, 48))
        return {name: held[name][0], f"{name}_scale_inv": held[name][1]}

    tensors = undone(rewrite(directory, FP8 | {"weight_block_size": [128, 48]}, change), tmp_path / "out")
    for name, (value, scales) in held.items():
        rows, columns = value.shape
        one_by_one = torch.tensor(
            [
                [float(value[i, j]) * float(scales[i // 128, j // 48]) for j in range(columns)]
                for i in range(rows)
            ]
        )
        assert torch.equal(tensors[name], one_by_one.to(torch.bfloat16)), name
        assert (tensors[name].float() - before[name].float()).norm() < 0.05 * before[name].float().norm()
    assert torch.equal(tensors["model.norm.weight"], before["model.norm.weight"])


@pytest.mark.parametrize("kind", ["by row", "by row, flat", "by tensor", "in bytes", "in exponents"])
def test_other_scales(kind: str, tmp_path: Path) -> None:
    """compressed-tensors' scales of rows; MXFP8, whose scales are powers of two in a byte."""
    group = {
        "targets": ["Linear"],
        "weights": {
            "num_bits": 8,
            "type": "float",
            "strategy": "channel",
            "symmetric": True,
            "dynamic": False,
        },
    }
    said = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }
    expected: dict[str, torch.Tensor] = {}

    def change(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        stem = name.removesuffix("weight")
        if "in " in kind:
            powers = torch.randint(120, 130, (weight.shape[0], weight.shape[1] // 32), dtype=torch.uint8)
            wide = (powers.double() - 127).exp2().repeat_interleave(32, 1)
            scales, name_of = (
                (powers if kind == "in bytes" else powers.view(torch.float8_e8m0fnu)),
                f"{name}_scale_inv",
            )
        else:
            sizes = (weight.shape[0], 1) if "row" in kind else (1, 1)
            scales = torch.rand(sizes) / 100 + 1e-3
            wide, name_of = scales.double(), f"{stem}weight_scale"
            scales = scales.flatten() if kind.endswith("flat") else scales
        held = (weight * 20).to(torch.float8_e4m3fn)
        expected[name] = (held.double() * wide).float().to(torch.bfloat16)
        return {
            name: held,
            name_of: scales,
            f"{stem}input_scale": torch.tensor([1.0]),
            f"{stem}k_scale": torch.tensor(1.0),
        }

    settings_ = {"quant_method": "mxfp8"} if "in " in kind else said
    tensors = undone(rewrite(write_tiny(tmp_path / "held"), settings_, change), tmp_path / "out")
    assert not [name for name in tensors if "scale" in name]
    assert not [name for name in expected if not torch.equal(tensors[name], expected[name])]


def test_experts_in_one_tensor() -> None:
    value, scales = torch.randn(3, 8, 12).to(torch.float8_e4m3fn), torch.rand(3, 2, 3)
    wide = scales.repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert torch.equal(dequantize.from_fp8(value, scales, (4, 4)), (value.float() * wide).to(torch.bfloat16))
    one = torch.tensor([2.0, 3.0, 5.0])
    assert dequantize.scale_block("gate_up_proj", (3, 8, 12), (3,), None) == (8, 12)
    assert torch.equal(
        dequantize.from_fp8(value, one, (8, 12)), (value.float() * one[:, None, None]).to(torch.bfloat16)
    )


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    down=st.integers(1, 17),
    across=st.integers(1, 17),
    seed=st.integers(0, 999),
)
def test_each_number_is_multiplied_with_the_scale_of_its_block(
    rows: int, columns: int, down: int, across: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(rows, columns, generator=generator).to(torch.float8_e4m3fn)
    scales = torch.rand(-(-rows // down), -(-columns // across), generator=generator)
    sizes = dequantize.scale_block("w", tuple(value.shape), tuple(scales.shape), (down, across))
    got = dequantize.from_fp8(value, scales, sizes)
    if scales.numel() == 1:
        sizes = (rows, columns)
    expected = [
        [float(value[i, j]) * float(scales[i // sizes[0], j // sizes[1]]) for j in range(columns)]
        for i in range(rows)
    ]
    assert torch.equal(got, torch.tensor(expected).to(torch.bfloat16))


def fp8(*shape: int, dtype: str = "F8_E4M3") -> Spec:
    return Spec(name="w.weight", dtype=dtype, shape=shape)


@pytest.mark.parametrize(
    ("specs", "why"),
    [
        (
            {"a.weight": fp8(4, 4), "a.weight_scale_inv": fp8(dtype="F32"), "b.weight": fp8(4, 4)},
            r"b\.weight is in FP8 \(F8_E4M3\) and has no scale",
        ),
        (
            {"a.weight": fp8(4, 4), "a.weight_scale_inv": fp8(3, 1, dtype="F32")},
            r"a\.weight is \[4, 4\], and its scales are \[3, 1\]: they do not fit",
        ),
        (
            {"a.weight": fp8(4, 4, dtype="BF16"), "a.weight_scale_inv": fp8(dtype="F32")},
            r"scale of a\.weight, which is BF16: FP8 was expected",
        ),
        ({"a.weight_scale_inv": fp8(dtype="F32")}, r"scale of a\.weight, which is not there"),
    ],
)
def test_scales_that_are_missing_or_do_not_fit_are_refused(specs: dict[str, Spec], why: str) -> None:
    with pytest.raises(DataError, match=why):
        dequantize.dequantised_tensors(specs, "fp8")


def test_blocks_of_another_form_are_refused() -> None:
    specs = {
        "e.down_proj_blocks": fp8(4, 64, 2, 16, dtype="U8"),
        "e.down_proj_scales": fp8(4, 64, 3, dtype="U8"),
    }
    with pytest.raises(
        DataError,
        match=r"bytes \[experts, rows, blocks, 16\] and \[experts, rows, blocks\] were expected of MXFP4",
    ):
        dequantize.dequantised_tensors(specs, "mxfp4")


def test_every_code_and_exponent_of_mxfp4() -> None:
    """By the definition: a sign, two bits of exponent and one of mantissa; times two to the byte less 127."""
    codes = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    exponents = torch.tensor(
        [0, 1, 63, 100, 119, 126, 127, 128, 129, 140, 180, 200, 230, 250, 251, 252], dtype=torch.uint8
    ).reshape(1, 1, 16)
    got = dequantize.from_mxfp4(codes, exponents)[0, :, 0].double().tolist()

    def number(code: int) -> float:
        sign, exponent, mantissa = -1.0 if code & 8 else 1.0, (code >> 1) & 3, code & 1
        return sign * (mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1))

    expected = [
        number(code) * 2.0 ** (int(exponents[0, 0, byte // 16]) - 127)
        for byte in range(256)
        for code in (byte & 15, byte >> 4)
    ]
    assert got == expected


def test_numbers_in_fp8_without_any_scale_are_what_they_are(tmp_path: Path) -> None:
    directory = write_tiny(tmp_path / "held")
    before = {
        name: tensor.to(torch.float8_e5m2)
        for name, tensor in load_file(directory / "model.safetensors").items()
    }
    save_file(before, directory / "model.safetensors", metadata={"format": "pt"})
    after = undone(directory, tmp_path / "out")
    assert not [name for name in before if not torch.equal(after[name], before[name].to(torch.bfloat16))]


@pytest.mark.parametrize("write", [write_fp8, write_mxfp4], ids=["fp8", "mxfp4"])
def test_a_plan_counts_the_same_shapes(write: Callable[[Path], Path], tmp_path: Path) -> None:
    write(tmp_path / "held")
    found = of_directory(tmp_path / "held")
    assert found is not None
    undone(tmp_path / "held", tmp_path / "out")
    before, after = (Checkpoint([tmp_path / name / "model.safetensors"]).specs for name in ("held", "out"))
    assert plain_shapes(found.method, {name: spec.shape for name, spec in before.items()}) == {
        name: spec.shape for name, spec in after.items()
    }


def test_it_is_the_model_that_was_quantised(tmp_path: Path) -> None:
    """Not the same numbers, but near: three bits of a mantissa are off by a few hundredths, and the 8 bits
    without their scales by a relative 0.99.
    """
    plain = load_file(write_tiny(tmp_path / "plain") / "model.safetensors")
    again = undone(write_fp8(tmp_path / "held", block=(32, 32)), tmp_path / "out")
    assert plain.keys() == again.keys()
    for name, weight in plain.items():
        assert float((weight.float() - again[name].float()).norm() / weight.float().norm()) < 0.04, name
