"""Rows of every format, good and bad; the real files; and random ones, which may be refused in words and
in no other way.
"""

import json
import re
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tuner.data.conversation import Call, Conversation, Label, Message, Preference, RowError, Sample, Text
from tuner.data.files import row_files
from tuner.data.formats.checks import in_words, key_list
from tuner.data.formats.detect import sniff
from tuner.data.formats.oasst_flat import group_rows, is_flat
from tuner.data.formats.rows import read_row, row_reader
from tuner.data.formats.shape import RowShape
from tuner.data.formats.table import COLUMNS, VERSIONS, format_versions
from tuner.errors import ConfigError


def brief(messages: tuple[Message, ...]) -> list[str]:
    """Turns as "a* text": who speaks, whether it is trained, the thoughts in brackets, the text, the
    calls.
    """
    return [
        f"{message.role[0]}{'*' * message.trained} "
        f"{f'({message.reasoning})' if message.reasoning else ''}{message.content}"
        + "".join(f" {call.name}{json.dumps(call.arguments)}" for call in message.calls)
        for message in messages
    ]


def one(row: Any, **shape: Any) -> Conversation:
    (sample,) = read_row(row, RowShape(**shape))
    assert isinstance(sample, Conversation)
    return sample


def said(*turns: dict[str, Any], **beside: Any) -> dict[str, Any]:
    return {"messages": list(turns), **beside}


U = {"role": "user", "content": "u"}
A = {"role": "assistant", "content": "a"}
LOOK = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "云"}'}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [LOOK]}
SEEN = 'a*  look{"at": "\\u4e91"}'

GOOD: list[tuple[str, Any, list[str]]] = [
    ("messages", said(U, A), ["u u", "a* a"]),
    ("messages", [{"role": "developer", "content": "s"}, U], ["s s", "u u"]),
    ("messages", {"messages": json.dumps([U, A])}, ["u u", "a* a"]),
    ("messages", said(U, A, system="s"), ["s s", "u u", "a* a"]),
    ("messages", said({"role": "system", "content": "s"}, U, system="s"), ["s s", "u u"]),
    (
        "messages",
        said({**A, "weight": 0}, {**A, "weight": 1}, {**A, "loss": False}, {**A, "train": True}),
        ["a a", "a* a", "a a", "a* a"],
    ),
    ("messages", said({**A, "weight": 1, "train": False, "id": 7, "timestamp": "now"}), ["a a"]),
    (
        "messages",
        said({**U, "weight": 1, "name": "Li", "tool_calls": None, "refusal": None, "audio": None}),
        ["u u"],
    ),
    (
        "messages",
        said(
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "input_text", "value": "b"}],
            },
            tools="[]",
        ),
        ["u ab"],
    ),
    (
        "messages",
        said(
            {"role": "user", "content": None},
            {"role": "assistant", "content": ""},
            {"role": "user", "content": []},
        ),
        ["u ", "a* ", "u "],
    ),
    (
        "messages",
        said(
            {**A, "reasoning_content": "t"}, {**A, "reasoning": ""}, {**A, "thinking": "t", "reasoning": "t"}
        ),
        ["a* (t)a", "a* a", "a* (t)a"],
    ),
    ("messages", said(U, U, A, A), ["u u", "u u", "a* a", "a* a"]),
    ("messages", said(A, U, {"role": "system", "content": "s"}), ["a* a", "u u", "s s"]),
    (
        "messages",
        said(U, CALLS, {"role": "tool", "tool_call_id": "1", "content": "r"}, A),
        ["u u", SEEN, "t r", "a* a"],
    ),
    ("messages", said(U, CALLS), ["u u", SEEN]),
    (
        "messages",
        said(
            {"role": "assistant", "function_call": {"name": "look", "arguments": "{}"}},
            {"role": "function", "name": "look", "content": "r"},
        ),
        ["a*  look{}", "t r"],
    ),
    (
        "messages",
        said(
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "t"},
                    {"type": "output_text", "text": "x"},
                    {"type": "tool_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
                    {"type": "tool_call", "name": "g", "arguments": {}},
                ],
            }
        ),
        ['a* (t)x f{"a": 1} g{}'],
    ),
    (
        "messages",
        said({"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": 1}}, {"name": "g"}]}),
        ['a*  f{"a": 1} g{}'],
    ),
    ("alpaca", {"instruction": "a", "input": "", "output": "b"}, ["u a", "a* b"]),
    ("alpaca", {"instruction": "a", "input": "i", "output": "b"}, ["u a\ni", "a* b"]),
    ("alpaca", {"instruction": "", "input": "i", "output": "", "text": "all of it"}, ["u i", "a* "]),
    (
        "alpaca",
        {"instruction": "a", "output": "b", "system": "s", "history": [["x", "y"]]},
        ["s s", "u x", "a* y", "u a", "a* b"],
    ),
    (
        "alpaca",
        {"instruction": "a", "input": None, "output": "b", "system": "", "history": None, "image": None},
        ["u a", "a* b"],
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"},
        ["s s", "u a", "a* b"],
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "user", "value": "a"}, {"from": "bard", "value": "b", "weight": 0}]},
        ["u a", "a b"],
    ),
    (
        "sharegpt",
        {"conversations": [U, {"role": "assistant", "content": "a", "reasoning": "t"}]},
        ["u u", "a* (t)a"],
    ),
    ("sharegpt", {"conversations": json.dumps([{"from": "human", "value": "a"}])}, ["u a"]),
    (
        "sharegpt",
        {"conversations": [{"from": "gpt", "value": "look(云)"}, {"from": "observation", "value": "r"}]},
        ["a* look(云)", "t r"],
    ),
    ("prompt", {"prompt": "a", "completion": "b", "system": "s"}, ["s s", "u a", "a* b"]),
    ("prompt", {"prompt": [U, A, U], "completion": [A]}, ["u u", "a a", "u u", "a* a"]),
    ("prompt", {"prompt": [U], "completion": "b"}, ["u u", "a* b"]),
    ("guanaco", {"text": "### Human: a### Assistant: b"}, ["u a", "a* b"]),
    (
        "guanaco",
        {"text": "### System: s\n### Human: a ### System: b\n\n### Assistant:\n b \n### Human:"},
        ["s s", "u a ### System: b", "a* b", "u "],
    ),
    (
        "guanaco",
        {
            "input": "### Human: a ### Assistant:",
            "output": " b ### Human: c",
            "text": "### Human: a ### Assistant:",
        },
        ["u a", "a* b ### Human: c"],
    ),
]


