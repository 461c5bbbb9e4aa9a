"""The estimated bytes against those that the tensors of a real step take, counted op by op, and against
PEFT's and bitsandbytes' own numbers.
"""

import weakref
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from tuner.config.schema import Algo, Config, Optim
from tuner.config.view import View
from tuner.estimate.memory import WORKSPACE, Memory, Workload, estimate_memory
from tuner.estimate.recompute import Recompute
from tuner.estimate.trained_model import NF4
from tuner.estimate.what_fits import GIB, cheaper_workloads, plain_algo, ways_to_fit
from tuner.train.batch import Batch
from tuner.train.loss import summed_loss
from tuner.train.recompute import set_recompute

SIZES = {
    "vocab_size": 1000,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
GEOMETRIES: dict[str, dict[str, Any]] = {
    "tied": SIZES | {"model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": True},
    "untied": SIZES | {"model_type": "llama", "num_key_value_heads": 4, "tie_word_embeddings": False},
    "qwen2": SIZES
    | {
        "model_type": "qwen2",
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
        "intermediate_size": 704,
    },
    "qwen3": SIZES
    | {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": False},
}
INTERN = {
    "model_type": "llama",
    "vocab_size": 92544,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The bytes of all storages that are alive, in blocks of 512 as PyTorch's allocator hands them out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._held: dict[int, weakref.ref[Any]] = {}

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // 512) * 512
        if key not in self._held and size:

            def gone(_: object) -> None:
                del self._held[key]
                self.now -= size

            self._held[key] = weakref.ref(storage, gone)
            self.now += size
            self.peak = max(self.peak, self.now)
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return tree_map_only(torch.Tensor, self.add, func(*args, **(kwargs or {})))


class Flash(torch.autograd.Function):
    """What a flash kernel holds (arXiv:2307.08691), without its arithmetic."""

    @staticmethod
    def forward(ctx: Any, q_NHD: torch.Tensor, k_NKD: torch.Tensor, v_NKD: torch.Tensor) -> torch.Tensor:
        out_NHD = torch.zeros_like(q_NHD)
        ctx.save_for_backward(q_NHD, k_NKD, v_NKD, out_NHD, torch.zeros(q_NHD.shape[:2]))
        return out_NHD

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:  # noqa: ARG004
        return tuple(torch.zeros_like(x) for x in ctx.saved_tensors[:3])


def flash(
    _: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *__: Any, **___: Any
) -> tuple[torch.Tensor, None]:
    q, k, v = (x[0].transpose(0, 1).to(v.dtype) for x in (q, k, v))
    return Flash.apply(q, k, v)[None], None  # type: ignore[no-untyped-call]


def counted(
    geometry: dict[str, Any], algo: Algo, *, tokens: int, targets: int, recompute: bool, accumulate: int
) -> int:
    """The most bytes that are alive in a step without optimizer."""
    AttentionInterface.register("ledger", flash)
    full = algo.adapter == "none"
    settings = {key: value for key, value in geometry.items() if key != "model_type"}
    dtype = torch.float32 if full or algo.precision == "fp32" else torch.bfloat16
    model: Any = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(geometry["model_type"], **settings), attn_implementation="ledger"
    ).to(dtype)
    if not full:
        model = get_peft_model(model, LoraConfig(r=algo.r, target_modules="all-linear"))
    model.train()
    set_recompute(model, SIZES["num_hidden_layers"] * recompute)
    row_1N = torch.arange(tokens)[None]
    batch = Batch(
        ids_1N=row_1N % 7,
        positions_1N=row_1N,
        keep_M=torch.arange(targets),
        targets_M=torch.arange(targets) % 7,
        borders=(0, tokens),
    )
    ledger = Ledger()
    for parameter in model.parameters():
        ledger.add(parameter)
    with ledger:
        for _ in range(accumulate):
            with torch.autocast("cpu", torch.bfloat16, enabled=full and algo.precision == "bf16"):
                loss = summed_loss(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
    return ledger.peak


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("adapter", ["lora", "none"])
@pytest.mark.parametrize(
    ("kind", "targets", "accumulate"),
    [("tied", 150, 2), ("untied", 10, 1), ("qwen2", 250, 1), ("qwen3", 75, 2)],
)
def test_bytes_are_those_that_a_step_takes(
    kind: str, targets: int, accumulate: int, adapter: str, recompute: bool
) -> None:
    algo = Algo(adapter=adapter, r=8)  # type: ignore[arg-type]
    work = Workload(
        tokens=256, targets=targets, accumulated=accumulate > 1, recompute=Recompute(blocks=4 * recompute)
    )
    expected = without_optimizer(GEOMETRIES[kind], algo, work)
    found = counted(
        GEOMETRIES[kind], algo, tokens=256, targets=targets, recompute=recompute, accumulate=accumulate
    )
    assert expected.allocated - WORKSPACE == pytest.approx(found, rel=0.05)


def without_optimizer(geometry: dict[str, Any], algo: Algo, work: Workload) -> Memory:
    """Paged moments take no memory of the GPU."""
    return estimate_memory(
        geometry,
        Algo(adapter=algo.adapter, r=algo.r, precision=algo.precision, optim=Optim(name="paged_adamw")),
        work,
    )


def test_four_bits_take_what_bitsandbytes_says() -> None:
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(
        torch.randn(1024, 1024), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    constants = sum(tensor.nbytes for tensor in (state.absmax, state.state2.absmax))
    assert (packed.nbytes + constants) / 1024**2 == pytest.approx(NF4, rel=1e-6)
    # QLoRA, section 3: 0.127 bits a parameter for the constants
    assert pytest.approx(4.127, abs=1e-3) == 8 * NF4


MEASURED = [  # GiB reserved at the peak on an H200 (docs/performance.md)
    ("nf4", 64, 16_384, False, Recompute(norms=True), False, 23.24),
    ("nf4", 64, 16_384, False, Recompute(norms=True, blocks=24), False, 5.87),
    ("nf4", 16, 8_192, True, Recompute(norms=True), False, 12.24),
    ("nf4", 64, 4_096, False, Recompute(norms=True), True, 8.12),
    ("nf4", 16, 2_048, False, Recompute(norms=True), True, 4.81),
    ("full", 64, 16_384, False, Recompute(norms=True), False, 46.01),
]


@pytest.mark.parametrize(("quant", "r", "tokens", "accumulated", "recompute", "captured", "gib"), MEASURED)
def test_compiled_layers_take_what_was_measured(
    quant: str, r: int, tokens: int, accumulated: bool, recompute: Recompute, captured: bool, gib: float
) -> None:
    algo = Algo(adapter="none") if quant == "full" else Algo(quant=quant, r=r)  # type: ignore[arg-type]
    work = Workload(
        tokens=tokens,
        targets=tokens,
        accumulated=accumulated,
        recompute=recompute,
        compiled=True,
        captured=captured,
        fused_layers=algo.uses_adapter,
        fused_head=True,
    )
    assert 0.95 * gib < estimate_memory(INTERN, algo, work).reserved / GIB < 1.1 * gib


def test_each_part_is_where_it_belongs() -> None:
    work = Workload(tokens=2048, targets=1000)
    lora, qlora, full = (
        estimate_memory(INTERN, algo, work) for algo in (Algo(), Algo(quant="nf4"), Algo(adapter="none"))
    )
    numbers = 1_889_110_016
    assert full.weights == 4 * numbers
    assert (full.gradients, full.optimizer) == (4 * numbers, 8 * numbers)
    # all but the embedding and the last norm
    assert full.copies == 2 * (numbers - 92544 * 2048 - 49 * 2048) + 2 * 49 * 2048 * (48 / 49)
    assert lora.weights - 2 * numbers == lora.gradients == lora.optimizer / 2
    assert 0.25 * lora.weights < qlora.weights < 0.45 * lora.weights  # embedding and head stay in 16 bits
    assert lora.activations == qlora.activations
    assert lora.reserved > lora.allocated
    assert lora.total > lora.reserved


def test_zero_shards_a_stage_at_a_time() -> None:
    def memory(zero: int, processes: int = 4, offload: str = "none") -> Memory:
        work = Workload(
            tokens=1024,
            targets=500,
            recompute=Recompute(blocks=24),
            engine="deepspeed",
            zero=zero,
            processes=processes,
            offload=offload,
        )
        return estimate_memory(INTERN, Algo(adapter="none"), work)

    found = [memory(zero) for zero in range(4)]
    assert found[1].optimizer == pytest.approx(found[0].optimizer * 12 / 8 / 4)
    assert found[2].gradients == pytest.approx(found[1].gradients / 4)
    assert found[3].weights == pytest.approx(found[2].weights / 4)
    assert memory(2, offload="optimizer").optimizer == 0
    assert memory(3, offload="all").weights == 0
    assert found[3].total < found[2].total < found[1].total < found[0].total


def test_the_optimizer_by_name() -> None:
    def moments(name: str) -> float:
        return estimate_memory(
            INTERN, Algo(adapter="none", optim=Optim(name=name)), Workload(tokens=512, targets=100)
        ).optimizer  # type: ignore[arg-type]

    numbers, ends = 1_889_110_016, 2 * 92544 * 2048
    assert moments("adamw") == 8 * numbers
    assert moments("paged_adamw_8bit") < moments("adamw_8bit") < moments("muon") < moments("adamw")
    assert moments("muon") == pytest.approx(4 * (numbers - ends) + 8 * ends, rel=1e-4)


def test_what_would_fit_is_below_the_room_and_the_same_is_proposed_first() -> None:
    work = Workload(tokens=4 * 4096, targets=4 * 3000, accumulated=True)
    found = ways_to_fit(INTERN, Algo(), work, 24 * GIB, length=4096, micro=4)
    assert found[0].startswith("machine.micro_batch=1 (~")
    assert found[1].startswith("machine.micro_batch=1 machine.recompute=blocks (~")
    assert any("algo.quant=nf4" in words for words in found)
    assert all(float(words.split("(~")[1].split(" ")[0]) <= 24 for words in found)
    assert ways_to_fit(INTERN, Algo(), work, 1 * GIB, length=4096, micro=4) == []
    for words, algo, _ in cheaper_workloads(Algo(adapter="none"), work, length=4096, micro=4, layers=24):
        assert algo == Algo(adapter="none") or any(word.startswith("algo") for word in words)


def test_the_algo_group_out_of_a_stage_s_view() -> None:
    algo = Algo(r=3, optim=Optim(name="muon"))
    assert plain_algo(View(Config(algo=algo), "train").algo) == algo
