"""The weight that a linear layer with a LoRA adapter multiplies with, W + s·B·A, written in one pass.

W is bf16, or NF4 with its constants quantised too (arXiv:2305.14314, section 3), as bitsandbytes lays it
out. What is restored of 4 bits is what bitsandbytes restores, bit for bit; the product is added to it in
fp32, and the sum is rounded to bf16 once. A pass reads half a byte a weight, or two, and writes two, which
nobody keeps: the weight is made where it is used, in the forward pass and again in the backward pass.
"""

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64
"""weights that share a constant in 4 bits; a row has a whole number of such blocks"""
NESTED = 256
"""constants that share theirs"""
ROWS = 64
"""of the weight, of which one program writes a block each"""
WIDEST = 128
"""of the ranks that are multiplied at a time: 32 KiB of shared memory, of which consumer GPUs give a program
99
"""
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""whether Triton's interpreter runs the kernel, which has no matmul of bf16"""


def nf4_parts(weight: Any) -> list[Tensor]:
    """What bitsandbytes holds of a weight [O, I] in 4 bits with quantised constants, by its parameter.

    uint8 [O I / 2]               two weights a byte, the first in the high half
    uint8 [O I / 64]              for each 64 of them an index into
    fp32 [256]                    the constants that there are
    fp32 [ceil(O I / 64 / 256)]   what each 256 of the constants are multiplied by
    fp32 scalar                   what is added to them then
    fp32 [16]                     the numbers that 4 bits mean
    """
    state = weight.quant_state
    packed = weight.data.view(torch.uint8).view(-1)
    return [packed, state.absmax, state.state2.code, state.state2.absmax, state.offset, state.code]


@torch.library.custom_op("tuner::adapter_weight", mutates_args=())
def adapter_weight(
    parts: list[Tensor],
    a_RI: Tensor,
    b_OR: Tensor,
    scale: float,
    rows: int,
    columns: int,
    use: int,  # noqa: ARG001
) -> Tensor:
    """bf16 [rows, columns]: the base plus scale · B A, in new memory.

    parts   of the base: itself in bf16, or those of `nf4_parts`
    use     0 in a forward pass and 1 in a backward pass: two different results for a compiler, which would
            else keep the first for the second

    A and B are bf16, and columns is a multiple of 64.
    """
    out_OI = torch.empty(rows, columns, dtype=torch.bfloat16, device=a_RI.device)
    _write[(triton.cdiv(rows, ROWS), columns // BLOCK)](
        out_OI,
        *(parts if len(parts) == 6 else parts * 6),
        a_RI,
        b_OR,
        scale,
        rows,
        columns,
        **sizes(a_RI.shape[0]),
        NF4=len(parts) == 6,
        WIDE=INTERPRETED,
        enable_fp_fusion=False,  # bitsandbytes rounds between a product and a sum
    )
    return out_OI


def sizes(rank: int) -> dict[str, int]:
    """What the kernel is compiled for, for adapters of a rank."""
    width = min(WIDEST, max(16, triton.next_power_of_2(rank)))
    return {"RANK": rank, "WIDTH": width, "BLOCK": BLOCK, "NESTED": NESTED, "ROWS": ROWS}


@adapter_weight.register_fake
def _(_parts: Any, a_RI: Tensor, _b: Any, _scale: Any, rows: int, columns: int, _use: Any) -> Tensor:
    return torch.empty(rows, columns, dtype=torch.bfloat16, device=a_RI.device)


@triton.jit
def _write(
    out,
    base,
    constants,
    code,
    scales,
    offset,
    values,
    a,
    b,
    scale,
    rows,
    columns,
    RANK: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    NESTED: tl.constexpr,
    ROWS: tl.constexpr,
    NF4: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One tile of it. A tile is as wide as a block, so each of its rows has one constant."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    inside = row < rows
    product = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for begin in tl.static_range(0, RANK, WIDTH):
        rank_1R, rank_R1 = begin + tl.arange(0, WIDTH)[None, :], begin + tl.arange(0, WIDTH)[:, None]
        b_OR = tl.load(b + row * RANK + rank_1R, mask=inside & (rank_1R < RANK), other=0.0)
        a_RI = tl.load(a + rank_R1 * columns + column, mask=rank_R1 < RANK, other=0.0)
        if WIDE:  # bf16 numbers are tf32 numbers too, and their products are exact in fp32
            b_OR, a_RI = b_OR.to(tl.float32), a_RI.to(tl.float32)
        product = tl.dot(b_OR, a_RI, product, input_precision="tf32")
    product *= scale
    at = row * columns + column
    if NF4:
        half = (tl.program_id(1) * (BLOCK // 2) + tl.arange(0, BLOCK // 2))[None, :]
        byte = tl.load(base + row * (columns // 2) + half, mask=inside, other=0)
        four = tl.interleave(byte >> 4, byte & 15)
        block = row * (columns // BLOCK) + tl.program_id(1)
        constant = tl.load(code + tl.load(constants + block, mask=inside, other=0).to(tl.int32))
        constant = constant * tl.load(scales + block // NESTED, mask=inside, other=0.0) + tl.load(offset)
        weight = tl.load(values + four.to(tl.int32)) * constant
    else:
        weight = tl.load(base + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, (weight + product).to(tl.bfloat16), mask=inside)