@pytest.mark.parametrize(("name", "row", "expected"), GOOD)
def test_a_row_is_recognised_and_read(name: str, row: Any, expected: list[str]) -> None:
    assert sniff(row) == name
    assert brief(one(row).messages) == expected
    assert one(row, format=name) == one(row)


def test_a_row_stays_as_it_was() -> None:
    for _, row, _ in GOOD:
        before = deepcopy(row)
        read_row(row, RowShape())
        assert row == before


def test_a_tool_answer_says_what_it_answers() -> None:
    answer = one(
        said(
            CALLS,
            {"role": "tool", "tool_call_id": "1", "name": "look", "content": [{"type": "text", "text": "r"}]},
        )
    ).messages[1]
    assert (answer.call_id, answer.name, answer.content) == ("1", "look", "r")
    assert one(said(CALLS)).messages[0].calls == (Call(name="look", arguments={"at": "云"}, id="1"),)


FUNCTION = {"name": "look", "description": "…", "parameters": {}}
WRAPPED = {"type": "function", "function": FUNCTION}


@pytest.mark.parametrize(
    "beside",
    [
        {"tools": [WRAPPED]},
        {"tools": [FUNCTION]},
        {"functions": [FUNCTION], "tools": None},
        {"tools": [{"type": "function", **FUNCTION}]},
        {"tools": json.dumps([WRAPPED])},
        {"tools": json.dumps([FUNCTION]), "functions": []},
        {"tools": [json.dumps(FUNCTION)]},
    ],
)
def test_tools_are_taken_in_the_form_of_openai(beside: dict[str, Any]) -> None:
    assert one(said(U, **beside)).tools == (WRAPPED,)
    assert one({"conversations": [{"from": "human", "value": "a"}], **beside}).tools == (WRAPPED,)


@pytest.mark.parametrize("empty", [None, "", "[]", [], {}, " ", "null", "{}"])
def test_no_tools_are_none(empty: Any) -> None:
    assert one(said(U, tools=empty)).tools == ()


def function_call(*names: str, many: bool = False, **others: Any) -> dict[str, Any]:
    calls = [{"name": name, "arguments": {}} for name in names]
    return {"from": "function_call", "value": json.dumps(calls if many else calls[0]), **others}


def test_calls_of_sharegpt_become_one_message_with_the_text_before_them() -> None:
    human, gpt, seen = (
        {"from": "human", "value": "u"},
        {"from": "gpt", "value": "a"},
        {"from": "observation", "value": "r"},
    )
    turns = [human, gpt, function_call("f"), function_call("g", "h", many=True), seen, seen, gpt]
    assert brief(one({"conversations": turns}).messages) == ["u u", "a* a f{} g{} h{}", "t r", "t r", "a* a"]
    after = [human, function_call("f"), gpt]
    assert brief(one({"conversations": after}).messages) == ["u u", "a*  f{}", "a* a"]
    untrained = [human, {**gpt, "weight": 0}, function_call("f")]
    assert brief(one({"conversations": untrained}).messages) == ["u u", "a a", "a*  f{}"]
    assert brief(one({"conversations": [human, function_call("f", loss=False)]}).messages) == [
        "u u",
        "a  f{}",
    ]


FENCED = (
    "### Human: how?### Assistant: So:\n```\n### Human: a### Assistant: b\n```\nThat's all.### Human: thanks"
)
OPEN = (
    "### Human: mend\n```py\nx = 1### Assistant: So:\n```py\nx = 2\n```\n### Human: thanks\n### Assistant: "
    "```a``` is it"
)


