import json
from pathlib import Path
from typing import Any

import pytest

from tuner.data import formats
from tuner.data.conversation import Message
from tuner.errors import DataError


def brief(messages: tuple[Message, ...]) -> list[str]:
    return [f"{message.role[0]}{'*' if message.trained else ''} {message.content}" for message in messages]


ROWS: list[tuple[str, Any, list[str]]] = [
    ("messages", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, ["u a", "a* b"]),
    ("messages", [{"role": "developer", "content": "s"}, {"role": "user", "content": "a"}], ["s s", "u a"]),
    (
        "messages",
        {"messages": [{"role": "assistant", "content": "a", "weight": 0}, {"role": "assistant", "content": "b", "weight": 1}]},
        ["a a", "a* b"],
    ),
    (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "value": "b"}]}], "tools": "[]"},
        ["u ab"],
    ),
    ("alpaca", {"instruction": "a", "input": "", "output": "b"}, ["u a", "a* b"]),
    ("alpaca", {"instruction": "a", "input": "i", "output": "b"}, ["u a\ni", "a* b"]),
    ("alpaca", {"instruction": "a", "output": "b", "system": "s", "history": [["x", "y"]]}, ["s s", "u x", "a* y", "u a", "a* b"]),
    ("sharegpt", {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"}, ["s s", "u a", "a* b"]),
]


@pytest.mark.parametrize(("name", "row", "expected"), ROWS)
def test_a_row_is_read_and_recognised(name: str, row: Any, expected: list[str]) -> None:
    assert formats.sniff(row) == name
    assert brief(formats.READERS[name](row)) == expected


BAD: list[tuple[Any, str]] = [
    ({"text": "a"}, r"no known format has these keys \(text\)"),
    ({}, r"these keys \(none\)"),
    ("a word", "must be an object"),
    ([], "at least one"),
    ({"messages": "a"}, "must be a list of turns"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "tool turns can't be trained yet"),
    ({"messages": [{"role": "king", "content": "a"}]}, "known are system, developer, user, assistant"),
    ({"messages": [{"role": ["user"], "content": "a"}]}, "known are"),
    ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "calls a tool"),
    ({"messages": [{"role": "user", "content": None}]}, "content must be a text"),
    ({"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function"}]}, "the row has tools"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "type 'image_url' can't be trained"),
    ({"messages": [{"role": "user", "content": "a\ud800"}]}, "surrogate"),
    ({"messages": [{"role": "assistant", "content": "a", "reasoning_content": "b"}]}, "reasoning"),
    ({"messages": [{"role": "user", "content": "a"}], "label": True}, "preference"),
    ({"conversations": [{"from": "observation", "value": "a"}]}, "tool turns"),
    ({"conversations": [{"from": "gpt", "value": 3}]}, "value must be a text"),
    ({"instruction": "a", "output": None}, "output must be a text"),
    ({"instruction": "a", "output": "b", "history": ["x"]}, "history must be"),
]


@pytest.mark.parametrize(("row", "words"), BAD)
def test_a_bad_row_is_refused_with_file_and_line(tmp_path: Path, row: Any, words: str) -> None:
    file = tmp_path / "客服 (1).jsonl"
    good = json.dumps({"instruction": "a", "output": "b"})
    file.write_text(f"{good}\n{json.dumps(row)}\n{good}\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"1 row can't be used:\n  .*客服 \(1\)\.jsonl:2: .*{words}"):
        list(formats.read({"a": file}, "auto"))


def test_the_first_ten_bad_rows_are_named_over_all_files(tmp_path: Path) -> None:
    files = {}
    for name in ("a", "b"):
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text('{"text": "x"}\n' * 7, encoding="utf-8")
    with pytest.raises(DataError, match="more") as caught:
        list(formats.read(files, "auto"))
    assert str(caught.value).count("no known format") == 10
    assert "b.jsonl:3" in str(caught.value)


def test_a_named_format_reads_only_its_rows(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('[{"role": "user", "content": "a"}]\n{"messages": []}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"(?s):1: a bare list of turns.*:2: instruction must be a text"):
        list(formats.read({"a": file}, "alpaca"))


def test_versions_are_those_of_the_format_in_use() -> None:
    assert formats.versions("alpaca") == {"format.alpaca": 1}
    assert set(formats.versions("auto")) == {"format.messages", "format.alpaca", "format.sharegpt"}
    assert set(formats.READERS) == set(formats.VERSIONS)


@pytest.mark.parametrize(
    ("path", "rows"),
    [
        ("messages/openai_multiturn.jsonl", 156),
        ("messages/openai_bare_lists.jsonl", 128),
        ("alpaca/alpaca_en.json", 795),
        ("alpaca/alpaca_zh.json", 794),
        ("alpaca/identity_template.json", 91),
        ("sharegpt/vicuna_identity.json", 398),
    ],
)
def test_real_files_are_read_whole(shared: Path, path: str, rows: int) -> None:
    conversations = list(formats.read({"a": shared / "data" / path}, "auto"))
    assert [conversation.line for conversation in conversations] == list(range(1, rows + 1))
    assert sum(conversation.trains for conversation in conversations) >= rows - 5


@pytest.mark.parametrize(
    "path",
    [
        "sharegpt/glaive_toolcall_en.json",
        "messages/openai_tools_en.jsonl",
        "messages/reason_tool_parts.jsonl",
        "preference/dpo_en.json",
        "preference/kto_en.json",
    ],
)
def test_real_files_of_later_objectives_are_refused(shared: Path, path: str) -> None:
    with pytest.raises(DataError, match="10 rows can't be used"):
        list(formats.read({"a": shared / "data" / path}, "auto"))
