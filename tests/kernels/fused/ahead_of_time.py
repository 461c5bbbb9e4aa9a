"""A child of test_ahead_of_time: compiles each kernel for each GPU and prints its shared memory as JSON, in
bytes.
"""

import json

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tuner.kernels.fused import adapter_weight, linear_cross_entropy

CAPABILITIES = (80, 86, 89, 90, 100, 120)
RANKS = (1, 8, 64, 128, 256, 512)
NF4 = ["*u8", "*u8", "*fp32", "*fp32", "*fp32", "*fp32"]


def shared(kernel: object, types: list[str], constants: dict[str, object], at: int, **options: object) -> int:
    names: list[str] = kernel.arg_names  # type: ignore[attr-defined]
    signature = dict(zip(names, [*types, *["constexpr"] * len(constants)], strict=True))
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    made = triton.compile(source, target=GPUTarget("cuda", at, 32), options=options)
    return int(made.metadata.shared)


def main() -> None:
    found = {}
    for at in CAPABILITIES:
        for rank in RANKS:
            for base in (NF4, ["*bf16"] * 6):
                found[f"adapter_weight sm_{at} rank {rank} {base[0]}"] = shared(
                    adapter_weight._write,
                    ["*bf16", *base, "*bf16", "*bf16", "fp32", "i32", "i32"],
                    adapter_weight.sizes(rank) | {"NF4": base is NF4, "WIDE": False},
                    at,
                    enable_fp_fusion=False,
                )
        for gradient in (True, False):
            found[f"linear_cross_entropy sm_{at} {gradient}"] = shared(
                linear_cross_entropy._loss_and_gradient,
                ["*bf16", "*i64", "*fp32", "i32", "fp32"],
                {"GRADIENT": gradient, "COLUMNS": linear_cross_entropy.COLUMNS},
                at,
                num_warps=linear_cross_entropy.WARPS,
            )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