def test_a_mark_in_a_closed_fence_is_text_and_an_open_fence_hides_no_turn() -> None:
    assert [message.role for message in one({"text": FENCED}).messages] == ["user", "assistant", "user"]
    assert one({"text": FENCED}).messages[1].content.endswith("### Assistant: b\n```\nThat's all.")
    assert [message.role for message in one({"text": OPEN}).messages] == [
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    left_open = "### Human: mend\n```py\nx\n### Assistant: So:\n```py\ny\n```"
    assert [message.role for message in one({"text": left_open}).messages] == ["user", "assistant"]
    never_closed = "### Human: mend\n```py\nx\n### Assistant: So."
    assert [message.role for message in one({"text": never_closed}).messages] == ["user", "assistant"]


@given(
    st.lists(
        st.sampled_from(["### Human:", "### Assistant:", "### System:", "```", "```py", "\n", "x", " "]),
        max_size=30,
    ).map("".join)
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_no_letter_of_a_marked_text_is_lost(body: str) -> None:
    text = f"### Human: {body}"
    kept = "".join(message.content for message in one({"text": text}, format="guanaco").messages)
    marks = len(text.replace(" ", "").replace("\n", "")) - len(kept.replace(" ", "").replace("\n", ""))
    assert Counter(kept) <= Counter(text)
    assert kept.count("x") == text.count("x")
    assert kept.count("`") == text.count("`")
    assert marks >= len("###Human:")


@pytest.mark.parametrize(
    "answer",
    [
        "### Step 1\nDo.\n### Step 2\nDone.",
        "a ### b",
        "### Human",
        "###Human: x",
        "#### Assistant\n",
        "x\n## Human: y",
    ],
)
def test_other_headings_are_text(answer: str) -> None:
    row = {"text": f"### Human: q### Assistant: {answer}"}
    assert one(row).messages[1].content == answer.strip()
    assert len(one(row).messages) == 2


@pytest.mark.parametrize(
    "text",
    [
        "### human: q\n### assistant: a",
        "###Human: q\n###Assistant: a",
        "###human:q###assistant:a",
        "### HUMAN: q ### ASSISTANT: a",
        "### Human: q\n###Assistant: a",
        "### human: q\n### Assistant: a",
        "\n###System: s\n###Human: q\n###Assistant: a",
        "### human: q\n```py\n### assistant: x\n```\n### assistant: a",
    ],
)
def test_marks_in_small_letters_or_without_the_blank_are_the_same(text: str) -> None:
    roles = [
        (message.role, message.trained)
        for message in one({"text": text}).messages
        if message.role != "system"
    ]
    assert roles == [("user", False), ("assistant", True)]
    assert one({"text": text}).messages[-1].content == "a"


def test_plain_text_is_a_document_and_a_blank_one_none() -> None:
    assert read_row({"text": " a\n", "url": "…"}, RowShape()) == (Text(text=" a\n"),)
    assert read_row({"text": " \n"}, RowShape()) == ()
    assert read_row({"text": "### Human: a"}, RowShape(format="text")) == (Text(text="### Human: a"),)


def preference(row: Any, **shape: Any) -> tuple[list[str], list[str], list[str]]:
    (sample,) = read_row(row, RowShape(**shape))
    assert isinstance(sample, Preference)
    return brief(sample.prompt.messages), brief(sample.chosen), brief(sample.rejected)


B = {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "u", "chosen": "a", "rejected": "b"},
        {"prompt": [U], "chosen": [A], "rejected": [B]},
        {"prompt": [U], "chosen": A, "rejected": B},
        {"prompt": "u", "chosen": [U, A], "rejected": [U, B]},
        {"chosen": [U, A], "rejected": [U, B], "score_chosen": 9},
        {"messages": [U], "chosen": A, "rejected": B},
        {
            "conversations": [{"from": "human", "value": "u"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        {"instruction": "u", "input": "", "chosen": "a", "rejected": "b"},
    ],
)
def test_a_preference_is_a_prompt_and_two_answers(row: Any) -> None:
    assert sniff(row) == "preference"
    assert preference(row) == (["u u"], ["a* a"], ["a* b"])


def test_the_prompt_of_a_preference_is_never_trained() -> None:
    row = {"chosen": [U, A, U, A], "rejected": [U, A, U, B], "system": "s"}
    assert preference(row) == (["s s", "u u", "a a", "u u"], ["a* a"], ["a* b"])
    system = {"role": "system", "content": "s"}
    assert preference({"prompt": "u", "chosen": [system, U, A], "rejected": [system, U, B]})[0] == [
        "s s",
        "u u",
    ]


@pytest.mark.parametrize(
    "row",
    [
        said(U, A, U, A),
        {
            "conversations": [
                {"from": role, "value": role[0]} for role in ("user", "assistant", "user", "assistant")
            ]
        },
        {"prompt": [U, A, U], "completion": "a"},
        {"instruction": "u", "output": "a", "history": [["u", "a"]]},
    ],
)
def test_a_label_is_of_the_last_answer(row: Any) -> None:
    row = {**row, "label": False}
    assert sniff(row) == "label"
    (sample,) = read_row(row, RowShape())
    assert isinstance(sample, Label)
    assert sample.good is False
    assert brief(sample.conversation.messages) == ["u u", "a a", "u u", "a* a"]


def test_a_label_that_is_no_verdict_is_a_column_like_others() -> None:
    assert sniff(said(U, label="B")) == "messages"
    assert sniff({"text": "a", "label": True}) == "text"
    assert one(said(U, A, label=False), format="messages").trains


BAD: list[tuple[Any, str]] = [
    ({"txt": "a"}, r"no known format has these keys \(txt\)"),
    ({}, r"these keys \(none\)"),
    ({"question": "a", "answer": "b", "text": "c"}, r"these keys \(question, answer, text\)"),
    ({"question": "a", "answer": "b", "A": "c", "B": "d"}, "no known format"),
    ({"question": "a", "answer": "b", "options": ["c", "d"]}, "no known format"),
    ({"instruction": "a", "context": "b", "input": "c", "response": "d"}, "no known format"),
    ({"query": "a", "response": "b", "reasoning": "c"}, "no known format"),
    ({"dialog": [U, A], "turns": [U, A]}, "no known format"),
    ({"dialogue": ["hi", "hello"]}, "no known format"),
    ({"conversation": [{"text": "a", "speaker": "b"}]}, "a turn of .b.; known are"),
    ({"conversation": [{"text": "a", "name": "b"}]}, "no known format"),
    (
        {"conversations": [{"input": "a", "question": "b", "output": "c", "answer": "d"}]},
        "says nowhere who speaks",
    ),
    (
        {"conversation": [{"input": "a", "output": "b"}, {"input": "c"}]},
        "an exchange must be an object such as",
    ),
    (
        {"conversation": [{"input": "a", "output": 3}]},
        "output of an exchange must be a string, and this is the number 3",
    ),
    (
        {"conversation": [{"input": "a", "output": "b", "output_with_loss": "maybe"}]},
        "output_with_loss must be 0 or 1, false or true, and this is the string",
    ),
    (
        {"conversation": [{"input": "a", "output": "b", "need_eos_token": False}]},
        "an exchange has need_eos_token=false",
    ),
    ({"conversation": [{"input": "a", "output": "b", "sep": "||"}]}, "an exchange has sep="),
    (
        {"conversation": [{"input": "", "output": "b", "output_with_loss": False}]},
        "a document that is not trained",
    ),
    ({"conversation": [{"input": "", "output": ""}]}, "no text in any exchange"),
    (
        said({"role": "pretrain", "content": "a"}, A),
        "a turn of 'pretrain' is a document, which stands alone in its row, and this row has 2",
    ),
    (
        said({"role": "pretrain", "content": "a", "loss": False}),
        "is trained as a whole, and this one is marked not to be",
    ),
    (
        said({"role": "pretrain", "content": "a", "reasoning_content": "b"}),
        "a document, and this one has reasoning",
    ),
    (said({"role": "pretrain", "content": 3}), "content must be a string"),
    (said(U, {"role": "tool_call", "content": "look"}), "the content of a tool_call must be JSON"),
    (said(U, {"role": "tool_call"}), "a call must be an object"),
    (said(U, {"role": "tool_response", "content": "a"}), "tool result follows no call"),
    ("a word", "must be an object or a list of turns, and this is the string 'a word'"),
    (None, "this is null"),
    (3, "this is the number 3"),
    ([], "at least one"),
    ([[]], "a turn must be an object"),
    ({"messages": 3}, "must be a list of turns"),
    ({"messages": "a"}, "must be JSON in a string, and 'a' is none"),
    ({"messages": "3"}, "must be a list of turns.*the number 3"),
    (said(U, images=["a.png"]), "the row has images, and only text"),
    (said({"role": "tool", "content": "a"}), "tool result follows no call"),
    (said(A, {"role": "tool", "content": "a"}), "tool result follows no call"),
    (said(U, CALLS, U, {"role": "tool", "content": "a"}), "tool result follows no call"),
    (
        said(U, CALLS, {"role": "tool", "content": "a", "tool_call_id": "2"}),
        r"answers the call '2'.*\(there are 1\)",
    ),
    (
        said({"role": "king", "content": "a"}),
        r"a turn of 'king'; known are system, developer, user, assistant",
    ),
    (said({"role": ["user"], "content": "a"}), "a turn of a list of 1; known are"),
    (said({"content": "a"}), r"no role \(its keys are content\)"),
    (said(U, {"from": "human", "value": "a"}), "no role.*; expected are role and content"),
    (said({"role": "user"}), r"no content \(its keys are role\)"),
    (said({"role": "user", "content": 3}), "content must be a string, and this is the number 3"),
    (
        said({"role": "user", "content": {"text": "a"}}),
        "content must be a string, and this is an object with the keys text",
    ),
    (said({"role": "user", "content": [{"type": "image_url"}]}), "type 'image_url' can't be trained"),
    (said({"role": "user", "content": ["a"]}), "a part of a content must be an object"),
    (
        said({"role": "user", "content": [{"type": "text"}]}),
        "the text of a part must be a string, and this is null",
    ),
    (
        said({**A, "content": [{"type": "text", "text": "a"}, {"type": "reasoning", "text": "b"}]}),
        "'reasoning' is out of order",
    ),
    (said({"role": "user", "content": "a\ud800"}), "unpaired surrogate"),
    (said({**A, "reasoning_content": "a\ud800"}), "unpaired surrogate"),
    (said({**A, "reasoning_content": "a", "reasoning": "b"}), "two different pieces of reasoning"),
    (said({**U, "reasoning_content": "a"}), "'user' has reasoning, which only the assistant's"),
    (said({**U, "tool_calls": [LOOK]}), "'user' has calls, which only the assistant's"),
    (said({**A, "refusal": "no"}), "a turn has refusal"),
    (said({**A, "audio": {"id": "x"}}), "a turn has audio"),
    (said({**A, "weight": 0.5}), "weight must be 0 or 1.*0.5"),
    (said({**A, "loss": "yes"}), "loss must be 0 or 1"),
    (said({**A, "tool_calls": {}, "function_call": "look"}), "a call must be an object"),
    (said({**A, "tool_calls": "look"}), "tool_calls must be a list"),
    (said({**A, "tool_calls": [{"type": "custom"}]}), "a call of the type the string 'custom'"),
    (
        said({**A, "tool_calls": [{"function": {"name": "f", "arguments": "at"}}]}),
        "arguments of the call of 'f' must be JSON in a string, and 'at' is none",
    ),
    (
        said({**A, "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}),
        "must be an object, or a string with the JSON of one, and this is a list",
    ),
    (
        said({**A, "tool_calls": [{"function": {"name": "f", "arguments": '{"a": "\\ud800"}'}}]}),
        "unpaired surrogate",
    ),
    (
        said({**A, "tool_calls": [{"function": {"name": "f", "arguments": {"\ud800": 1}}}]}),
        "unpaired surrogate",
    ),
    (said({**A, "tool_calls": [{"function": {"arguments": "{}"}}]}), "a function without a name"),
    (said(U, tools="look"), "tools must be JSON in a string"),
    (said(U, tools=3), "tools must be a list of functions, and this is the number 3"),
    (said(U, tools=[{"type": "web_search"}]), "type the string 'web_search'"),
    (said(U, tools=[{"description": "x"}]), "without a name"),
    (said(U, tools=[FUNCTION], functions=[FUNCTION]), "both tools and functions"),
    (said({"role": "system", "content": "s"}, U, system="other"), "says something else"),
    ({"conversations": [{"from": "observation", "value": "a"}]}, "tool result follows no call"),
    (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "observation", "value": "a"}]},
        "tool result follows no call",
    ),
    ({"conversations": [{"from": "gpt", "value": 3}]}, "value must be a string, and this is the number 3"),
    ({"conversations": [{"from": "gpt"}]}, "no value"),
    ({"conversations": [{"value": "a"}]}, "says nowhere who speaks"),
    ({"conversations": [{"from": "function_call", "value": "look"}]}, "function_call must be JSON"),
    ({"conversations": [{"from": "function_call", "value": "[]"}]}, "an empty list"),
    ({"conversations": {}}, "must be a list of turns"),
    ({"instruction": "a", "output": None}, "output must be a string, and this is null"),
    ({"instruction": "a", "input": 0, "output": "b"}, "input must be a string"),
    ({"instruction": "a", "output": "b", "history": ["x"]}, "history must be"),
    ({"instruction": "a", "output": "b", "history": 3}, "history must be"),
    ({"prompt": 3, "completion": "b"}, "prompt must be a string or a list of messages"),
    ({"prompt": "a", "completion": []}, "at least one"),
    ({"text": 3}, "text must be a string"),
    ({"text": "a\udfff"}, "surrogate"),
    ({"input": "### Human: a", "output": "b"}, "must end with the mark ### Assistant:"),
    ({"chosen": "a", "rejected": "b"}, "what came before chosen and rejected"),
    ({"prompt": "u", "chosen": 3, "rejected": "b"}, "chosen must be a string, a turn or a list"),
    ({"prompt": "u", "chosen": [U], "rejected": [B]}, "nothing is left"),
    (
        {"prompt": "u", "chosen": [{**U, "content": "v"}, A], "rejected": [B]},
        "a turn of the user comes first",
    ),
    ({**said(U), "label": True}, "a label belongs to the last answer"),
    (
        {"message_id": "a", "parent_id": None, "role": "prompter", "text": "a"},
        "only together with those around it",
    ),
]


@pytest.mark.parametrize(("row", "words"), BAD)
def test_a_bad_row_is_refused_in_words(row: Any, words: str) -> None:
    with pytest.raises(RowError, match=words) as caught:
        read_row(row, RowShape())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("format", "row", "words"),
    [
        ("alpaca", [U], "a bare list of turns is of the format messages, and data.format is alpaca"),
        ("alpaca", said(U), r"instruction is expected, and the row has none \(its keys are messages\)"),
        ("messages", {"instruction": "a"}, "messages is expected, and the row has none"),
        ("text", "a", "a row must be an object"),
        ("guanaco", {"text": "a"}, "must begin with one of the marks"),
        ("guanaco", {"text": "a### Human: b"}, "'a' stands before the first"),
        ("label", said(U, A, label="maybe"), "label must be true or false"),
        ("label", {"label": True, "text": "a"}, "a label needs a conversation"),
        ("preference", said(U), "chosen is expected"),
        ("oasst", {"prompt": "a"}, "prompt must be the first message of a tree"),
    ],
)
def test_a_named_format_reads_only_its_rows(format: str, row: Any, words: str) -> None:
    with pytest.raises(RowError, match=words):
        read_row(row, RowShape(format=format))


def test_each_row_of_a_file_is_taken_for_itself() -> None:
    take = row_reader(RowShape())
    assert [len(take(row)) for _, row, _ in GOOD] == [1] * len(GOOD)


ROW = {
    "q": {"text": "ask", "by": ["li", "wu"]},
    "answer": "say",
    "score": 3,
    "none": None,
    "a.b": "dotted",
    "input": "not meant",
}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"instruction": "q.text", "input": "q.by.1", "output": "answer"}, ["u ask\nwu", "a* say"]),
        ({"instruction": "a.b", "input": "none", "output": "answer"}, ["u dotted", "a* say"]),
        (
            {"instruction": "{answer}: {q.text}\n{score} {{name}} {}", "input": "none", "output": "answer"},
            ["u say: ask\n3 {{name}} {}", "a* say"],
        ),
        ({"instruction": "input", "output": "answer"}, ["u not meant", "a* say"]),
        ({"instruction": "q.text", "input": "input", "output": "answer"}, ["u ask\nnot meant", "a* say"]),
        ({"prompt": "q.text", "completion": "answer", "system": "a.b"}, ["s dotted", "u ask", "a* say"]),
    ],
)
def test_columns_say_where_a_format_finds_its_own(columns: dict[str, str], expected: list[str]) -> None:
    assert brief(one(ROW, columns=columns).messages) == expected


