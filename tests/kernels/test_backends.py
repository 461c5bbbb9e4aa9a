"""Every backend of attention on an NVIDIA GPU, against attention written out in fp64; and how fast they
are.
"""

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.kernels.reference import reference, row
from tuner.kernels import attention, flex
from tuner.kernels.attention import BACKENDS, choose_backend, using_backend
from tuner.kernels.backend import AttentionNeeds, Scoring

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    # which the compiler of torch 2.11 looks at, and hides by another way than filters
    pytest.mark.filterwarnings("ignore:The .grad attribute"),
]

LENGTHS = (300, 1, 129, 7, 1, 128, 1000, 64)
"""odd lengths, documents of one token, blocks that are seen in part and as a whole"""


@pytest.fixture(autouse=True)
def compiled_anew() -> None:
    torch._dynamo.reset()
    flex.compiled_flex.cache_clear()
    return


def usable(backend: str, **wanted: object) -> None:
    """Skip what the backend can't do here, with its own reason."""
    asked = {"device": torch.device("cuda"), "dtype": torch.bfloat16, "head_dim": 128, **wanted}
    if reason := BACKENDS[backend].trouble(AttentionNeeds(**asked)):  # type: ignore[arg-type]
        pytest.skip(f"{backend}: {reason}")


def errors(
    backend: str,
    lengths: tuple[int, ...],
    scoring: Scoring,
    *,
    heads: tuple[int, int],
    width: int,
    dtype: torch.dtype,
) -> dict[str, float]:
    """Relative errors in the 2-norm of the output, of the worst document, and of the gradients."""
    torch.manual_seed(0)
    inputs = [
        torch.randn(1, sum(lengths), h, width, device="cuda").to(dtype).transpose(1, 2).requires_grad_()
        for h in (heads[0], heads[1], heads[1])
    ]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    if scoring.sinks is not None:
        inputs, exact = [*inputs, scoring.sinks], [*exact, scoring.sinks.detach().double().requires_grad_()]
    sinks = exact[3] if len(exact) > 3 else None
    wanted = reference(
        exact[0],
        exact[1],
        exact[2],
        lengths,
        Scoring(scaling=scoring.scaling, window=scoring.window, softcap=scoring.softcap, sinks=sinks),
    )
    found = BACKENDS[backend].attend(inputs[0], inputs[1], inputs[2], row(lengths, "cuda"), scoring)
    assert found.dtype == dtype
    assert found.shape == wanted.shape
    grad = torch.randn_like(found)
    gradients = zip(
        torch.autograd.grad(found, inputs, grad),
        torch.autograd.grad(wanted, exact, grad.double()),
        strict=True,
    )
    parts = zip(found.double().split(list(lengths), dim=1), wanted.split(list(lengths), dim=1), strict=True)
    names = ("q", "k", "v", "sinks")
    said = {"out": relative(found, wanted), "document": max(relative(a, b) for a, b in parts)}
    return said | {f"d{name}": relative(a, b) for name, (a, b) in zip(names, gradients, strict=False)}


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(((found.double() - wanted).norm() / wanted.norm()).detach())


def check(capsys: pytest.CaptureFixture[str], title: str, said: dict[str, float], dtype: torch.dtype) -> None:
    with capsys.disabled():
        print(f"\n{title:<52}" + "  ".join(f"{name} {value:.1e}" for name, value in said.items()), end="")
    worst = 1e-2 if dtype == torch.bfloat16 else 1e-5
    assert max(said["out"], said["document"]) < worst
    assert (
        max(value for name, value in said.items() if name.startswith("d") and name != "document") < 3 * worst
    )


@pytest.mark.parametrize("width", [64, 80, 96, 128, 136, 256])
@pytest.mark.parametrize("backend", BACKENDS)
def test_documents_groups_and_windows(capsys: pytest.CaptureFixture[str], backend: str, width: int) -> None:
    usable(backend, head_dim=width)
    for heads, window in (((8, 8), None), ((8, 2), None), ((6, 2), 100), ((4, 4), 2)):
        scoring = Scoring(scaling=width**-0.5, window=window)
        said = errors(backend, LENGTHS, scoring, heads=heads, width=width, dtype=torch.bfloat16)
        check(capsys, f"{backend} bf16 D={width} heads={heads} window={window}", said, torch.bfloat16)


