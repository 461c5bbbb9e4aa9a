"""Nulls that a columnar schema filled in are left out; those that somebody meant, or may have meant, stay."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_rows
from tests.data.formats.test_formats import A, U, one
from tuner.data.conversation import Conversation
from tuner.data.files import row_files
from tuner.data.formats.nulls import Nulls, stripped
from tuner.data.formats.rows import read_row
from tuner.data.formats.shape import RowShape
from tuner.data.survey.scan import scan_source

STRING: dict[str, Any] = {"type": "string"}


def tool(name: str, properties: dict[str, Any] | None, **beside: Any) -> dict[str, Any]:
    schema = (
        {} if properties is None else {"parameters": {"type": "object", "properties": properties, **beside}}
    )
    return {"type": "function", "function": {"name": name, **schema}}


def row(name: str, arguments: Any, tools: list[Any] | None = None, **beside: Any) -> dict[str, Any]:
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}],
    }
    return {
        "messages": [U, call, {"role": "tool", "tool_call_id": "1", "content": "r"}, A],
        **({"tools": tools} if tools else {}),
        **beside,
    }


def left(value: dict[str, Any], shape: RowShape | None = None) -> tuple[Any, Nulls]:
    """The arguments of the row's call, and the nulls that were found."""
    found = Nulls()
    (sample,) = read_row(value, shape or RowShape())
    assert isinstance(sample, Conversation)
    done = stripped(sample, (shape or RowShape()).facts.filler, found)
    return done.messages[1].calls[0].arguments, found


def nested(inner: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": inner}


@pytest.mark.parametrize(
    ("arguments", "properties", "expected"),
    [
        ({"time": "7", "title": None}, {"time": STRING}, {"time": "7"}),
        ({"title": None}, {}, {}),
        ({"time": "7", "opts": {"loud": None, "soft": None}}, {"time": STRING}, {"time": "7"}),
        (
            {"where": {"city": "Oslo", "lat": None}},
            {"where": nested({"city": STRING})},
            {"where": {"city": "Oslo"}},
        ),
        (
            {"stops": [{"city": "Oslo", "lat": None}, {"city": None}]},
            {"stops": {"type": "array", "items": nested({"city": {"type": ["string", "null"]}})}},
            {"stops": [{"city": "Oslo"}, {"city": None}]},
        ),
        (
            {"a": 0, "b": False, "c": "", "d": [], "e": None},
            {key: {} for key in "abcd"},
            {"a": 0, "b": False, "c": "", "d": []},
        ),
        (
            {"where": {"city": "Oslo", "lat": None}},
            {"where": {"$ref": "#/$defs/place"}},
            {"where": {"city": "Oslo"}},
        ),
        ({"a": "x", "b": None}, {"a": {"anyOf": [STRING, {"type": "null"}]}}, {"a": "x"}),
        ({"time": "7", "title": None}, {"time": STRING, "title": None}, {"time": "7"}),
        ('{"time": "7", "title": null}', {"time": STRING}, {"time": "7"}),
    ],
)
def test_a_null_that_its_tool_does_not_declare_is_filler(
    arguments: Any, properties: dict[str, Any], expected: dict[str, Any]
) -> None:
    offered = tool("f", properties, **{"$defs": {"place": nested({"city": STRING})}})
    for tools in ([offered], [offered["function"]], json.dumps([offered])):
        kept, found = left(row("f", arguments, tools))  # type: ignore[arg-type]
        assert kept == expected
        assert found.arguments.total() == 1
        assert not found.doubtful


@pytest.mark.parametrize(
    "declared",
    [
        {"type": ["string", "null"]},
        {"type": "string", "nullable": True},
        {"anyOf": [STRING, {"type": "null"}]},
        {"oneOf": [STRING, {"type": "null"}]},
        {"enum": ["a", None]},
        {"type": "null"},
        {"$ref": "#/$defs/maybe"},
    ],
)
def test_a_null_that_is_declared_stays(declared: dict[str, Any]) -> None:
    offered = tool("f", {"unit": declared}, **{"$defs": {"maybe": {"type": ["string", "null"]}}})
    assert left(row("f", {"unit": None, "x": None}, [offered])) == (
        {"unit": None},
        Nulls(arguments={"f.x": 1}),
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "offered",
    [
        tool("f", {"unit": STRING}),
        tool("f", {"unit": {"description": "any"}}),
        tool("f", {"city": STRING}, additionalProperties=True),
        tool("f", {"city": STRING}, patternProperties={"^u": STRING}),
        tool("f", None),
        tool("g", {"city": STRING}),
    ],
)
def test_a_null_that_can_not_be_told_stays_and_is_counted(offered: dict[str, Any]) -> None:
    assert left(row("f", {"unit": None}, [offered])) == ({"unit": None}, Nulls(doubtful={"f.unit": 1}))  # type: ignore[arg-type]


BARE = [
    row("play", {"title": "x", "loud": True, "time": None, "never": None}),
    row("play", {"title": "y", "loud": None, "time": None, "never": None}),
    row("alarm", {"title": None, "loud": None, "time": "7", "never": None}),
]


def survey_of(tmp_path: Path, *parts: list[Any]) -> RowShape:
    for number, part in enumerate(parts):
        write_rows(tmp_path / f"{number}.jsonl", part)
    found = [(tmp_path / f"{number}.jsonl", "auto") for number in range(len(parts))]
    shape = scan_source(found, RowShape())
    assert scan_source(found[::-1], RowShape()) == shape
    return shape


def test_without_a_schema_the_calls_of_other_tools_tell(tmp_path: Path) -> None:
    for parts in ([BARE], [BARE[:1], BARE[1:]], [BARE[:2], BARE[2:]]):
        shape = survey_of(tmp_path, *parts)
        assert shape.facts.filler == {("play", "time"), ("alarm", "title"), ("alarm", "loud")}
    kept = [left(one, shape) for one in BARE]
    assert [arguments for arguments, _ in kept] == [
        {"title": "x", "loud": True, "never": None},
        {"title": "y", "loud": None, "never": None},
        {"time": "7", "never": None},
    ]
    assert kept[1][1] == Nulls(arguments={"play.time": 1}, doubtful={"play.loud": 1, "play.never": 1})  # type: ignore[arg-type]


def test_the_rows_may_have_their_turns_under_another_name(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"talk": one["messages"]} for one in BARE])
    shape = scan_source([(tmp_path / "rows.jsonl", "auto")], RowShape(columns={"messages": "talk"}))
    assert shape.facts.filler == {("play", "time"), ("alarm", "title"), ("alarm", "loud")}