def test_columns_that_are_asked_for_say_what_a_row_is_taken_for() -> None:
    row = {"text": "all", "dialog": [U, A], "messages": "none", "chosen": 1}
    assert brief(one(row, columns={"messages": "dialog"}).messages) == ["u u", "a* a"]
    assert read_row(
        {"body": "all", "instruction": "a", "output": "b"}, RowShape(columns={"text": "body"})
    ) == (Text(text="all"),)
    assert sniff_of({"q": "u", "chosen": "a", "rejected": "b"}, prompt="q") == Preference
    assert sniff_of({"dialog": [U, A], "label": True}, messages="dialog") == Label


def sniff_of(row: Any, **columns: str) -> type[Sample]:
    (sample,) = read_row(row, RowShape(columns=columns))
    return type(sample)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (
            {"instruction": "question"},
            r"data\.columns\.instruction points to question, .*the row has the keys q, answer, score",
        ),
        ({"instruction": "q.by.2"}, r"q\.by is a list of 2"),
        ({"instruction": "q.by.x"}, r"q\.by is a list of 2"),
        ({"instruction": "answer.0"}, r"answer is the string 'say'"),
        ({"instruction": "a {nowhere} b"}, r"points to nowhere"),
        ({"instruction": "a {none} b"}, r"needs a string or a number at none, and this is null"),
        ({"instruction": "a {q} b"}, r"needs a string or a number at q, and this is an object"),
    ],
)
def test_a_column_that_a_row_lacks_is_named_with_those_it_has(columns: dict[str, str], words: str) -> None:
    with pytest.raises(RowError, match=words):
        read_row(ROW, RowShape(columns={"output": "answer", **columns}))


