"""The same pipeline on an NVIDIA GPU: same numbers within rounding, and a GPU is a place, not an identity.
Run by scripts/gpu.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import Tuner, environment, linked
from tuner.config.schema import Optim
from tuner.data.packs import Packs
from tuner.models.load import load_model
from tuner.models.load_adapted import load_adapted
from tuner.models.lora.add import add_lora
from tuner.train.batch import collate
from tuner.train.engine import TorchEngine, trainable_parameters
from tuner.train.loss import summed_loss
from tuner.train.optimizers import build_optimizer, vocabulary_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


GPU = ["machine=auto", "machine.gpus=[0]"]
"""told by number: these tests hold the card themselves, and a busy one is never taken"""


def packs_of(root: Path) -> Packs:
    return Packs.open(linked(root, "tokenize") / "train.arrow")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_packed_logits_equal_the_documents_alone(
    tuner: Tuner, tiny: list[str], tiny_model: Path, tmp_path: Path, dtype: torch.dtype, tolerance: float
) -> None:
    tuner(f"root={tmp_path}/out", *tiny, "until=tokenize")
    model = load_model(tiny_model, dtype=dtype, device="cuda")
    pack = packs_of(tmp_path / "out")[0]
    assert len(pack.lengths) > 1
    batch = collate([pack], "cuda")
    with torch.no_grad():
        packed = model(input_ids=batch.ids_1N, position_ids=batch.positions_1N, use_cache=False).logits[0]
        begin = 0
        for length in pack.lengths.tolist():
            ids = batch.ids_1N[:, begin : begin + length]
            alone = model(
                input_ids=ids, position_ids=torch.arange(length, device="cuda")[None], use_cache=False
            ).logits[0]
            assert (packed[begin : begin + length] - alone).abs().max().item() < tolerance
            begin += length


SHARDED = [("qlora", "zero=1"), ("qlora", "zero=2"), ("lora", "zero=3"), ("full", "zero=3", "offload=all")]


@pytest.mark.parametrize("words", [("lora",), ("qlora",), ("full",), *SHARDED], ids=" ".join)
def test_the_pipeline_gives_the_numbers_of_the_processor(
    tuner: Tuner, tiny: list[str], tmp_path: Path, words: tuple[str, ...]
) -> None:
    algo, *sharded = words
    gpu, cpu = (
        [*tiny, f"algo={algo}", *GPU, f"root={tmp_path}/gpu"],
        [*tiny, f"algo={algo}", f"root={tmp_path}/cpu"],
    )
    tuner(*gpu, *(f"machine.{field}" for field in sharded))
    facts = json.loads((linked(tmp_path / "gpu", "train") / "manifest.json").read_text(encoding="utf-8"))[
        "facts"
    ]
    assert facts["device"] == "cuda"
    tuner(*cpu)
    losses = [
        json.loads((linked(root, "evaluate") / "eval.json").read_text(encoding="utf-8"))["loss"]
        for root in (tmp_path / "gpu", tmp_path / "cpu")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    tuner("plan", "--check", *gpu, "machine=cpu")  # another machine: nothing to do


@pytest.mark.parametrize("engine", ["engine=torch", "zero=2"])
def test_two_deterministic_qlora_runs_make_the_same_adapter(
    tuner: Tuner, tiny: list[str], tmp_path: Path, engine: str
) -> None:
    made = []
    for root in (tmp_path / "one", tmp_path / "two"):
        words = [
            "algo=qlora",
            "algo.precision=bf16",
            "algo.dropout=0.1",
            "machine.deterministic=true",
            f"machine.{engine}",
            "until=convert",
        ]
        tuner(*tiny, *words, *GPU, f"root={root}")
        made.append((linked(root, "convert") / "adapter_model.safetensors").read_bytes())
    assert made[0] == made[1]


def test_compiled_and_deterministic_means_the_same_adapter(
    tuner: Tuner, tiny: list[str], tmp_path: Path
) -> None:
    """In fresh processes with empty caches of what is compiled, with what they left, and after a stop. What
    is compiled was proven on the rows.
    """
    words = [
        *tiny,
        *GPU,
        "algo=qlora",
        "algo.precision=bf16",
        "machine.deterministic=true",
        "machine.kernels=compiled",
        "until=convert",
    ]

    def adapter(root: str, cache: str, *more: str, name: str = "whole") -> bytes:
        env = {"XDG_CACHE_HOME": str(tmp_path / cache)}
        tuner(*words, *more, f"root={tmp_path}/{root}", f"name={name}", env=env)
        (found,) = (tmp_path / root / "runs").glob(f"{name}-*/convert/adapter_model.safetensors")
        return found.read_bytes()

    one = adapter("one", "cache-one")
    facts = json.loads((linked(tmp_path / "one", "train") / "manifest.json").read_text(encoding="utf-8"))[
        "facts"
    ]
    assert facts["compiled"]
    assert facts["kernels"]["adapter_linear"]
    assert facts["proofs"]["kernels"] < 0.06
    assert adapter("two", "cache-two") == one
    assert adapter("warm", "cache-one") == one
    adapter("stopped", "cache-two", "algo.stop_step=3", name="short")
    assert adapter("stopped", "cache-two") == one


def test_chat_of_a_qlora_run_keeps_the_base_in_4_bits(
    tuner: Tuner, tiny: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    root = tmp_path / "out"
    tuner(*tiny, "algo=qlora", "algo.precision=bf16", "algo.optim.lr=1e-3", *GPU, f"root={root}")
    line = [
        sys.executable,
        "-m",
        "tuner",
        "chat",
        "last",
        f"root={root}",
        *GPU,
        "generation.max_new_tokens=8",
    ]
    said = subprocess.run(
        line, input="What is 1 plus 1?", env=environment(), capture_output=True, text=True, check=True
    )
    assert "the adapter on its base in 4 bits, as it was trained" in said.stderr
    assert "on cuda in bfloat16; the report's answers are of the merged model, and may differ" in said.stderr
    assert said.stdout.endswith("\n")
    merged, adapter = linked(root, "merge"), linked(root, "convert")
    held, whole = (
        load_adapted(tiny_model, adapter, dtype=torch.bfloat16, device="cuda", quant="nf4"),
        load_model(merged, dtype=torch.bfloat16, device="cuda", attention="sdpa"),
    )
    ids = torch.arange(20, 60, device="cuda")[None]
    with torch.inference_mode():
        assert (held(ids).logits - whole(ids).logits).abs().max().item() < 0.1
    assert type(held.model.layers[0].self_attn.q_proj.base_layer).__name__ == "Linear4bit"


def test_bf16_trains(tuner: Tuner, tiny: list[str], tmp_path: Path) -> None:
    for algo in ("lora", "full"):
        words = [
            *tiny,
            f"algo={algo}",
            *GPU,
            "algo.precision=bf16",
            "algo.steps=30",
            "algo.optim.lr=1e-2",
            "until=train",
            f"root={tmp_path}/{algo}",
        ]
        tuner(*words)
        rows = [
            json.loads(line)
            for line in (linked(tmp_path / algo, "train") / "metrics.jsonl")
            .read_text(encoding="utf-8")
            .splitlines()
        ]
        assert rows[-1]["loss"] < rows[0]["loss"] - 0.3


def test_speed_of_a_135m_llama(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints tokens/s of LoRA steps at 8 × 2048 tokens, documents of 512, bf16; only that it runs is
    asserted.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    model = add_lora(
        load_model(tmp_path / "model", dtype=torch.bfloat16, device="cuda"),
        r=16,
        alpha=32,
        dropout=0,
        targets="all-linear",
        seed=0,
    ).train()
    engine = TorchEngine(
        model,
        build_optimizer(
            trainable_parameters(model),
            Optim(),
            device=torch.device("cuda"),
            vocabulary=vocabulary_weights(model),
        ),
        loss=summed_loss,
    )
    ids = torch.randint(49152, (1, 8 * 2048), device="cuda")
    positions = torch.arange(512, device="cuda").repeat(32)[None]
    keep = torch.nonzero(positions[0] < 511).flatten()
    from tuner.train.batch import Batch

    batch = Batch(ids_1N=ids, positions_1N=positions, keep_M=keep, targets_M=ids[0, keep + 1])
    assert torch.isfinite(summed_loss(model, batch))
    times = []
    for _ in range(8):
        torch.cuda.synchronize()
        began = time.perf_counter()
        engine.forward_backward([batch], keep.numel())
        engine.step(1e-4, 1.0)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    with capsys.disabled():
        peak = torch.cuda.max_memory_allocated() / 2**30
        print(
            "\nLoRA r 16 on a 135M Llama, 16,384 tokens a step: "
            f"{16384 / sorted(times)[len(times) // 2]:,.0f} tokens/s, peak {peak:.1f} GiB, "
            f"{torch.cuda.get_device_name()}"
        )


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_run_made_again_has_the_same_bits_where_they_are_asked(
    tuner: Tuner, tiny: list[str], deterministic: bool
) -> None:
    """And else losses within the band, which is said."""
    tuner(*tiny, *GPU, "algo.precision=bf16", f"machine.deterministic={str(deterministic).lower()}")
    told = json.loads(tuner("reproduce", "last", "--json").out)
    assert told["bits"] is deterministic
    found = {stage["stage"]: stage["state"] for stage in told["stages"]}
    assert found["tokenize"] == "equal"
    assert found["train"] == found["evaluate"] == ("equal" if deterministic else "close")
    assert found["convert"] == ("equal" if deterministic else "not compared")
