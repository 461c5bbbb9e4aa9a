import importlib
import sys
from collections.abc import Callable
from pkgutil import iter_modules
from typing import get_args, get_type_hints

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.kernels.reference import reference, row
from tuner import kernels
from tuner.config.schema.machine import Machine
from tuner.errors import ConfigError, StageError
from tuner.kernels import attention, flash, flash4, varlen
from tuner.kernels.attention import choose_backend, packed_attention, using_backend
from tuner.kernels.backend import AttentionNeeds, Scoring
from tuner.kernels.packed_documents import announce_documents

LENGTHS = (7, 1, 19, 2)


def positions(*lengths: int) -> torch.Tensor:
    return torch.cat([torch.arange(n) for n in lengths])[None]


def needs(**changes: object) -> AttentionNeeds:
    return AttentionNeeds(
        **{"device": torch.device("cpu"), "dtype": torch.bfloat16, "head_dim": 64, **changes}
    )  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    attention.register_attention()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    made = LlamaForCausalLM._from_config(config, attn_implementation="tuner")
    made.config.use_cache = False
    return made.train()


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(1, 97, shape, generator=torch.Generator().manual_seed(1))


def gradient(model: LlamaForCausalLM, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))


def test_packed_logits_and_gradients_are_those_of_each_document_alone(model: LlamaForCausalLM) -> None:
    text, grad = ids(1, sum(LENGTHS)), torch.randn(sum(LENGTHS), 97)
    packed = model(input_ids=text, position_ids=positions(*LENGTHS)).logits[0]
    alone = torch.cat(
        [
            model(input_ids=part, position_ids=positions(part.shape[1])).logits[0]
            for part in text.split(LENGTHS, dim=1)
        ]
    )
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=1e-4)
    for a, b in zip(
        gradient(model, (packed * grad).sum()), gradient(model, (alone * grad).sum()), strict=True
    ):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_a_token_changes_nothing_in_other_documents(model: LlamaForCausalLM) -> None:
    text, where = ids(1, sum(LENGTHS)), positions(*LENGTHS)
    other = text.clone()
    other[0, 10] = 96 - other[0, 10]  # in the third document, of tokens 8 to 26
    mask = torch.ones_like(text)
    one, two = (model(input_ids=x, position_ids=where, attention_mask=mask).logits[0] for x in (text, other))
    changed = (one != two).any(dim=1)
    assert not changed[:10].any()
    assert changed[10:27].all()
    assert not changed[27:].any()
    embedded = model.get_input_embeddings()(text).detach().requires_grad_()
    (reached,) = torch.autograd.grad(
        model(inputs_embeds=embedded, position_ids=where).logits[0, 8:27].sum(), embedded
    )
    assert (reached[0].abs().sum(dim=1) > 0).tolist() == [8 <= n < 27 for n in range(sum(LENGTHS))]


@pytest.mark.filterwarnings(
    "ignore:.gradient_checkpointing_enable. is deprecated",
    "ignore:.gradient_checkpointing_disable. is deprecated",
)
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_layer_that_is_computed_again_sees_the_same_borders(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, reentrant: bool
) -> None:
    batches = [
        (ids(1, sum(LENGTHS)), positions(*LENGTHS), (0, 7, 8, 27, 29)),
        (ids(1, sum(LENGTHS)).flip(1), positions(9, 20), (0, 9, 29)),
    ]
    wanted = [
        gradient(model, model(input_ids=text, position_ids=where).logits.square().sum())
        for text, where, _ in batches
    ]
    # nothing is read back from positions that were announced
    monkeypatch.setattr("tuner.kernels.packed_documents.document_borders", pytest.fail)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    try:
        losses = []
        for text, where, borders in batches:
            announce_documents(where, borders)
            losses.append(model(input_ids=text, position_ids=where).logits.square().sum())
        # both backward passes come after both forward passes
        for loss, expected in zip(losses, wanted, strict=True):
            model.zero_grad()
            loss.backward()
            for p, b in zip(model.parameters(), expected, strict=True):
                assert p.grad is not None
                torch.testing.assert_close(p.grad, b, atol=0, rtol=1e-6)
    finally:
        model.gradient_checkpointing_disable()
        model.disable_input_require_grads()
        model.zero_grad()


def test_what_it_cannot_do_is_refused() -> None:
    q, k = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 5, 8)
    with pytest.raises(NotImplementedError, match="no cache; load the model with attention='sdpa'"):
        packed_attention(torch.nn.Module(), q, k, k, None, position_ids=positions(1))
    with pytest.raises(NotImplementedError, match="no cache"):
        packed_attention(torch.nn.Module(), *[k.expand(2, -1, -1, -1)] * 3, None, position_ids=None)
    announce_documents(positions(3, 2), (0, 3, 5))
    with pytest.raises(StageError, match=r"code \(Module\) does not tell its attention where"):
        packed_attention(torch.nn.Module(), k, k, k, None, position_ids=None)
    where = positions(3, 2)
    announce_documents(where, (0, 3, 4))
    with pytest.raises(ValueError, match="4 tokens together, the row 5"):
        packed_attention(torch.nn.Module(), k, k, k, None, position_ids=where)


