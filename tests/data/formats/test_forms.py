"""Files of other trainers and known sets, as they are: exchanges, documents in turns, calls that are
turns, columns that are called otherwise.
"""

import json
from typing import Any

import pytest

from tests.data.formats.test_formats import A, U, brief, one, said
from tuner.data.conversation import Call, Conversation, RowError, Text
from tuner.data.formats.detect import sniff
from tuner.data.formats.rows import read_row
from tuner.data.formats.shape import RowShape

Q, R = {"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}
CALL = {"name": "look", "arguments": {"at": "云"}}
SEEN = 'look{"at": "\\u4e91"}'


def exchanges(*entries: Any, **beside: Any) -> dict[str, Any]:
    return {"conversation": list(entries), **beside}


EXCHANGES: list[tuple[Any, list[str]]] = [
    (
        exchanges({"system": "s", "input": "u", "output": "a"}, {"input": "v", "output": "b"}),
        ["s s", "u u", "a* a", "u v", "a* b"],
    ),
    (
        exchanges({"system": "", "input": "u", "output": "a", "need_eos_token": True, "sep": ""}),
        ["u u", "a* a"],
    ),
    (
        exchanges({"input": "u", "output": "a", "output_with_loss": False}, {"input": "v", "output": "b"}),
        ["u u", "a a", "u v", "a* b"],
    ),
    (
        exchanges(
            {"input": "u", "output": "a", "output_with_loss": "True"},
            {"input": "v", "output": "b", "output_with_loss": 0},
        ),
        ["u u", "a* a", "u v", "a b"],
    ),
    (
        exchanges(
            {"human": "u", "assistant": "a", "loss": 0}, {"human": "v", "assistant": "b", "masked": True}
        ),
        ["u u", "a a", "u v", "a b"],
    ),
    (exchanges({"system": "s", "input": "", "output": "a"}), ["s s", "a* a"]),
    (exchanges({"input": "", "output": "a"}, {"input": "u", "output": "b"}), ["a* a", "u u", "a* b"]),
    (exchanges({"input": "u", "output": ""}), ["u u", "a* "]),
    (exchanges({"input": "", "output": "a"}, system="s"), ["s s", "a* a"]),
    (
        exchanges(
            {"human": "u", "assistant": "a"},
            {"human": "v", "assistant": "b"},
            conversation_id=1,
            category="x",
        ),
        ["u u", "a* a", "u v", "a* b"],
    ),
    (exchanges({"Human": "u", "Assistant": "a"}), ["u u", "a* a"]),
    (exchanges({"instruction": "u", "input": "more", "output": "a"}), ["u u\nmore", "a* a"]),
    (exchanges({"question": "u", "answer": "a"}), ["u u", "a* a"]),
    ({"conversation": json.dumps([{"input": "u", "output": "a"}])}, ["u u", "a* a"]),
    ({"conversations": [{"human": "u", "assistant": "a"}]}, ["u u", "a* a"]),
    ({"messages": [{"input": "u", "output": "a"}]}, ["u u", "a* a"]),
    ({"turns": [{"user": "u", "bot": "a"}]}, ["u u", "a* a"]),
    ({"conversations": '[ {"input": "u", "output": "a"}]'}, ["u u", "a* a"]),
]


@pytest.mark.parametrize(("row", "expected"), EXCHANGES)
def test_exchanges_are_turns(row: Any, expected: list[str]) -> None:
    assert sniff(row) == "xtuner"
    assert brief(one(row).messages) == expected


def test_exchanges_without_a_question_are_documents() -> None:
    row = exchanges(
        {"input": "", "output": "a"}, {"input": None, "output": "b"}, {"output": " ", "input": ""}
    )
    assert (
        read_row(row, RowShape())
        == read_row(row, RowShape(format="xtuner"))
        == (Text(text="a"), Text(text="b"))
    )
    # the empty question of another form is a question that is missing
    assert brief(one(exchanges({"human": "", "assistant": "a"})).messages) == ["a* a"]


def test_exchanges_may_offer_tools() -> None:
    row = exchanges({"input": "u", "output": "a"}, tools=[{"name": "look"}])
    assert one(row).tools == ({"type": "function", "function": {"name": "look"}},)


@pytest.mark.parametrize(
    "row",
    [
        said({"role": "pretrain", "content": "a text"}),
        said({"role": "pretrain", "content": [{"type": "text", "text": "a text"}]}),
        said({"role": "pretrain", "content": "a text", "loss": True, "id": 7}),
        {"messages": '[{"role": "pretrain", "content": "a text"}]'},
        [{"role": "pretrain", "content": "a text"}],
        {"conversations": [{"role": "pretrain", "content": "a text"}]},
        {"conversation": [{"role": "pretrain", "content": "a text"}]},
        {"conversations": [{"from": "pretrain", "value": "a text"}]},
    ],
)
def test_a_turn_of_pretrain_is_a_document(row: Any) -> None:
    assert read_row(row, RowShape()) == (Text(text="a text"),)


def test_a_blank_document_is_none_and_a_role_of_ones_own_stays_a_role() -> None:
    assert read_row(said({"role": "pretrain", "content": " "}), RowShape()) == ()
    assert brief(
        one(said({"role": "pretrain", "content": "a"}), roles={"assistant": ("pretrain",)}).messages
    ) == ["a* a"]


def swift(*turns: dict[str, Any]) -> dict[str, Any]:
    return said(U, *turns)


def test_calls_that_are_turns_are_the_assistants() -> None:
    call, other = (
        {"role": "tool_call", "content": json.dumps(one)} for one in (CALL, {"name": "f", "arguments": {}})
    )
    answer = {"role": "tool_response", "content": "r"}
    assert brief(one(swift(call, answer, A)).messages) == ["u u", f"a*  {SEEN}", "t r", "a* a"]
    assert brief(one(swift(call, other, answer, answer, A)).messages) == [
        "u u",
        f"a*  {SEEN} f{{}}",
        "t r",
        "t r",
        "a* a",
    ]
    assert brief(one(swift(A, call, answer)).messages) == ["u u", f"a* a {SEEN}", "t r"]
    with_text = {"from": "function_call", "value": json.dumps(CALL), "content": "b"}
    assert brief(one({"conversations": [Q, R, with_text]}).messages) == ["u u", "a* a", f"a* b {SEEN}"]
    assert brief(one(swift({**call, "loss": False}, answer)).messages) == ["u u", f"a  {SEEN}", "t r"]
    assert brief(one(swift({"role": "tool_call", "content": CALL}, answer)).messages) == [
        "u u",
        f"a*  {SEEN}",
        "t r",
    ]
    assert brief(
        one(
            swift(
                {"role": "function_call", "content": json.dumps([CALL])},
                {"role": "observation", "content": "r"},
            )
        ).messages
    ) == [
        "u u",
        f"a*  {SEEN}",
        "t r",
    ]
    share = [Q, {"from": "tool_call", "value": json.dumps(CALL)}, {"from": "tool_response", "value": "r"}, R]
    assert brief(one({"conversations": share}).messages) == ["u u", f"a*  {SEEN}", "t r", "a* a"]
    assert one(swift(call)).messages[1].calls == (Call(name="look", arguments={"at": "云"}),)


def test_words_of_ones_own_for_calls_are_taken_as_they_are_said() -> None:
    assert brief(
        one(swift({"role": "tool_call", "content": "x"}), roles={"assistant": ("tool_call",)}).messages
    ) == ["u u", "a* x"]


KNOWN: list[tuple[str, Any, list[str]]] = [
    ("alpaca", {"instruction": "u", "context": "c", "response": "a", "category": "x"}, ["u u\nc", "a* a"]),
    ("alpaca", {"instruction": "u", "context": "", "response": "a"}, ["u u", "a* a"]),
    ("alpaca", {"instruction": "u", "response": "a"}, ["u u", "a* a"]),
    ("alpaca", {"instruction": "u", "input": "c", "response": "a", "system": "s"}, ["s s", "u u\nc", "a* a"]),
    ("alpaca", {"id": "7", "system_prompt": "s", "question": "u", "response": "a"}, ["s s", "u u", "a* a"]),
    ("alpaca", {"system_prompt": "", "question": "u", "response": "a"}, ["u u", "a* a"]),
    (
        "alpaca",
        {"query": "v", "response": "b", "history": [["u", "a"]], "system": "s"},
        ["s s", "u u", "a* a", "u v", "a* b"],
    ),
    ("alpaca", {"question": "u", "answer": "a", "score": 3, "id": "7", "source": "here"}, ["u u", "a* a"]),
    ("alpaca", {"question": "u", "reasoning": "it is so", "answer": "a"}, ["u u", "a* (it is so)a"]),
    ("alpaca", {"prompt": "u", "response": "a"}, ["u u", "a* a"]),
    ("alpaca", {"input": "u", "output": "a"}, ["u u", "a* a"]),
    ("alpaca", {"kind": "NLI", "input": "u", "target": "a"}, ["u u", "a* a"]),
    ("alpaca", {"human": "u", "bot": "a"}, ["u u", "a* a"]),
    ("alpaca", {"human": "u", "assistant": "a"}, ["u u", "a* a"]),
    ("messages", {"conversation": [U, A]}, ["u u", "a* a"]),
    (
        "messages",
        {"messages": [{"role": "user", "text": "u"}, {"role": "assistant", "text": "a"}]},
        ["u u", "a* a"],
    ),
    (
        "messages",
        {
            "turns": [
                {"speaker": "user", "utterance": "u"},
                {"speaker": "assistant", "utterance": "a", "loss": 0},
            ]
        },
        ["u u", "a a"],
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "content": "u"}, {"from": "gpt", "text": "a"}]},
        ["u u", "a* a"],
    ),
    ("alpaca", {"instruction": "u", "output": "a", "history": [U, A]}, ["u u", "a* a", "u u", "a* a"]),
    (
        "alpaca",
        {"query": "u", "response": "a", "history": [{"speaker": "user", "text": "v"}, {**A, "weight": 0}]},
        ["u v", "a a", "u u", "a* a"],
    ),
    ("messages", {"dialogue": [U, A], "topic": "x"}, ["u u", "a* a"]),
    ("messages", {"chat": json.dumps([U, A]), "system": "s"}, ["s s", "u u", "a* a"]),
    ("sharegpt", {"dialog": [Q, R]}, ["u u", "a* a"]),
    ("sharegpt", {"turns": [Q, R], "tools": "[]"}, ["u u", "a* a"]),
    ("sharegpt", {"messages": [Q, R]}, ["u u", "a* a"]),
]


