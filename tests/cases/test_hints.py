"""Files of other trainers are read as they are, and what is proposed works when it is pasted: shared cases
and others, through the front door.
"""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.cases.conftest import Preview, brought, shared, trained
from tests.conftest import Done, Tuner, write_rows

USER, ANSWER = {"role": "user", "content": "What is 1+1?"}, {"role": "assistant", "content": "2."}


def hinted(refused: Done, begin: str = "To read them: ") -> list[str]:
    """The words of a hint, as a shell takes them."""
    (line,) = [line for line in refused.err.splitlines() if begin in line]
    return shlex.split(re.sub(r" \(which does not read .*\)$", "", line.split(begin)[1]))


@shared
def test_xtuners_conversations_are_read(preview: Preview, tmp_path: Path) -> None:
    brought("xtuner_and_firefly_conversation", tmp_path)
    brought("xtuner_pretrain_role", tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "xtuner.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["conversation"][0]["output_with_loss"] = False
    write_rows(tmp_path / "loss.jsonl", rows)
    write_rows(
        tmp_path / "firefly.jsonl",
        [
            {
                "conversation_id": 1,
                "category": "x",
                "conversation": [{"human": "What is 1+1?", "assistant": "2."}],
            }
        ],
    )
    names = ("xtuner", "loss", "firefly", "xtuner_pretrain", "pretrain")
    shown = preview(
        f"data.path=[{','.join(f'{name}.jsonl' for name in names)}]", *(f"{name}.jsonl:1" for name in names)
    )
    texts = ["A text of number 0 to be read.", "A text of number 0 that is to be read as it is."]
    answers = ["1.", "2.", "2.", "2."]
    # the first token of a document has nothing before it, and is not trained
    assert trained(shown) == [f"{text}<|im_end|>" for text in (*answers, *(text[1:] for text in texts))]
    assert shown.out.count("You are a helper.") == 2


@shared
def test_calls_that_are_turns_are_read(preview: Preview, tmp_path: Path) -> None:
    brought("swift_tool_roles", tmp_path)
    called, said = trained(preview("1", "--all", "data.path=swift.jsonl", "model/chat=qwen3"))
    assert '{"name": "get_air", "arguments": {"city": "city 0"}}' in called
    assert "It is 40 in city 0." in said


@shared
def test_no_hint_drops_the_context(preview: Preview, tmp_path: Path) -> None:
    brought("hint_drops_context", tmp_path)
    dolly = preview("1", "data.path=dolly.jsonl")
    assert "How many legs has animal 0?\nAnimal 0 has 2 legs." in dolly.out
    assert "not read: category" in dolly.err
    left = preview(
        "1", "data.path=dolly.jsonl", "data.columns.instruction=instruction", "data.columns.output=response"
    )
    assert "Animal 0 has 2 legs." not in left.out
    assert (
        "not read: context, text in 1 of 1 rows; category in 1 of 1 rows; to use it: "
        "data.columns.input=context" in left.err
    )
    refused = preview("1", "data.path=ctx.jsonl", code=2)
    words = hinted(refused)
    assert "data.columns.input=context" in words
    shown = preview("1", "data.path=ctx.jsonl", *words)
    assert "How many legs has animal 0?\nAnimal 0 is a spider-like thing with 2 legs." in shown.out
    assert trained(shown) == ["2 legs.<|im_end|>"]
    assert "not read" not in shown.err
    write_rows(
        tmp_path / "orca.jsonl",
        [{"id": "niv.1", "system_prompt": "Be brief.", "question": "What is 1+1?", "response": "2."}],
    )
    assert "system\nBe brief." in preview("1", "data.path=orca.jsonl").out


@shared
def test_of_comparisons_the_better_answer_can_be_trained(preview: Preview, tmp_path: Path) -> None:
    brought("preference_hint", tmp_path)
    for name in ("ultrafeedback_like.jsonl", "llamafactory_dpo.jsonl"):
        refused = preview("1", f"data.path={name}", code=2)
        assert "rows of comparisons" in refused.err
        words = hinted(refused, "To train on the better answers alone: ")
        shown = preview("1", f"data.path={name}", *words)
        assert shown.out.count("What is 0+1?") == 1
        assert trained(shown) == ["1.<|im_end|>"]
        assert "no idea" not in shown.out


def test_bad_rows_of_comparisons_are_not_the_first_thing_to_mend(preview: Preview, tmp_path: Path) -> None:
    good = {"prompt": "What is 1+1?", "chosen": "2.", "rejected": "3."}
    write_rows(tmp_path / "dpo.jsonl", [{**good, "chosen": None}, good, good])
    refused = preview("1", "data.path=dpo.jsonl", code=2)
    assert "found 3 rows of comparisons" in refused.err
    assert "dpo.jsonl:1: chosen must be a string" in refused.err
    assert "Mend" not in refused.err
    assert hinted(refused, "To train on the better answers alone: ") == ["data.format=chosen"]
    write_rows(tmp_path / "none.jsonl", [{**good, "chosen": None}] * 3)
    refused = preview("1", "data.path=none.jsonl", code=2)
    assert "found 3 rows of comparisons" in refused.err
    assert "To train on" not in refused.err


MANY: dict[str, tuple[Any, list[str]]] = {
    "math": ({"problem": "1+1=#?", "solution": "One and one is #.", "answer": "#"}, ["One and one is 0."]),
    "squad": ({"context": "It is #.", "question": "What is it?", "answers": {"text": ["#."]}}, ["0."]),
    "support": ({"dialog": [{"role": "客户", "content": "#?"}, {"role": "客服", "content": "#。"}]}, ["0。"]),
    "choices": ({"question": "1+#?", "A": "One of them", "B": "The other one", "answer": "A"}, ["A"]),
    "document": (
        {"title": "A title", "body": "A text of #, as long as it takes to be one."},
        ["of 0, as long"],
    ),
}


@pytest.mark.parametrize("name", MANY)
def test_what_is_proposed_reads_the_file(name: str, preview: Preview, tmp_path: Path) -> None:
    row, expected = MANY[name]
    write_rows(
        tmp_path / "rows.jsonl",
        [json.loads(json.dumps(row).replace("#", str(number))) for number in range(5)],
    )
    refused = preview("1", "data.path=rows.jsonl", code=2)
    promised = re.findall(r"(\S+) in 5 of 5 rows", refused.err)
    shown = preview("1", "data.path=rows.jsonl", *hinted(refused))
    assert [
        found for found, wanted in zip(trained(shown), expected, strict=True) if wanted not in found
    ] == []
    named = [line for line in shown.err.splitlines() if line.startswith("not read: ")]
    assert len(named) == bool(promised)
    assert all(name in named[0] for name in promised)


def test_where_nothing_works_nothing_is_proposed(preview: Preview, tmp_path: Path) -> None:
    write_rows(
        tmp_path / "rows.jsonl",
        [{"messages": [{"role": "foo", "content": "a"}, {"role": "bar", "content": "b"}]}] * 3,
    )
    refused = preview("1", "data.path=rows.jsonl", code=2)
    assert "a turn of 'foo'; known are" in refused.err
    assert "To read them" not in refused.err
    assert "data.roles." not in refused.err


def test_bad_rows_among_good_ones_are_given_words_that_read_both(
    tuner: Tuner, tiny_model: Path, tmp_path: Path
) -> None:
    words = (
        "model=local",
        f"model.path={tiny_model}",
        "machine=cpu",
        "data=local",
        "data.path=rows.jsonl",
        "until=tokenize",
    )
    other = {"messages": [USER, {"role": "doctor", "content": "2."}]}
    write_rows(tmp_path / "rows.jsonl", [{"messages": [USER, ANSWER]}] * 30 + [other])
    refused = tuner(*words, code=2)
    assert "rows.jsonl:31: a turn of 'doctor'" in refused.err
    tuner(*words, *hinted(refused))
    write_rows(
        tmp_path / "rows.jsonl",
        [{"messages": [USER, ANSWER]}] * 30 + [{"messages": [USER, {"role": "assistant", "content": 3}]}],
    )
    refused = tuner(*words, code=2)
    assert "rows.jsonl:31: content must be a string" in refused.err
    assert "data.bad_rows=skip" in refused.err
    assert "To read them" not in refused.err
