"""Calls, tools, flags, verdicts and columns under the names of many vendors and trainers."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_rows
from tests.data.formats.test_formats import A, U, brief, one, said
from tuner.data.conversation import Label, RowError
from tuner.data.formats.rows import read_row, unread_places
from tuner.data.formats.shape import RowShape
from tuner.data.survey.scan import scan_source

CITY = {"city": "Oslo"}
PLAIN = {"name": "look", "arguments": CITY}


@pytest.mark.parametrize(
    "call",
    [
        {"function": {"name": "look", "arguments": CITY}},
        {"function": {"name": "look", "parameters": CITY}},
        {"type": "function", "function": {"name": "look", "parameters": json.dumps(CITY), "arguments": None}},
        {"name": "look", "args": CITY, "id": "1", "type": "tool_call"},
        {"type": "tool_use", "id": "toolu_1", "name": "look", "input": CITY},
        {"type": "function_call", "call_id": "1", "name": "look", "arguments": json.dumps(CITY)},
        {"name": "look", "kwargs": CITY},
        {"name": "look", "params": CITY},
        {"tool_name": "look", "parameters": CITY},
        {"tool_name": "look", "tool_input": CITY},
        {"functionCall": {"name": "look", "args": CITY}},
        {"function": "look", "arguments": CITY},
        {
            "index": 0,
            "id": "1",
            "type": "function",
            "function": {"name": "look", "arguments": CITY, "description": None},
        },
    ],
)
def test_a_call_is_read_in_every_vendors_form(call: dict[str, Any]) -> None:
    expected = ["u u", f"a*  look{json.dumps(CITY)}"]
    assert brief(one(said(U, {"role": "assistant", "tool_calls": [call]})).messages) == expected
    assert (
        brief(one(said(U, {"role": "assistant", "content": None, "tool_calls": json.dumps([call])})).messages)
        == expected
    )
    turns = [{"from": "human", "value": "u"}, {"from": "function_call", "value": json.dumps(call)}]
    assert brief(one({"conversations": turns}).messages) == expected
    beside = [{"from": "human", "value": "u"}, {"from": "gpt", "value": "", "tool_calls": [call]}]
    assert brief(one({"conversations": beside}).messages) == expected
    part = {"role": "assistant", "content": [{"type": "tool_call", "value": json.dumps(call)}]}
    assert brief(one(said(U, part)).messages) == expected


@pytest.mark.parametrize("nothing", [None, "", "  ", "{}", {}, "null"])
@pytest.mark.parametrize("key", ["arguments", "parameters", "input"])
def test_no_arguments_are_none(nothing: Any, key: str) -> None:
    assert (
        one(said({"role": "assistant", "tool_calls": [{"name": "now", key: nothing}]}))
        .messages[0]
        .calls[0]
        .arguments
        == {}
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            {"name": "look", "arguments": CITY, "parameters": {}},
            "a call of 'look' has both arguments and parameters",
        ),
        ({"name": "look", "input": CITY, "args": CITY}, "a call of 'look' has both args and input"),
        (
            {"name": "look", "argumentos": CITY},
            "a call of 'look' has argumentos, which can't be read; known are .*arguments",
        ),
        ({"function": {"name": "look", "arguments": {}}, "data": CITY}, "a call of 'look' has data"),
        ({"function": {"name": "look", "arguments": {}, "response": "x"}}, "a call of 'look' has response"),
        ({"function": {"name": "look"}, "arguments": CITY}, "a call of 'look' has arguments"),
        ({"name": "look", "tool_name": "see"}, "both name and tool_name"),
        (
            {"name": "look", "arguments": '{"city": "Oslo", }'},
            r"must be JSON in a string, and '.*' is none \(.*, at character 18\)$",
        ),
        ({"name": "look", "arguments": "[]"}, "must be an object"),
        ({"type": "custom", "name": "look"}, "a call of the type the string 'custom'"),
        (
            {"id": "1", "function": {"name": "look", "id": {"a": "b"}}},
            "the id of a call must be a string, and this is an object",
        ),
        ({"name": "look", "index": "first"}, "the index of a call must be a number"),
        ({"function": 3, "name": "look"}, "a call must be an object"),
    ],
)
def test_a_call_with_another_key_is_refused_by_name(call: dict[str, Any], words: str) -> None:
    with pytest.raises(RowError, match=words):
        one(said(U, {"role": "assistant", "tool_calls": [call]}))


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "look", "description": "d", "parameters": SCHEMA}}


@pytest.mark.parametrize(
    "tools",
    [
        [TOOL],
        [{"name": "look", "description": "d", "input_schema": SCHEMA}],
        [{"type": "custom", "name": "look", "description": "d", "input_schema": SCHEMA}],
        [{"name": "look", "description": "d", "inputSchema": SCHEMA}],
        [{"type": "function", "name": "look", "description": "d", "parameters": SCHEMA}],
        [{"functionDeclarations": [{"name": "look", "description": "d", "parameters": SCHEMA}]}],
        [{"function_declarations": [{"name": "look", "description": "d", "parametersJsonSchema": SCHEMA}]}],
        [
            {
                "type": "function",
                "function": {"name": "look", "description": "d", "input_schema": SCHEMA, "parameters": None},
            }
        ],
        [{**TOOL, "input_schema": None, "cache_control": None}],
    ],
)
@pytest.mark.parametrize("key", ["tools", "functions", "available_tools", "tool_definitions"])
def test_tools_are_read_in_every_vendors_form(tools: list[Any], key: str) -> None:
    for value in (tools, json.dumps(tools)):
        row = said(U, A, **{key: value})
        assert one(row).tools == (TOOL,)
        assert unread_places(row, RowShape()) == ()


def test_what_documents_a_tool_is_known_and_other_keys_are_refused() -> None:
    function = {
        "name": "look",
        "description": "d",
        "parameters": SCHEMA,
        "strict": True,
        "required": None,
        "returns": {"type": "string"},
    }
    assert one(said(U, A, tools=[function])).tools == ({"type": "function", "function": function},)
    for tool in ({**function, "cache_control": {"type": "x"}}, {**TOOL, "cache_control": {"type": "x"}}):
        with pytest.raises(RowError, match="the tool 'look' has cache_control, which can't be read"):
            one(said(U, A, tools=[tool]))
    with pytest.raises(RowError, match="both parameters and input_schema"):
        one(said(U, A, tools=[{"name": "look", "parameters": SCHEMA, "input_schema": SCHEMA}]))


def test_a_list_of_names_is_no_offer_and_is_named() -> None:
    row = said(U, A, available_tools=["look", "see"])
    assert one(row).tools == ()
    assert unread_places(row, RowShape()) == ("available_tools",)


def test_what_a_tool_answered_may_stand_in_a_users_turn() -> None:
    use = {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "a"},
            {"type": "tool_use", "id": "1", "name": "look", "input": CITY},
        ],
    }
    result = {
        "type": "tool_result",
        "tool_use_id": "1",
        "content": [{"type": "text", "text": "r"}],
        "is_error": True,
    }
    row = said(U, use, {"role": "user", "content": [result, {"type": "text", "text": "v"}]}, A)
    assert brief(one(row).messages) == ["u u", f"a* a look{json.dumps(CITY)}", "t r", "u v", "a* a"]
    assert unread_places(row, RowShape()) == ("messages.content.is_error",)
    with pytest.raises(RowError, match="which only the user's can have"):
        one(said(U, {"role": "assistant", "content": [result]}))
    with pytest.raises(RowError, match="answers the call '2'"):
        one(said(U, use, {"role": "user", "content": [{**result, "tool_use_id": "2"}]}))


@pytest.mark.parametrize(
    "flag",
    [
        {"weight": 0},
        {"loss": False},
        {"train": False},
        {"loss_weight": 0.0},
        {"loss_scale": 0},
        {"train_on_turn": False},
        {"trainable": "false"},
        {"training": 0},
        {"loss_mask": "0"},
        {"masked": True},
        {"masked": 1},
        {"masked": "True"},
        {"weight": "0.0"},
        {"output_with_loss": False},
        {"compute_loss": False},
        {"ignore_loss": True},
        {"weight": 1, "masked": True},
        {"train_detail": [{"begin_offset": 0, "end_offset": 0, "train": False}]},
    ],
)
def test_a_flag_under_any_trainers_name_leaves_an_answer_untrained(flag: dict[str, Any]) -> None:
    assert brief(one(said(U, {**A, **flag}, U, A)).messages) == ["u u", "a a", "u u", "a* a"]
    turns = [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a", **flag}]
    assert brief(one({"conversations": turns}).messages) == ["u u", "a a"]
    assert unread_places(said(U, {**A, **flag}), RowShape()) == ()


@pytest.mark.parametrize(
    "flag",
    [
        {"weight": 1.0},
        {"masked": False},
        {"loss_mask": "1"},
        {"train_on_turn": "True"},
        {"train_detail": []},
        {"mask": None},
    ],
)
def test_a_flag_that_says_train_changes_nothing(flag: dict[str, Any]) -> None:
    assert brief(one(said(U, {**A, **flag})).messages) == ["u u", "a* a"]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ({"loss_scale": 0.3}, r"loss_scale must be 0 or 1, .*the number 0\.3"),
        ({"loss_weight": 2}, "loss_weight must be 0 or 1"),
        ({"trainable": "maybe"}, "trainable must be 0 or 1"),
        (
            {"train_detail": [{"begin_offset": 0, "end_offset": 3, "train": True}]},
            "has train_detail, which trains parts of a text",
        ),
        ({"train_detail": "all"}, "has train_detail"),
        ({"mask": 1}, "has mask, which some trainers train on"),
    ],
)
def test_a_flag_that_can_not_be_kept_is_refused_by_name(flag: dict[str, Any], words: str) -> None:
    with pytest.raises(RowError, match=words):
        one(said(U, {**A, **flag}))


def test_calls_in_a_turn_and_beside_it_are_refused() -> None:
    text = json.dumps(PLAIN)
    for turn in (
        {"role": "tool_call", "content": text, "tool_calls": [PLAIN]},
        {"role": "assistant", "content": [{"type": "tool_call", "value": text}], "function_call": PLAIN},
    ):
        with pytest.raises(RowError, match="calls both in its content and beside it"):
            one(said(U, turn))
    with pytest.raises(RowError, match="calls both in its content and beside it"):
        one(
            {
                "conversations": [
                    {"from": "human", "value": "u"},
                    {"from": "function_call", "value": text, "tool_calls": [PLAIN]},
                ]
            }
        )


def test_flags_may_stand_beside_the_turns() -> None:
    assert brief(one(said(U, A, U, A, loss_mask=[0, 0, 0, 1])).messages) == ["u u", "a a", "u u", "a* a"]
    assert brief(one(said(U, A, U, A, masked=[True, True, True, False])).messages) == [
        "u u",
        "a a",
        "u u",
        "a* a",
    ]
    with pytest.raises(RowError, match="loss_mask has 3 entries beside 2 turns"):
        one(said(U, A, loss_mask=[0, 1, 1]))
    for beside in (
        {"supervise": [False, True]},
        {"mask_history": True},
        {"weight": 0},
        {"train": False},
        {"loss_mask": "0,1"},
    ):
        row = said(U, A, **beside)
        assert brief(one(row).messages) == ["u u", "a* a"]
        assert unread_places(row, RowShape()) == tuple(beside)


@pytest.mark.parametrize("key", ["system", "system_prompt", "system_message"])
def test_a_system_prompt_is_one_under_other_names(key: str) -> None:
    for row in (said(U, A), {"instruction": "u", "output": "a"}, {"prompt": "u", "completion": "a"}):
        assert brief(one({**row, key: "s"}).messages) == ["s s", "u u", "a* a"]
        assert unread_places({**row, key: "s"}, RowShape()) == ()
    with pytest.raises(RowError, match="says something else"):
        one(said(U, A, system="s", system_prompt="t"))


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_beside_the_turns_is_of_the_last_answer(key: str) -> None:
    thought = {key: "let me see what that is"}
    for row in (said(U, A, U, A), {"instruction": "u", "output": "a"}, {"prompt": "u", "completion": "a"}):
        assert brief(one({**row, **thought}).messages)[-1] == "a* (let me see what that is)a"
        assert unread_places({**row, **thought}, RowShape()) == ()
    with pytest.raises(RowError, match="two different pieces of reasoning"):
        one(said(U, {**A, "reasoning": "other"}, **thought))
    with pytest.raises(RowError, match="two different pieces of reasoning"):
        one(said(U, {**A, "content": "<think>no</think>a"}, **thought))


def test_a_switch_is_no_thought() -> None:
    row = said(U, A, reasoning="on")
    assert one(row).messages[-1].reasoning is None
    assert unread_places(row, RowShape()) == ("reasoning",)


NAMED: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"instruction": "u", "output": "a", "context": "c"}, ("context",)),
    (
        {
            "prompt": "u",
            "completion": "a",
            "meta": {"by": ["someone"]},
            "score": 3,
            "empty": "",
            "none": None,
            "blank": [" "],
        },
        ("meta",),
    ),
    (
        said(U, {**A, "thought": "t", "timestamp": 5, "name": "", "empty": {}}),
        ("messages.thought", "messages.timestamp"),
    ),
    (said(U, {**A, "supervise": False}), ("messages.supervise",)),
    (said({**U, "name": "Li"}, A), ("messages.name",)),
    (
        said({"role": "user", "content": [{"type": "text", "text": "a", "citations": ["c"]}]}, A),
        ("messages.content.citations",),
    ),
    (
        said({"role": "user", "content": [{"type": "text", "text": "a", "value": "b"}]}, A),
        ("messages.content.value",),
    ),
    ({"messages": [U, A], "conversations": [{"from": "human", "value": "x"}]}, ("conversations",)),
    (
        {
            "conversations": [
                {"from": "human", "value": "u", "content": "x"},
                {"from": "gpt", "value": "a", "markdown": "m"},
            ]
        },
        ("conversations.content", "conversations.markdown"),
    ),
    ({"text": "### Human: u### Assistant: a", "title": "t"}, ("title",)),
    ({"text": "all", "system": "s", "tools": [TOOL]}, ("system", "tools")),
    ({"conversation": [{"input": "u", "output": "a", "note": "n"}]}, ("conversation.note",)),
    ({"messages": [{"role": "pretrain", "content": "all"}], "system_prompt": "s"}, ("system_prompt",)),
    ([U, {**A, "mood": "good"}], ("messages.mood",)),
]


@pytest.mark.parametrize(("row", "names"), NAMED)
def test_what_no_format_reads_is_named(row: Any, names: tuple[str, ...]) -> None:
    assert sorted(unread_places(row, RowShape())) == sorted(names)


def test_what_lies_beside_a_mapped_place_is_named() -> None:
    row = {
        "q": {"text": "u", "by": "li"},
        "answers": [{"text": "a", "votes": "many"}, {"text": "b"}],
        "input": "lost",
        "context": "c",
    }
    shape = RowShape(columns={"instruction": "q.text", "output": "answers.0.text", "input": "context"})
    assert brief(one(row, columns=shape.columns).messages) == ["u u\nc", "a* a"]
    assert sorted(unread_places(row, shape)) == ["answers", "answers.votes", "input", "q.by"]


def shape_of(tmp_path: Path, rows: list[Any], **columns: str) -> RowShape:
    write_rows(tmp_path / "rows.jsonl", rows)
    return scan_source([(tmp_path / "rows.jsonl", "auto")], RowShape(columns=columns))


PAIR = {"prompt": "u", "completion": "a"}
TURNS = said(U, A)


@pytest.mark.parametrize(
    ("row", "key", "values"),
    [
        (PAIR, "label", [0, 1]),
        (PAIR, "label", ["True", "False"]),
        (PAIR, "label", [1, -1]),
        (TURNS, "label", [1.0, 0.0]),
        (TURNS, "kto_tag", [True, False]),
        ({"instruction": "u", "output": "a"}, "kto_tag", ["true", "false"]),
        ({"question": "u", "answer": "a"}, "label", [0, 1]),
        ({"conversation": [{"input": "u", "output": "a"}]}, "thumbs_up", [1, 0]),
        (TURNS, "feedback", ["thumbs_up", "thumbs_down"]),
        (TURNS, "is_good", [True, False]),
        (PAIR, "label", [True, True]),
        (PAIR, "kto_tag", [False]),
        (PAIR, "label", ["False", "False"]),
        (TURNS, "verdict", ["bad", "bad"]),
        (PAIR, "label", [None, 0, 1, ""]),
    ],
)
def test_a_verdict_is_one_under_other_names_and_as_other_values(
    tmp_path: Path, row: dict[str, Any], key: str, values: list[Any]
) -> None:
    rows = [{**row, key: value} for value in values]
    shape = shape_of(tmp_path, rows)
    for judged in rows:
        (sample,) = read_row(judged, shape)
        assert isinstance(sample, Label) == (judged[key] not in (None, ""))
    assert scan_source([(tmp_path / "rows.jsonl", "auto")], RowShape()) == shape


@pytest.mark.parametrize(
    ("row", "key", "values"),
    [
        (PAIR, "label", [0, 1, 2]),
        (PAIR, "label", ["sports", "politics"]),
        (PAIR, "label", [1, 1]),
        (PAIR, "label", [0, 0]),
        (PAIR, "label", ["yes", "no", "maybe"]),
        ({"text": "u"}, "label", [0, 1]),
        (PAIR, "class", [0, 1]),
        (TURNS, "rating", [1, 5]),
        (TURNS, "label", [True, "maybe"]),
    ],
)
def test_a_class_is_no_verdict(tmp_path: Path, row: dict[str, Any], key: str, values: list[Any]) -> None:
    rows = [{**row, key: value} for value in values]
    shape = shape_of(tmp_path, rows)
    assert shape.facts.verdict is None
    if not isinstance(values[0], bool):
        assert not any(isinstance(sample, Label) for one in rows for sample in read_row(one, shape))
        assert key == "class" or all(unread_places(one, shape) == (key,) or "text" in row for one in rows)


def test_a_verdict_is_told_by_all_files_in_any_order_and_under_a_mapped_name(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", 0)):
        write_rows(tmp_path / f"{name}.jsonl", [{**PAIR, "ok": value}] * 3)
    found = [(tmp_path / f"{name}.jsonl", "auto") for name in "ab"]
    shape = RowShape(columns={"label": "ok"})
    assert scan_source(found, shape) == scan_source(found[::-1], shape)
    assert scan_source(found, shape).facts.verdict == "label"
    assert scan_source(found[:1], shape).facts.verdict is None
    (sample,) = read_row({**PAIR, "ok": 0}, scan_source(found, shape))
    assert isinstance(sample, Label)
    assert not sample.good