def test_columns_are_those_of_objects() -> None:
    with pytest.raises(RowError, match=r"data\.columns needs an object"):
        read_row([U, A], RowShape(columns={"messages": "turns"}))


def test_more_words_for_a_role_count_in_every_format_with_roles() -> None:
    roles = {"assistant": ("客服", "agent"), "user": ("访客", "gpt")}
    assert brief(
        one(said({"role": "访客", "content": "u"}, {"role": "客服", "content": "a"}), roles=roles).messages
    ) == ["u u", "a* a"]
    turns = [{"from": "gpt", "value": "u"}, {"from": "agent", "value": "a"}]
    assert brief(one({"conversations": turns}, roles=roles).messages) == ["u u", "a* a"]
    pair = {
        "prompt": [{"role": "访客", "content": "u"}],
        "chosen": [{"role": "agent", "content": "a"}],
        "rejected": "b",
    }
    assert preference(pair, roles=roles) == (["u u"], ["a* a"], ["a* b"])
    with pytest.raises(RowError, match=r"known are .*客服"):
        read_row(said({"role": "经理", "content": "a"}), RowShape(roles=roles))


def test_a_shape_that_makes_no_sense_is_refused_before_any_row() -> None:
    with pytest.raises(ConfigError, match=r"data\.roles\.king is none of system, user, assistant, tool"):
        row_reader(RowShape(roles={"king": ("a",)}))
    with pytest.raises(ConfigError, match=r"data\.format=yaml is not known"):
        row_reader(RowShape(format="yaml"))