@pytest.mark.parametrize("lengths", [(1,), (2,), (1, 1, 1), (4097,), (127, 128, 129)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_few_tokens_and_many(backend: str, lengths: tuple[int, ...]) -> None:
    usable(backend)
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(1, h, sum(lengths), 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for h in (4, 2, 2)
    )
    scoring = Scoring(scaling=128**-0.5)
    found = BACKENDS[backend].attend(q, k, v, row(lengths, "cuda"), scoring)
    wanted = reference(q, k, v, lengths, scoring)
    torch.testing.assert_close(found.double(), wanted, atol=2e-2, rtol=2e-2)
    for a, b in zip(
        torch.autograd.grad(found.sum(), (q, k, v)), torch.autograd.grad(wanted.sum(), (q, k, v)), strict=True
    ):
        # the gradient of one token's query is zero
        assert (a - b).double().norm() <= 2e-2 * max(1.0, b.double().norm().item())


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("backend", ["flash", "flex", "sdpa"])
def test_caps_and_sinks(
    capsys: pytest.CaptureFixture[str], backend: str, softcap: float | None, sinks: bool
) -> None:
    usable(backend, softcap=softcap is not None, sinks=sinks, head_dim=64)
    for window in (None, 100):
        scores = torch.randn(8, device="cuda", requires_grad=True) if sinks else None
        scoring = Scoring(scaling=0.3, window=window, softcap=softcap, sinks=scores)
        said = errors(backend, LENGTHS, scoring, heads=(8, 2), width=64, dtype=torch.bfloat16)
        check(
            capsys,
            f"{backend} bf16 D=64 softcap={softcap} sinks={sinks} window={window}",
            said,
            torch.bfloat16,
        )


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("backend", ["flex", "sdpa"])
def test_fp32(capsys: pytest.CaptureFixture[str], backend: str, width: int) -> None:
    usable(backend, dtype=torch.float32, head_dim=width)
    scoring = Scoring(scaling=width**-0.5)
    said = errors(backend, LENGTHS, scoring, heads=(8, 2), width=width, dtype=torch.float32)
    check(capsys, f"{backend} fp32 D={width}", said, torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_changes_not_a_bit_in_other_documents(backend: str) -> None:
    usable(backend, head_dim=64)
    attention.register_attention()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
    )
    model = (
        LlamaForCausalLM._from_config(
            config, attn_implementation=attention.IMPLEMENTATION, dtype=torch.bfloat16
        )
        .to("cuda")
        .train()
    )
    lengths, begin, end = (130, 1, 260, 5), 131, 391
    text = torch.randint(1, 97, (1, sum(lengths)), device="cuda")
    where = torch.cat([torch.arange(n) for n in lengths])[None].to("cuda")
    other = text.clone()
    other[0, begin + 3] = 97 - other[0, begin + 3]
    with using_backend(backend):
        one, two = (model(input_ids=x, position_ids=where, use_cache=False).logits[0] for x in (text, other))
        changed = (one != two).any(dim=1)
        assert not changed[: begin + 3].any()
        assert changed[begin + 3 : end].any()
        assert not changed[end:].any()
        embedded = model.get_input_embeddings()(text).detach().requires_grad_()
        (reached,) = torch.autograd.grad(
            model(inputs_embeds=embedded, position_ids=where, use_cache=False).logits[0, begin:end].sum(),
            embedded,
        )
    reached = reached[0].abs().sum(dim=1)
    assert not reached[:begin].any()
    assert reached[begin:end].all()
    assert not reached[end:].any()


def test_a_batch_of_new_length_compiles_nothing_after_the_second(capsys: pytest.CaptureFixture[str]) -> None:
    usable("flex", head_dim=64)
    compiled = []
    for n in (700, 801, 2000, 930, 4095, 1500):
        torch._dynamo.utils.counters.clear()
        q, k, v = (
            torch.randn(1, h, n, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
            for h in (4, 2, 2)
        )
        flex.attend(q, k, v, row((n // 2, n - n // 2), "cuda"), Scoring(scaling=0.125)).sum().backward()
        compiled.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    with capsys.disabled():
        print(f"\ngraphs compiled for rows of six lengths: {compiled}", end="")
    assert not any(compiled[3:])


def timed(run: Callable[[], None], times: int = 10) -> float:
    """Seconds, the median of `times` runs after three."""
    for _ in range(3):
        run()
    spent = []
    for _ in range(times):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        spent.append(begin.elapsed_time(end) / 1e3)
    return sorted(spent)[times // 2]


@pytest.mark.parametrize("lengths", [(4096,) * 4, (512,) * 32], ids=["4x4096", "32x512"])
def test_speed(capsys: pytest.CaptureFixture[str], lengths: tuple[int, ...]) -> None:
    """Prints forward and backward of one layer: 16,384 tokens, bf16, 16 heads of 128; only that it runs is
    asserted.
    """
    shape, scoring, asked = (
        (1, 16, sum(lengths), 128),
        Scoring(scaling=128**-0.5),
        AttentionNeeds(device=torch.device("cuda"), dtype=torch.bfloat16, head_dim=128),
    )
    seen = sum(n * (n + 1) / 2 for n in lengths)
    work = 4 * 16 * 128 * seen  # two products of the forward pass, five of the backward pass
    with capsys.disabled():
        best, why = choose_backend("auto", asked)
        print(
            f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}; {len(lengths)} documents of "
            f"{lengths[0]}; auto takes {best} ({why})"
        )
        print(f"{'backend':<10}{'forward ms':>12}{'TFLOP/s':>10}{'both ms':>12}{'TFLOP/s':>10}")
        for name, backend in BACKENDS.items():
            if reason := backend.trouble(asked):
                print(f"{name:<10}{reason}")
                continue
            q, k, v = (
                torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
            )
            grad, documents = (
                torch.randn(1, sum(lengths), 16, 128, device="cuda", dtype=torch.bfloat16),
                row(lengths, "cuda"),
            )
            attend = backend.attend

            def forward() -> torch.Tensor:
                return attend(q, k, v, documents, scoring)  # noqa: B023

            def alone() -> None:
                with torch.no_grad():
                    forward()

            def both() -> None:
                torch.autograd.grad(forward(), (q, k, v), grad)  # noqa: B023

            once, twice = timed(alone), timed(both)
            print(
                f"{name:<10}{once * 1e3:>12.3f}{work / once / 1e12:>10.1f}"
                f"{twice * 1e3:>12.3f}{3.5 * work / twice / 1e12:>10.1f}"
            )
    assert once > 0
