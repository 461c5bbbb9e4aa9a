"""An answer must not depend on the prompts it shared a batch with."""

from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from tests.models.tiny import write_tiny
from tuner.models.generate import generate_answers, pad_left
from tuner.models.load import load_model

PROMPTS = [
    [5, 9, 31, 7],
    [6],
    [800, 801, 802, 803, 804, 805, 806, 807, 808, 809],
    [44, 45],
    [6399, 12, 13, 14, 15, 16],
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return load_model(
        write_tiny(tmp_path_factory.mktemp("m")), dtype=torch.float32, device="cpu", attention="sdpa"
    )


def greedy(model: PreTrainedModel, prompt: list[int], steps: int) -> list[int]:
    """The definition: the likeliest next token, the whole text read anew each time."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(steps):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_a_batch_equals_one_by_one_equals_the_definition(model: PreTrainedModel) -> None:
    together = generate_answers(model, PROMPTS, end_id=2, max_new_tokens=12)
    assert together == [
        generate_answers(model, [prompt], end_id=2, max_new_tokens=12)[0] for prompt in PROMPTS
    ]
    assert together == [greedy(model, prompt, 12) for prompt in PROMPTS]
    assert len({tuple(ids) for ids in together}) == len(PROMPTS), (
        "the tiny model should not say the same to everything"
    )


def test_an_answer_ends_at_the_end_token(model: PreTrainedModel) -> None:
    whole = greedy(model, PROMPTS[0], 12)
    at = 5
    cut = generate_answers(model, PROMPTS, end_id=whole[at], max_new_tokens=12)[0]
    assert cut == whole[: whole.index(whole[at])]


def test_many_prompts_take_several_batches(model: PreTrainedModel) -> None:
    many = PROMPTS * 4
    assert (
        generate_answers(model, many, end_id=2, max_new_tokens=3)
        == generate_answers(model, PROMPTS, end_id=2, max_new_tokens=3) * 4
    )
    assert generate_answers(model, [], end_id=2, max_new_tokens=3) == []


def test_shipped_sampling_settings_are_set_aside_and_come_back(model: PreTrainedModel) -> None:
    plain = generate_answers(model, PROMPTS, end_id=2, max_new_tokens=8)
    shipped = GenerationConfig(do_sample=True, temperature=5.0, repetition_penalty=3.0, max_length=20)
    before, model.generation_config = model.generation_config, shipped
    try:
        assert generate_answers(model, PROMPTS, end_id=2, max_new_tokens=8) == plain
        assert model.generation_config is shipped
    finally:
        model.generation_config = before


def test_padding_is_on_the_left(tmp_path: Path) -> None:
    ids, mask = pad_left([[5, 6, 7], [8]], 2)
    assert ids.tolist() == [[5, 6, 7], [2, 2, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