def test_versions_are_those_of_the_format_in_use() -> None:
    assert format_versions("alpaca") == {"format.alpaca": VERSIONS["alpaca"]}
    assert set(format_versions("auto")) == {f"format.{name}" for name in VERSIONS}
    assert set(COLUMNS) == set(VERSIONS)


def test_a_long_conversation_and_a_long_row_are_read() -> None:
    assert len(one(said(*[U, A] * 1500)).messages) == 3000
    assert len(one({"instruction": "字" * 200_000, "output": "b"}).messages[0].content) == 200_000
    assert one({"instruction": "a\u2028b\x00", "output": "\r\n"}).messages[0].content == "a\u2028b\x00"


def test_what_an_error_shows_is_short_and_can_be_printed() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    assert in_words(deep) == "a list of 1"
    assert in_words(10**5000) == "a large number"
    assert len(in_words("x" * 10**6)) < 60
    assert in_words("\x1b[31m\u202e") == r"the string '\x1b[31m\u202e'"
    assert key_list(["a", "\x1b[31m", "", "\ud800"]) == r"a, '\x1b[31m', '', '\ud800'"
    assert key_list(map(str, range(20))).endswith("7 and 12 more")
    with pytest.raises(RowError, match="nested too deeply"):
        read_row(said({**A, "tool_calls": [{"name": "f", "arguments": {"a": deep}}]}), RowShape())
    for depth in (101, 900, 100_000):
        arguments = '{"a": ' * depth + "1" + "}" * depth
        for call in (
            {"name": "f", "arguments": arguments},
            {"name": "f", "arguments": arguments.replace("a", "\\u0041")},
        ):
            with pytest.raises(RowError, match="nested too deeply"):
                read_row(said({**A, "tool_calls": [call]}), RowShape())
    many = json.dumps({"a": [{"b": []}] * 200})
    assert (
        len(
            one(said({**A, "tool_calls": [{"name": "f", "arguments": many}]}))
            .messages[0]
            .calls[0]
            .arguments["a"]
        )
        == 200
    )


