import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.kernels.reference import row
from tests.train.conftest import make_pack
from tuner.config.schema import Optim
from tuner.errors import ConfigError, StageError
from tuner.kernels import attention
from tuner.kernels.backend import AttentionNeeds, Scoring
from tuner.models.attention_needs import attention_needs
from tuner.models.full_finetune import load_trainable
from tuner.models.load import load_model
from tuner.models.lora.add import add_lora
from tuner.train.batch import collate, count_targets
from tuner.train.determinism import ENVIRONMENT, deterministic
from tuner.train.engine import TorchEngine, trainable_parameters
from tuner.train.loss import summed_loss
from tuner.train.noise import prepare_noise
from tuner.train.optimizers import build_optimizer, vocabulary_weights

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUBLAS, ENVIRONMENT[CUBLAS])  # it was set before CUDA started, or never matters


def test_what_was_before_comes_back() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()
    filled, benchmark = torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    assert not torch.are_deterministic_algorithms_enabled()
    assert (torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cudnn.benchmark) == (
        filled,
        benchmark,
    )


def test_the_environment_is_set_and_a_contradiction_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CUBLAS)
    with deterministic(True):
        pass
    monkeypatch.setenv(CUBLAS, ":0:0")
    with (
        pytest.raises(
            ConfigError,
            match=r"deterministic=true needs CUBLAS_WORKSPACE_CONFIG=:4096:8 .* it is ':0:0'. Unset it",
        ),
        deterministic(True),
    ):
        pass
    monkeypatch.setenv(CUBLAS, ":16:8")
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()


def test_what_has_no_such_algorithm_is_named() -> None:
    with (
        pytest.raises(
            StageError,
            match=(
                r"computes something .* \(put_ does not have a deterministic .* Set"
                r" machine.deterministic=false"
            ),
        ),
        deterministic(True),
    ):
        torch.empty(10).put_(torch.tensor([1]), torch.tensor([1.0]))
    with pytest.raises(RuntimeError, match="must match"), deterministic(True):
        torch.zeros(3) + torch.zeros(4)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 40M parameters, shaped as large ones are: grouped heads of 64, a tied head over 32,000
    words.
    """
    directory = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=2,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return directory


def trained_on_gpu(
    directory: Path, algo: str, backend: str, wish: bool
) -> tuple[dict[str, torch.Tensor], list[float], float]:
    """Weights, the steps' losses a target and the median of a step's seconds after eight steps of four
    rows of about 2,000 tokens, bf16.
    """
    cuda, dropout = torch.device("cuda"), 0.1 if algo == "dropout" else 0.0
    with deterministic(wish):
        if algo == "full":
            model = load_trainable(directory, device=cuda, compute=torch.bfloat16, rounded=torch.bfloat16)
        else:
            base = load_model(
                directory,
                dtype=torch.bfloat16,
                device=cuda,
                quant=algo if algo in ("nf4", "int8") else "none",
            )
            rows = tuple(range(100, 116)) if algo == "new tokens" else ()
            model = add_lora(
                base, r=16, alpha=32, dropout=dropout, targets="all-linear", seed=0, new_token_ids=rows
            )
        noise = prepare_noise(model, seed=0, dropout=dropout, neftune=None)
        engine = TorchEngine(
            model.train(),
            build_optimizer(
                trainable_parameters(model), Optim(lr=1e-3), device=cuda, vocabulary=vocabulary_weights(model)
            ),
            noise=noise,
            autocast=torch.bfloat16 if algo == "full" else None,
            loss=summed_loss,
        )
        draw, losses, spent = random.Random(0), [], []
        for step in range(8):
            packs = [make_pack(draw, index) for index in range(4 * 50)]
            # few words, so that many rows meet in one of the embedding
            packs = [replace(pack, ids=pack.ids % 40 + 90) for pack in packs]
            batches = [
                collate(packs[n : n + 50], indices=range(n, n + 50), step=step) for n in range(0, 200, 50)
            ]
            torch.cuda.synchronize()
            began = time.perf_counter()
            targets = count_targets(packs)
            with attention.using_backend(backend):
                losses.append(sum(engine.forward_backward(batches, targets).tolist()) / targets)
            engine.step(1e-3, 1.0)
            torch.cuda.synchronize()
            spent.append(time.perf_counter() - began)
        return (
            {name: p.detach().cpu() for name, p in trainable_parameters(model).items()},
            losses,
            sorted(spent)[4],
        )


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("algo", ["lora", "dropout", "new tokens", "full", "nf4", "int8"])
def test_two_trainings_are_equal_to_the_bit(
    llama: Path, algo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the attention that auto takes here; prints what it costs."""
    if algo in ("nf4", "int8"):
        pytest.importorskip("bitsandbytes")
    asked = attention_needs(
        load_model(llama, dtype=torch.bfloat16, device="cpu"),
        dtype=torch.bfloat16,
        device=torch.device("cuda"),
    )
    backend, _ = attention.choose_backend("auto", asked)
    one, losses, slow = trained_on_gpu(llama, algo, backend, True)
    two, again, slow_again = trained_on_gpu(llama, algo, backend, True)
    free, _, fast = trained_on_gpu(llama, algo, backend, False)
    differ = [name for name in one if not torch.equal(one[name], two[name])]
    freely = sum(not torch.equal(one[name], free[name]) for name in one)
    with capsys.disabled():
        print(
            f"\n{algo:<11} {backend:<7} equal {len(one) - len(differ)}/{len(one)} tensors; without: "
            f"{len(one) - freely}/{len(one)}; a step {min(slow, slow_again) * 1e3:.1f} ms, without "
            f"{fast * 1e3:.1f} ms ({min(slow, slow_again) / fast - 1:+.0%})",
            end="",
        )
    assert losses == again
    assert not differ
    assert losses[-1] < losses[0]


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("backend", attention.BACKENDS)
def test_attention_gives_the_same_gradients_each_time(
    backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    computed, lengths = attention.BACKENDS[backend], (3000, 1, 700, 4096, 395)
    if reason := computed.trouble(
        AttentionNeeds(device=torch.device("cuda"), dtype=torch.bfloat16, head_dim=128)
    ):
        pytest.skip(reason)
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(1, h, sum(lengths), 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for h in (16, 4, 4)
    )
    grad = torch.randn(1, sum(lengths), 16, 128, device="cuda", dtype=torch.bfloat16)
    said = []
    for wish in (True, False):
        made, spent = [], []
        with deterministic(wish):
            for _ in range(8):
                torch.cuda.synchronize()
                began = time.perf_counter()
                out = computed.attend(q, k, v, row(lengths, "cuda"), Scoring(scaling=128**-0.5))
                made.append((out, *torch.autograd.grad(out, (q, k, v), grad)))
                torch.cuda.synchronize()
                spent.append(time.perf_counter() - began)
        same = all(torch.equal(a, b) for other in made[1:] for a, b in zip(made[0], other, strict=True))
        said.append((same, sorted(spent)[4]))
    with capsys.disabled():
        print(
            f"\n{backend:<7} equal {said[0][0]}, {said[0][1] * 1e3:.2f} ms; without: equal {said[1][0]}, "
            f"{said[1][1] * 1e3:.2f} ms",
            end="",
        )
    assert said[0][0]
