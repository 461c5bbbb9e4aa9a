"""An answer in a batch must be the one that the prompt gets alone, whoever is answered beside it."""

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel

from tests.models.talkers import moody
from tuner.data.tokenizer.load import load_vocabulary
from tuner.models.predict.batch import Answer, Batcher, Prompt, plan_batches

MOST = 14


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> PreTrainedModel:
    return moody(load_vocabulary(tiny_model).tokenizer)


@pytest.fixture(scope="module")
def windowed(model: PreTrainedModel) -> PreTrainedModel:
    """Attention sees the last 6 tokens."""
    torch.manual_seed(1)
    config = MistralConfig(
        vocab_size=model.config.vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=6,
        initializer_range=0.3,
    )
    return MistralForCausalLM(config).eval()


def prompts(seed: int, count: int = 11) -> list[Prompt]:
    draws = random.Random(seed)
    return [
        Prompt(
            ids=[draws.randrange(3, 290) for _ in range(draws.randrange(1, 40))],
            most=draws.randrange(1, MOST + 1),
            seed=number,
        )
        for number in range(count)
    ]


def alone(model: PreTrainedModel, prompt: Prompt, stops: frozenset[int]) -> Answer:
    """The definition: the likeliest next token, the whole text read anew each time."""
    ids, answer = list(prompt.ids), Answer()
    with torch.inference_mode():
        for _ in range(prompt.most):
            logs_V = model(torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(-1)
            ids.append(int(logs_V.argmax()))
            if ids[-1] in stops:
                answer.ended = "end"
                break
            answer.ids.append(ids[-1])
            answer.logprobs.append(float(logs_V.max()))
    return answer


@pytest.mark.parametrize("family", ["model", "windowed"])
@pytest.mark.parametrize("seed", range(3))
def test_greedy_answers_are_those_of_each_prompt_alone(
    family: str, seed: int, request: pytest.FixtureRequest
) -> None:
    model: PreTrainedModel = request.getfixturevalue(family)
    asked = prompts(seed)
    free = [alone(model, prompt, frozenset()) for prompt in asked]
    stops = frozenset([free[0].ids[-1], free[3].ids[0], free[5].ids[len(free[5].ids) // 2]])
    expected = [alone(model, prompt, stops) for prompt in asked]
    assert {answer.ended for answer in expected} == {"end", "length"}
    for found in (
        Batcher(model, stops=stops, logprobs=True).answer(asked),
        [
            answer
            for at in range(0, len(asked), 3)
            for answer in Batcher(model, stops=stops, logprobs=True).answer(asked[at : at + 3])
        ],
    ):
        assert [(one.ids, one.ended) for one in found] == [(one.ids, one.ended) for one in expected]
        for one, theirs in zip(found, expected, strict=True):
            assert one.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


def test_what_has_ended_leaves_the_batch(model: PreTrainedModel) -> None:
    asked = [Prompt(ids=[5, 6, 7 + at], most=1 if at else 9) for at in range(8)]
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _, __, words: sizes.append(len(words["input_ids"])), with_kwargs=True
    )
    told: list[int] = []
    Batcher(model, stops=frozenset([2])).answer(asked, told.append)
    handle.remove()
    assert sizes == [8] + [1] * 8
    assert told == sizes


def test_draws_are_a_rows_own(model: PreTrainedModel) -> None:
    asked = prompts(7)
    words = {"stops": frozenset([2]), "temperature": 1.0, "top_p": 0.9}
    together = Batcher(model, **words).answer(asked)
    assert [one.ids for one in together] == [Batcher(model, **words).answer([one])[0].ids for one in asked]
    again = [Prompt(ids=one.ids, most=one.most, seed=one.seed + 1) for one in asked]
    assert [one.ids for one in together] != [one.ids for one in Batcher(model, **words).answer(again)]


@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(1, 40)), max_size=40),
    st.integers(1, 9),
    st.integers(1, 400),
)
def test_every_prompt_is_in_one_batch_that_is_not_too_large(
    sizes: list[tuple[int, int]], together: int, tokens: int
) -> None:
    lengths, most = [length for length, _ in sizes], [longest for _, longest in sizes]
    batches = plan_batches(lengths, most, together=together, tokens=tokens)
    assert sorted(at for batch in batches for at in batch) == list(range(len(sizes)))
    for batch in batches:
        assert len(batch) <= together
        assert len(batch) == 1 or len(batch) * max(lengths[at] + most[at] for at in batch) <= tokens
    told = [lengths[at] for batch in batches for at in batch]
    assert told == sorted(told, reverse=True)