GSM8K = {"instruction": "question", "output": "answer"}
SEEDS = {"input": "instances.0.input", "output": "instances.0.output"}
FILES: list[tuple[str, int, dict[str, str], type]] = [
    ("messages/openai_bare_lists.jsonl", 128, {}, Conversation),
    ("messages/openai_multiturn.jsonl", 156, {}, Conversation),
    ("messages/openai_tools_en.jsonl", 249, {}, Conversation),
    ("messages/reason_tool_parts.jsonl", 36, {}, Conversation),
    ("sharegpt/vicuna_identity.json", 398, {}, Conversation),
    ("sharegpt/glaive_toolcall_en.json", 249, {}, Conversation),
    ("sharegpt/glaive_toolcall_zh.json", 245, {}, Conversation),
    ("alpaca/alpaca_en.json", 795, {}, Conversation),
    ("alpaca/alpaca_zh.json", 794, {}, Conversation),
    ("alpaca/identity_template.json", 91, {}, Conversation),
    ("alpaca/self_instruct_seed_tasks.jsonl", 175, SEEDS, Conversation),
    ("oasst/oasst1_guanaco.jsonl", 733, {}, Conversation),
    ("oasst/oasst1_val_turns.jsonl", 733, {}, Conversation),
    ("oasst/oasst_en_trees.jsonl", 77, {}, Conversation),
    ("oasst/oasst_en_messages.jsonl", 891, {}, Conversation),
    ("pretrain/c4_demo.jsonl", 232, {}, Text),
    ("eval/gsm8k_train_1500.jsonl", 1500, GSM8K, Conversation),
    ("eval/gsm8k_test_800.jsonl", 800, {}, Conversation),
    ("preference/dpo_en.json", 242, {}, Preference),
    ("preference/dpo_zh.json", 233, {}, Preference),
    ("preference/kto_en.json", 242, {}, Label),
]


def rows_of(path: Path) -> list[tuple[int, Any]]:
    return [entry for chunk in row_files.chunks(path) for entry in row_files.parse_rows(chunk)]


@pytest.mark.parametrize(("name", "count", "columns", "kind"), FILES, ids=[name for name, *_ in FILES])
def test_every_row_of_the_real_files_is_read(
    shared: Path, name: str, count: int, columns: dict[str, str], kind: type
) -> None:
    shape, rows = RowShape(columns=columns), rows_of(shared / "data" / name)
    assert len(rows) == count
    if is_flat(rows[0][1], shape):
        gathered = list(group_rows(rows, shape))
        assert sorted(number for group in gathered for number in group.numbers) == [
            number for number, _ in rows
        ]
        assert all(group.samples and not group.bad for group in gathered)
        samples = [sample for group in gathered for sample in group.samples]
        turns = sum(len(sample.messages) for sample in samples if isinstance(sample, Conversation))
        assert turns + sum(len(group.left) for group in gathered) == count
    else:
        samples = [sample for _, row in rows for sample in read_row(row, shape)]
        assert len(samples) == count
    assert {type(sample) for sample in samples} == {kind}