def test_queries_keys_and_values_come_in_the_dtype_of_the_products() -> None:
    q, k, v = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8, dtype=torch.bfloat16)
    assert (
        packed_attention(torch.nn.Module(), q, k, v, None, position_ids=positions(5))[0].dtype
        == torch.bfloat16
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (
            packed_attention(torch.nn.Module(), q, k, q, None, position_ids=positions(5))[0].dtype
            == torch.bfloat16
        )
    assert (
        packed_attention(torch.nn.Module(), q, k, q, None, position_ids=positions(5))[0].dtype
        == torch.float32
    )


def test_on_the_processor_it_is_sdpa_and_a_wish_for_another_is_refused_with_why() -> None:
    assert choose_backend("auto", needs()) == ("sdpa", "SDPA, document by document")
    assert choose_backend("sdpa", needs()) == ("sdpa", "SDPA, document by document")
    for wish, reason in (
        ("flash", "no FlashAttention package"),
        ("varlen", "NVIDIA GPUs only"),
        ("flex", "backward pass runs on NVIDIA GPUs"),
    ):
        with pytest.raises(
            ConfigError,
            match=rf"machine.attention={wish} .* can't be used here: .*{reason}.*auto, which takes sdpa here",
        ):
            choose_backend(wish, needs())


CARDS = [
    ({}, (9, 0), "varlen", "PyTorch's own flash kernel"),
    ({"dtype": torch.float32}, (9, 0), "sdpa", "SDPA, document by document"),
    ({"dtype": torch.float32, "softcap": True}, (9, 0), "flex", "in bf16 or fp16, not in fp32"),
    ({"softcap": True}, (9, 0), "flex", "can't cap the scores"),
    ({"sinks": True}, (9, 0), "flex", "no attention sinks"),
    ({"dropout": True}, (9, 0), "sdpa", "no dropout"),
    ({"head_dim": 512}, (9, 0), "flex", "at most 256, and this model's is 512"),
    ({"head_dim": 256}, (9, 0), "varlen", "PyTorch's own"),
    ({"head_dim": 256}, (8, 9), "flex", "more shared memory"),
    ({}, (7, 5), "sdpa", "Ampere"),
]


@pytest.mark.parametrize(("wanted", "capability", "name", "why"), CARDS)
def test_auto_takes_the_fastest_that_can_do_what_is_needed(
    monkeypatch: pytest.MonkeyPatch,
    wanted: dict[str, object],
    capability: tuple[int, int],
    name: str,
    why: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr("tuner.kernels.flash.find_spec", lambda _: None)
    monkeypatch.setattr("tuner.kernels.flash4.find_spec", lambda _: None)
    monkeypatch.setattr("tuner.kernels.flex.find_spec", lambda _: object())
    monkeypatch.setattr("tuner.kernels.flex.shutil.which", lambda _: "/usr/bin/cc")
    found, said = choose_backend("auto", needs(device=torch.device("cuda"), **wanted))
    assert found == name
    assert why in said


@pytest.mark.parametrize(
    ("wanted", "capability", "there", "why"),
    [
        ({}, (9, 0), False, "the extra `flash4`"),
        ({}, (8, 6), True, "Hopper and Blackwell"),
        ({"head_dim": 192}, (9, 0), True, "at most 128"),
        ({"softcap": True}, (9, 0), True, "can't cap the scores"),
        ({}, (9, 0), True, "can't be imported"),
    ],
)
def test_where_flash_attention_4_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
    wanted: dict[str, object],
    capability: tuple[int, int],
    there: bool,
    why: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr("tuner.kernels.flash4.find_spec", lambda _: object() if there else None)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    said = flash4.trouble(needs(device=torch.device("cuda"), **wanted))
    assert said is not None
    assert why in said


def test_deterministic_training_takes_another_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert "same bits" in str(flash4.trouble(needs(device=torch.device("cuda"))))


def test_a_compiler_looks_through_the_fastest_of_some_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = needs(device=torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr("tuner.kernels.flash4.find_spec", lambda _: None)
    assert attention.choose_for_compiled("auto", gpu)[0] == "varlen"
    assert attention.choose_for_compiled("varlen", gpu)[0] == "varlen"
    assert attention.choose_for_compiled("sdpa", gpu) == (None, "machine.attention=sdpa")
    name, why = attention.choose_for_compiled("auto", needs())
    assert name is None
    assert "NVIDIA GPUs only" in why


def test_every_backend_stands_in_the_table_and_among_the_words_of_the_config() -> None:
    modules = [
        importlib.import_module(f"tuner.kernels.{found.name}") for found in iter_modules(kernels.__path__)
    ]
    written = [module.BACKEND for module in modules if hasattr(module, "BACKEND")]
    assert {backend.name: backend for backend in written} == attention.BACKENDS
    assert get_args(get_type_hints(Machine)["attention"]) == ("auto", *attention.BACKENDS)


def test_another_backend_for_a_while() -> None:
    q = torch.randn(1, 2, 5, 8)
    with using_backend("varlen"), pytest.raises(NotImplementedError, match="CPU"):
        packed_attention(torch.nn.Module(), q, q, q, None, position_ids=positions(5))
    packed_attention(torch.nn.Module(), q, q, q, None, position_ids=positions(5))
    with pytest.raises(ValueError, match="'fast' is none of flash4, flash, varlen, flex, sdpa"):
        attention.use_backend("fast")


def flash_as_documented(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> torch.Tensor:
    """What the README of flash-attn 2 says of its function: a query i sees keys from i - window_size[0] to
    i + window_size[1].
    """
    assert q.shape[-1] % 8 == 0
    assert q.shape[-1] == k.shape[-1] == v.shape[-1]
    assert (max_seqlen_q, max_seqlen_k, causal, dropout_p, deterministic) == (19, 19, True, 0.0, False)
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    scoring = Scoring(
        scaling=softmax_scale or 0.0,
        window=window_size[0] + 1 if window_size[0] >= 0 else None,
        softcap=softcap or None,
    )
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return reference(q, k, v, cu_seqlens_q.diff().tolist(), scoring)[0].to(q.dtype)


@pytest.mark.parametrize(("width", "values"), [(16, 16), (12, 12), (24, 16)])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (6, None), (6, 3.0), (100, None)])
def test_what_flash_attention_is_told(
    monkeypatch: pytest.MonkeyPatch, width: int, values: int, window: int | None, softcap: float | None
) -> None:
    monkeypatch.setattr(flash, "version_for", lambda *_, **__: 2)
    monkeypatch.setattr(flash, "varlen_function", lambda _: flash_as_documented)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 6, 29, width), torch.randn(1, 2, 29, width), torch.randn(1, 2, 29, values)
    scoring = Scoring(scaling=0.4, window=window, softcap=softcap)
    found = flash.attend(q, k, v, row(LENGTHS), scoring)
    torch.testing.assert_close(found.double(), reference(q, k, v, LENGTHS, scoring), atol=1e-6, rtol=1e-6)


def test_a_flash_attention_without_a_word_for_something_is_not_called_without_it() -> None:
    def older(
        q: object,
        k: object,
        v: object,
        cu_seqlens_q: object,
        cu_seqlens_k: object,
        max_seqlen_q: int,
        max_seqlen_k: int,
        softmax_scale: float,
        causal: bool,
    ) -> None: ...

    assert flash.call_keywords(older, row(LENGTHS), Scoring(scaling=1.0, window=99), deterministic=False)[
        "causal"
    ]
    for scoring, deterministic, word in (
        (Scoring(scaling=1.0, window=3), False, "window_size"),
        (Scoring(scaling=1.0), True, "deterministic"),
    ):
        with pytest.raises(NotImplementedError, match=f"no {word}"):
            flash.call_keywords(older, row(LENGTHS), scoring, deterministic=deterministic)


def varlen_before_2_12(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """As PyTorch 2.11 has it."""
    assert window_size[1] == 0
    return flash_as_documented(
        query,
        key,
        value,
        cu_seq_q,
        cu_seq_k,
        max_q,
        max_k,
        softmax_scale=scale,
        causal=True,
        window_size=window_size,
    )


def varlen_since_2_12(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> torch.Tensor:
    """As PyTorch 2.13 has it."""
    assert enable_gqa
    return varlen_before_2_12(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size
    )


@pytest.mark.parametrize("called", [varlen_before_2_12, varlen_since_2_12])
@pytest.mark.parametrize("window", [None, 6])
def test_what_either_signature_of_pytorch_is_told(
    monkeypatch: pytest.MonkeyPatch, called: Callable[..., torch.Tensor], window: int | None
) -> None:
    module = importlib.import_module("torch.nn.attention.varlen")
    monkeypatch.setattr(module, "varlen_attn", called)
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 6, 29, 20), torch.randn(1, 2, 29, 20), torch.randn(1, 2, 29, 16)
    scoring = Scoring(scaling=0.4, window=window)
    found = varlen.attend(q, k, v, row(LENGTHS), scoring)
    torch.testing.assert_close(found.double(), reference(q, k, v, LENGTHS, scoring), atol=1e-6, rtol=1e-6)