@pytest.mark.parametrize(("format", "row", "expected"), KNOWN)
def test_known_sets_are_read_under_their_own_names(format: str, row: Any, expected: list[str]) -> None:
    assert sniff(row) == format
    assert brief(one(row).messages) == expected


def test_columns_go_before_what_is_known() -> None:
    row = {"input": "u", "output": "a", "instruction": "no"}
    assert brief(one(row, columns={"instruction": "input"}).messages) == ["u u", "a* a"]
    assert brief(one({"talk": [Q, R]}, columns={"messages": "talk"}).messages) == ["u u", "a* a"]
    assert brief(
        one({"talk": [{"input": "u", "output": "a"}]}, columns={"conversation": "talk"}).messages
    ) == ["u u", "a* a"]
    assert brief(
        one({"question": "u", "response": "a", "persona": "s"}, columns={"system": "persona"}).messages
    ) == ["s s", "u u", "a* a"]


def test_a_form_that_is_named_takes_only_its_own() -> None:
    with pytest.raises(RowError, match="output is expected"):
        read_row({"instruction": "u", "response": "a"}, RowShape(format="alpaca"))
    with pytest.raises(RowError, match="a turn has no role"):
        read_row({"messages": [Q, R]}, RowShape(format="messages"))


def better(row: Any) -> list[str]:
    return [
        line
        for sample in read_row(row, RowShape(format="chosen"))
        if isinstance(sample, Conversation)
        for line in brief(sample.messages)
    ]


def test_the_better_answers_of_comparisons_can_be_trained_alone() -> None:
    turns = {"chosen": [U, A], "rejected": [U, {**A, "content": "b"}]}
    assert better({"prompt": "u", "chosen": "a", "rejected": "b"}) == ["u u", "a* a"]
    assert better({"prompt": "u", **turns}) == better(turns) == ["u u", "a* a"]
    assert better({"conversations": [Q, R, Q], "chosen": R, "rejected": {**R, "value": "b"}}) == [
        "u u",
        "a a",
        "u u",
        "a* a",
    ]
    assert better({**said(U, A), "label": True}) == better(said(U, A)) == ["u u", "a* a"]
    assert better({**said(U, A), "label": False}) == []
