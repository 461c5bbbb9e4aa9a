"""The report compares like with like and shows what the model wrote, as it wrote it."""

import json

import pytest
from transformers import GenerationConfig

from tuner.report.answered import GREEDY, answered, not_greedy
from tuner.report.page import compare_measurements, headline, to_markdown

BEFORE = {
    "loss": 2.0,
    "perplexity": 7.389,
    "tokens": 1200,
    "answers": [{"prompt": "你是谁？", "answer": "I am <b>SmolLM</b>\n# really | *x*"}],
}
AFTER = {
    "loss": 1.5,
    "perplexity": 4.4817,
    "tokens": 1200,
    "answers": [{"prompt": "你是谁？", "answer": "我是 Tuna。"}],
}


HOW = answered(
    precision="bf16",
    quant="none",
    most=48,
    facts={"device": "cpu", "compute": "bfloat16"},
    before={"device": "cpu", "compute": "bfloat16"},
    settings={"eos_token_id": [2], "temperature": 0.6},
)


def test_before_and_after_side_by_side() -> None:
    report = compare_measurements(BEFORE, AFTER, HOW)
    assert report["held_out"]["loss"] == {"before": 2.0, "after": 1.5}
    assert report["answers"][0]["after"] == "我是 Tuna。"
    assert json.loads(json.dumps(report)) == report


def test_markdown_shows_answers_as_written() -> None:
    page = to_markdown(compare_measurements(BEFORE, AFTER, HOW))
    assert "| held-out loss | 2.0000 | 1.5000 |" in page
    assert "> I am \\<b\\>SmolLM\\</b\\>\n> \\# really \\| \\*x\\*" in page
    assert "### 你是谁？" in page


@pytest.mark.parametrize(("tokens", "little"), [(1, True), (1999, True), (2000, False), (54_321, False)])
def test_it_says_how_many_tokens_a_loss_stands_on_and_where_they_are_few(tokens: int, little: bool) -> None:
    report = compare_measurements(BEFORE | {"tokens": tokens}, AFTER | {"tokens": tokens}, HOW)
    for text in (headline(report), to_markdown(report)):
        assert f"{tokens:,} tokens" in text
        assert ("which is little" in text) is little


def test_nothing_held_out_and_nothing_asked() -> None:
    nothing = {"loss": None, "perplexity": None, "tokens": 0, "answers": []}
    report = compare_measurements(nothing, nothing, HOW)
    assert "nothing was held out" in headline(report)
    page = to_markdown(report)
    assert "Nothing was held out" in page
    assert "Answers" not in page


@pytest.mark.parametrize(("quant", "bits"), [("nf4", 4), ("int8", 8)])
def test_what_before_is_where_the_base_was_quantised(quant: str, bits: int) -> None:
    page = to_markdown(compare_measurements(BEFORE, AFTER, HOW | {"quant": quant}))
    assert (
        f"Before is the base as it was published, not the one in {bits} bits that training began with" in page
    )
    assert "as it was published" not in to_markdown(compare_measurements(BEFORE, AFTER, HOW))
    assert f"keeps the base in {bits} bits" in page


def test_it_says_how_it_was_asked_and_who_would_answer_otherwise() -> None:
    page = to_markdown(compare_measurements(BEFORE, AFTER, HOW))
    assert "Greedy, one turn each, up to 48 tokens, in bfloat16 on cpu." in page
    assert "in the same dtype and by the same decoding" in page
    for other, said in (
        ({"dtype": "float32"}, "with dtype=torch.float32"),
        ({"before": {"dtype": "bfloat16", "device": "cuda"}}, "The base was asked in bfloat16 on cuda"),
        ({"generation_config": {"do_sample": True, "top_p": 0.9}}, "they take do_sample=False."),
    ):
        page = to_markdown(compare_measurements(BEFORE, AFTER, HOW | other))
        assert said in page
        assert "by the same decoding" not in page


@pytest.mark.parametrize("setting", sorted(GREEDY))
def test_each_setting_that_is_told_has_a_value_that_transformers_takes_for_greedy(setting: str) -> None:
    assert GenerationConfig(**{setting: GREEDY[setting]}).get_generation_mode() == "greedy_search"
    assert not_greedy({setting: GREEDY[setting]}) == {}


def test_an_empty_answer_is_said() -> None:
    silent = BEFORE | {"answers": [{"prompt": "你是谁？", "answer": ""}]}
    assert "> (nothing)" in to_markdown(compare_measurements(silent, AFTER, HOW))


@pytest.mark.parametrize(
    "other", [{"tokens": 7}, {"answers": []}, {"answers": [{"prompt": "another", "answer": ""}]}]
)
def test_unlike_measurements_are_refused(other: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="different held-out tokens or questions"):
        compare_measurements(BEFORE, AFTER | other, HOW)