def test_real_rows_are_read_to_the_letter(shared: Path) -> None:
    data = shared / "data"
    for (_, tree), (_, row) in zip(
        rows_of(data / "sharegpt/glaive_toolcall_en.json"),
        rows_of(data / "messages/openai_tools_en.jsonl"),
        strict=True,
    ):
        share, openai = one(tree), one(row)
        # the second file was made from the first, with a system turn and ids in addition
        assert brief(share.messages) == brief(openai.messages[1:])
        assert share.tools == openai.tools
    for _, row in rows_of(data / "messages/reason_tool_parts.jsonl"):
        parts = [part for turn in row["messages"] for part in turn["content"]]
        messages = one(row).messages
        assert sum(len(message.calls) for message in messages) == sum(
            part["type"] == "tool_call" for part in parts
        )
        assert [m.reasoning for m in messages if m.reasoning] == [
            part["value"] for part in parts if part["type"] == "reasoning"
        ]
    pairs = zip(
        rows_of(data / "oasst/oasst1_guanaco.jsonl"),
        rows_of(data / "oasst/oasst1_val_turns.jsonl"),
        strict=True,
    )
    for (_, marked), (_, turns) in pairs:
        assert one(marked).messages[-1].content == turns["output"].strip()
        assert (
            len(re.findall(r"### (?:Human|Assistant):", marked["text"]))
            == len(one(marked).messages)
            == len(one(turns).messages)
        )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("prompts/oa_prompt_lottery_en_250.jsonl", "must be an object"),
        ("alpaca/self_instruct_seed_tasks.jsonl", "no known format"),
        ("eval/belle_eval_zh.jsonl", "no known format"),
        ("eval/mt_bench_questions.jsonl", "no known format"),
        ("eval/mt_bench_reference_gpt4.jsonl", "no known format"),
        ("eval/bfcl_simple_python.jsonl", "no known format"),
        ("eval/bfcl_simple_python_answers.jsonl", "no known format"),
        ("eval/HumanEval.jsonl.gz", "no known format"),
        ("eval/agieval/aqua-rat.jsonl", "no known format"),
        ("eval/mmlu/astronomy_dev.csv", "no known format"),
    ],
)
def test_real_files_that_are_no_conversations_are_refused(shared: Path, name: str, words: str) -> None:
    for _, row in rows_of(shared / "data" / name):
        with pytest.raises(RowError, match=words):
            read_row(row, RowShape())


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["\ud800", "user", "gpt", "function_call", "{}", "### Human:"])
)
WORDS = (
    "messages",
    "conversations",
    "role",
    "content",
    "from",
    "value",
    "instruction",
    "input",
    "output",
    "history",
    "system",
    "prompt",
    "completion",
    "text",
    "tools",
    "functions",
    "tool_calls",
    "function_call",
    "function",
    "name",
    "arguments",
    "type",
    "weight",
    "chosen",
    "rejected",
    "label",
    "message_id",
    "parent_id",
    "message_tree_id",
    "rank",
    "replies",
    "reasoning",
    "tool_call_id",
    "images",
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=3), inner, max_size=5)
    ),
    max_leaves=12,
)
SHAPES = st.sampled_from(
    [
        RowShape(),
        *(RowShape(format=name) for name in VERSIONS),
        RowShape(columns={"instruction": "input", "output": "{value}.{text}"}),
        RowShape(paths="all"),
    ]
)


def read_or_refused(row: Any, shape: RowShape) -> None:
    """Samples, or an error that can be printed on a line."""
    refusal = ""
    samples: tuple[Sample, ...] = ()
    try:
        samples = read_row(row, shape)
    except RowError as error:
        refusal = str(error)
    assert not refusal or refusal.isprintable()
    assert len(refusal) < 1000
    assert isinstance(samples, tuple)
    for sample in samples:
        assert isinstance(sample, Conversation | Text | Preference | Label)
        for conversation in (sample,) if isinstance(sample, Conversation) else ():
            assert conversation.messages
            assert all(
                not message.trained or message.role == "assistant" for message in conversation.messages
            )
            json.dumps([message.content for message in conversation.messages], ensure_ascii=False).encode()


@given(row=VALUES, shape=SHAPES)
@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_a_row_is_it_is_read_or_refused(row: Any, shape: RowShape) -> None:
    read_or_refused(row, shape)


def places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way, *(place for key, part in inner for place in places(part, (*way, key)))]


@given(number=st.integers(0, len(GOOD) - 1), data=st.data(), shape=SHAPES)
@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_a_good_row_with_one_thing_changed_is_read_or_refused(
    number: int, data: st.DataObject, shape: RowShape
) -> None:
    row = deepcopy(GOOD[number][1])
    way = data.draw(st.sampled_from(places(row)))
    if not way:
        row = data.draw(VALUES)
    else:
        inside = row
        for step in way[:-1]:
            inside = inside[step]
        if data.draw(st.booleans()):
            inside[way[-1]] = data.draw(VALUES)
        else:
            del inside[way[-1]]
    read_or_refused(row, shape)
    read_or_refused(row, RowShape())
