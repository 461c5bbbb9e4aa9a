"""The report compares like with like and shows what the model wrote, as it wrote it."""

import json

import pytest

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


def test_before_and_after_side_by_side() -> None:
    report = compare_measurements(BEFORE, AFTER)
    assert report["held_out"]["loss"] == {"before": 2.0, "after": 1.5}
    assert report["answers"][0]["after"] == "我是 Tuna。"
    assert json.loads(json.dumps(report)) == report


def test_markdown_shows_answers_as_written() -> None:
    page = to_markdown(compare_measurements(BEFORE, AFTER))
    assert "| held-out loss | 2.0000 | 1.5000 |" in page
    assert "> I am \\<b\\>SmolLM\\</b\\>\n> \\# really \\| \\*x\\*" in page
    assert "### 你是谁？" in page


@pytest.mark.parametrize(("tokens", "little"), [(1, True), (1999, True), (2000, False), (54_321, False)])
def test_it_says_how_many_tokens_a_loss_stands_on_and_where_they_are_few(tokens: int, little: bool) -> None:
    report = compare_measurements(BEFORE | {"tokens": tokens}, AFTER | {"tokens": tokens})
    for text in (headline(report), to_markdown(report)):
        assert f"{tokens:,} tokens" in text
        assert ("which is little" in text) is little


def test_nothing_held_out_and_nothing_asked() -> None:
    nothing = {"loss": None, "perplexity": None, "tokens": 0, "answers": []}
    report = compare_measurements(nothing, nothing)
    assert "nothing was held out" in headline(report)
    page = to_markdown(report)
    assert "Nothing was held out" in page
    assert "Answers" not in page


@pytest.mark.parametrize(("quant", "bits"), [("nf4", 4), ("int8", 8)])
def test_what_before_is_where_the_base_was_quantised(quant: str, bits: int) -> None:
    page = to_markdown(compare_measurements(BEFORE, AFTER, quant=quant))
    assert (
        f"Before is the base as it was published, not the one in {bits} bits that training began with" in page
    )
    assert "as it was published" not in to_markdown(compare_measurements(BEFORE, AFTER))
    assert "quant" not in compare_measurements(BEFORE, AFTER)


def test_an_empty_answer_is_said() -> None:
    silent = BEFORE | {"answers": [{"prompt": "你是谁？", "answer": ""}]}
    assert "> (nothing)" in to_markdown(compare_measurements(silent, AFTER))


@pytest.mark.parametrize(
    "other", [{"tokens": 7}, {"answers": []}, {"answers": [{"prompt": "another", "answer": ""}]}]
)
def test_unlike_measurements_are_refused(other: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="different held-out tokens or questions"):
        compare_measurements(BEFORE, AFTER | other)
