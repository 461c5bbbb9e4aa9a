"""An answer on a cache must be the one that reading everything anew gives."""

import json
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel
from transformers.generation import TopPLogitsWarper

from tests.conftest import SHARED
from tests.models.talkers import moody, sign
from tuner.data.tokenizer.load import load_vocabulary
from tuner.models.generate import CHUNK, CachedGenerator, decode_stream, sample_token, stop_ids
from tuner.models.load import load_model

TEXTS = [
    "你好，世界！🙂",
    "👩‍👩‍👧 한국어 é́",
    "  two spaces\n\n\tand 'breaks' ",
    "a",
    "ordinary words, and more of them",
]


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return load_vocabulary(tiny_model).tokenizer


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> PreTrainedModel:
    return moody(tokenizer)


def speaker(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    *,
    stops: frozenset[int] = frozenset(),
    temperature: float = 0.0,
    seed: int = 0,
) -> CachedGenerator:
    return CachedGenerator(model, tokenizer, stops=stops, temperature=temperature, top_p=1.0, seed=seed)


def greedy(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    """The definition: the likeliest next token, the whole text read anew each time."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def read_by(model: PreTrainedModel) -> list[int]:
    """How many tokens each pass of the model reads, from now on."""
    lengths: list[int] = []
    model.register_forward_pre_hook(
        lambda _, __, words: lengths.append(words["input_ids"].shape[1]), with_kwargs=True
    )
    return lengths


def test_answers_over_a_conversation_are_those_of_reading_all_of_it_anew(
    model: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    one, draws = speaker(model, tokenizer), random.Random(0)
    long = [draws.randrange(3, 290) for _ in range(2 * CHUNK + 9)]
    prompts = [
        [5, 9, 31, 7],
        [5, 9, 31, 7, *greedy(model, [5, 9, 31, 7], 6), 44, 45],
        [5, 9, 99],
        long,
        [*long, 12, 13],
        long[:50],
        long[:50],
    ]
    for prompt in prompts:
        expected = greedy(model, prompt, 6)
        assert "".join(one.answer(prompt, most=6)) == tokenizer.decode(expected).replace("\ufffd", "")
        assert list(one.read) == [*prompt, *expected[:-1]]
    assert len({tuple(greedy(model, prompt, 6)) for prompt in prompts}) == len(prompts) - 1, (
        "the model should not say the same to everything"
    )


def test_only_what_is_new_is_read(tokenizer: Tokenizer) -> None:
    model = moody(tokenizer)
    lengths, one = read_by(model), speaker(model, tokenizer)
    first = list(range(10, 10 + CHUNK + 20))
    list(one.answer(first, most=3))
    assert lengths == [CHUNK, 20, 1, 1]
    lengths.clear()
    list(one.answer([*one.read, 50, 51, 52], most=1))
    assert lengths == [3]
    lengths.clear()
    list(one.answer([*first[:100], 7, 8], most=2))
    assert lengths == [2, 1]


def test_what_ends_an_answer(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    prompt = [5, 9, 31, 7]
    whole = greedy(model, prompt, 12)
    at = next(i for i in range(4, 12) if whole[i] not in whole[:i])
    one = speaker(model, tokenizer, stops=frozenset([whole[at], 0]))
    assert "".join(one.answer(prompt, most=12)) == tokenizer.decode(whole[:at]).replace("\ufffd", "")
    assert one.ended == "end"
    list(one.answer(prompt, most=2))
    assert one.ended == "length"
    said: list[str] = []
    for piece in speaker(model, tokenizer).answer(prompt, most=12, stopped=lambda: len(said) == 3):
        said.append(piece)
    assert "".join(said) == tokenizer.decode(whole[:3]).replace("\ufffd", "")
    stopped = speaker(model, tokenizer)
    assert list(stopped.answer(prompt, most=12, stopped=lambda: True)) == []
    assert stopped.ended == "stopped"


def test_every_end_of_turn_of_the_artifact_ends_an_answer(tmp_path: Path) -> None:
    assert stop_ids(tmp_path, [2]) == {2}
    for told, expected in ((7, {2, 7}), ([2, 5, 9], {2, 5, 9}), (None, {2})):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": told}), encoding="utf-8")
        assert stop_ids(tmp_path, [2]) == expected


def test_a_pass_that_broke_off_leaves_nothing_half_read(tokenizer: Tokenizer) -> None:
    model = moody(tokenizer)
    one = speaker(model, tokenizer)
    list(one.answer([5, 9, 31, 7], most=3))
    hook = model.model.layers[1].register_forward_pre_hook(
        lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        list(one.answer([5, 9, 31, 7, 8, 9], most=3))
    hook.remove()
    assert one.read == ()
    assert "".join(one.answer([5, 9, 31, 7, 8, 9], most=5)) == tokenizer.decode(
        greedy(model, [5, 9, 31, 7, 8, 9], 5)
    ).replace("\ufffd", "")


def test_layers_with_a_window_have_no_way_back_and_are_read_anew(tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
        initializer_range=0.3,
    )
    model = MistralForCausalLM(config).eval()
    one = speaker(model, tokenizer)
    for prompt in (list(range(20, 40)), [*range(20, 38), 7, 8], [20, 21, 22]):
        assert "".join(one.answer(prompt, most=5)) == tokenizer.decode(greedy(model, prompt, 5)).replace(
            "\ufffd", ""
        )


def test_a_seed_gives_the_same_draws(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    def said(seed: int) -> list[str]:
        one = speaker(model, tokenizer, temperature=1.5, seed=seed)
        return ["".join(one.answer([5, 9, 31], most=12)) for _ in range(2)]

    assert said(1) == said(1)
    assert said(1) != said(2)
    assert said(1)[0] != said(1)[1], "the draws go on from answer to answer"


def test_draws_follow_the_temperature() -> None:
    logits, generator = torch.tensor([2.0, 1.0, 0.0, -1.0]), torch.Generator().manual_seed(0)
    counts = torch.zeros(4)
    for _ in range(4000):
        counts[sample_token(logits, temperature=0.7, top_p=1.0, random=generator)] += 1
    torch.testing.assert_close(counts / 4000, torch.softmax(logits / 0.7, 0), rtol=0, atol=0.03)
    assert {sample_token(logits, temperature=0.0, top_p=1.0, random=generator) for _ in range(5)} == {0}
    assert {sample_token(logits, temperature=1e-30, top_p=1.0, random=generator) for _ in range(5)} == {0}


@pytest.mark.parametrize("top_p", [0.05, 0.4, 0.8, 0.97])
def test_top_p_keeps_the_tokens_that_transformers_keeps(top_p: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, generator=generator) * 2
    kept = TopPLogitsWarper(top_p)(torch.zeros(1, 1), logits[None])[0].isfinite().nonzero().flatten().tolist()
    drawn = {sample_token(logits, temperature=1.0, top_p=top_p, random=generator) for _ in range(6000)}
    assert sorted(drawn) == kept
    assert len(kept) < 12


@pytest.mark.parametrize("name", ["smollm2", "qwen2_5", "minimind", "mistral_nemo", "internlm2_hf_fast"])
def test_pieces_are_whole_characters_and_join_to_the_text(name: str) -> None:
    if not (SHARED / "tokenizers" / name).is_dir():
        pytest.skip("the shared tokenizers are not here")
    tokenizer = load_vocabulary(SHARED / "tokenizers" / name).tokenizer
    for text in [*TEXTS, "".join(TEXTS)]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        found = list(decode_stream(tokenizer, ids))
        assert "".join(found) == tokenizer.decode(ids)
        assert len(found) >= len(ids)
        cut = "".join(decode_stream(tokenizer, ids[:-1]))
        assert text.lstrip().startswith(cut.strip()), "a cut text ends before the character that it cuts"
    draws = random.Random(0)
    for _ in range(200):
        garbage = [
            draws.randrange(300 if draws.random() < 0.7 else tokenizer.get_vocab_size()) for _ in range(40)
        ]
        assert "\ufffd" not in "".join(decode_stream(tokenizer, garbage))


def test_a_piece_comes_as_soon_as_it_is_whole(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.token_to_id(sign(byte)) for byte in "é🙂!".encode()]
    assert list(decode_stream(tokenizer, ids)) == ["", "é", "", "", "", "🙂", "!"]


def test_the_cache_of_a_loaded_model_is_on(tmp_path: Path, tokenizer: Tokenizer) -> None:
    moody(tokenizer).save_pretrained(tmp_path)
    model = load_model(tmp_path, dtype=torch.float32, device="cpu", attention="sdpa")
    one = speaker(model, tokenizer)
    assert "".join(one.answer([5, 9, 31], most=5)) == tokenizer.decode(greedy(model, [5, 9, 31], 5)).replace(
        "\ufffd", ""
    )