def test_inner_keys_are_told_by_their_way(tmp_path: Path) -> None:
    rows = [row("f", {"at": {"x": 1, "y": None}, "y": None}), row("g", {"at": {"x": None, "y": 2}, "y": 3})]
    shape = survey_of(tmp_path, rows)
    assert [left(one, shape)[0] for one in rows] == [{"at": {"x": 1}}, {"at": {"y": 2}, "y": 3}]


def test_a_source_without_nulls_has_no_facts_and_its_rows_stay_the_same(tmp_path: Path) -> None:
    rows = [row("f", {"a": 1}), row("g", {"b": 1})]
    assert survey_of(tmp_path, rows) == RowShape()
    sample = one(rows[0])
    assert stripped(sample, frozenset(), Nulls()) is sample


def test_nulls_of_a_tools_schema_are_left_out_and_values_stay() -> None:
    properties = {
        "time": {"type": "string", "description": "when", "enum": None, "items": None, "default": None},
        "unit": {"enum": ["a", None], "type": ["string", "null"]},
        "title": None,
        "loud": {"type": None, "description": None},
        "description": None,
    }
    offered = {
        "type": "function",
        "function": {
            "name": "f",
            "description": None,
            "parameters": {"type": "object", "properties": properties, "required": None},
        },
    }
    found = Nulls()
    (done,) = stripped(one({"messages": [U, A], "tools": [offered]}), frozenset(), found).tools
    kept = {"time": {"type": "string", "description": "when", "default": None}, "unit": properties["unit"]}
    assert done["function"] == {
        "name": "f",
        "description": None,
        "parameters": {"type": "object", "properties": kept},
    }
    assert found.tools.total() == 6
    assert dict(found.doubtful) == {"f.description": 1, "f.parameters.properties.time.default": 1}


def written(tmp_path: Path, rows: list[Any], kind: str) -> Path:
    """The rows, through a table."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    table = pa.Table.from_pylist(rows)
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "arrow":
        with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
            writer.write_table(table)
    elif kind == "stream":
        with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)
    else:
        path = tmp_path / "rows.jsonl"
        write_rows(path, table.to_pylist())
    return path


@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream", "jsonl"])
@pytest.mark.parametrize("has_schema", [True, False])
def test_rows_that_went_through_a_table_are_as_they_were(tmp_path: Path, kind: str, has_schema: bool) -> None:
    tools = [
        tool("play", {"title": STRING, "loud": {"type": "boolean"}}, required=["title"]),
        tool("stop", {}),
        tool("alarm", {"time": {**STRING, "enum": ["7", "8"]}}),
        {"type": "function", "function": {"name": "now", "strict": True}},
    ]
    calls = [
        ("play", {"title": "x", "loud": True}),
        ("alarm", {"time": "7"}),
        ("play", {"title": "y", "loud": False}),
        ("now", {}),
    ]
    rows = [row(name, arguments, tools if has_schema else None) for name, arguments in calls]
    path = written(tmp_path, rows, kind)
    shape = scan_source([(path, "auto")], RowShape())
    back = [value for chunk in row_files.chunks(path) for _, value in row_files.parse_rows(chunk)]
    for was, now in zip(rows, back, strict=True):
        found = Nulls()
        expected, (sample,) = one(was), read_row(now, shape)
        assert isinstance(sample, Conversation)
        done = stripped(sample, shape.facts.filler, found)
        assert [message.calls for message in done.messages] == [
            message.calls for message in expected.messages
        ]
        assert json.dumps(done.tools, sort_keys=True) == json.dumps(expected.tools, sort_keys=True)
        assert found.arguments.total() > 0
        assert not found.doubtful
