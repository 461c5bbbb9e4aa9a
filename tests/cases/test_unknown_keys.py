"""Keys under other names, and those that nobody reads: shared cases through the front door."""

import json
from pathlib import Path
from typing import Any

from tests.cases.conftest import Preview, brought, shared, trained
from tests.conftest import Tuner, linked, write_rows

pytestmark = shared


def copied(name: str, to: Path) -> list[str]:
    """The files of rows of a case, each called so that those of several can lie together."""
    brought(name, to / name)
    for file in (found := sorted((to / name).glob("*.jsonl"))):
        file.rename(to / f"{name}-{file.name}")
    return [f"{name}-{file.name}" for file in found]


def test_calls_and_tools_of_other_vendors_are_written_as_openais(preview: Preview, tmp_path: Path) -> None:
    calls, empty, tools = (
        copied(name, tmp_path)
        for name in ("call_arguments_other_keys", "empty_arguments", "tools_other_forms")
    )
    tools.remove(refused := "tools_other_forms-dictresult.jsonl")
    used = {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "w",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    first = (tmp_path / calls[0]).read_text().splitlines()[0]
    write_rows(tmp_path / "args.jsonl", [json.loads(first.replace('"input"', '"args"'))])
    row = json.loads(first)
    write_rows(tmp_path / "available.jsonl", [{"messages": row["messages"], "available_tools": row["tools"]}])
    files = [*calls, "args.jsonl", "available.jsonl", *tools, *empty, refused]
    shown = preview(
        f"data.path=[{','.join(files)}]", "model/chat=qwen2_5", "--json", *(f"{name}:1" for name in files)
    )
    texts = [json.loads(line)["text"] for line in shown.out.splitlines()]
    for text in texts[:-3]:
        assert '{"name": "weather", "arguments": {"city": "city 0"}}' in text
        assert json.dumps(used) in text
    assert len(texts[:-3]) == len(calls) + len(tools) + 2
    for text in texts[-3:-1]:
        assert '{"name": "now", "arguments": {}}' in text
    assert (
        "must be a string, and this is an object with the keys sky"
        in json.loads(shown.out.splitlines()[-1])["left_out"]
    )


def test_an_answer_that_any_trainer_leaves_out_is_shown_and_not_trained(
    preview: Preview, tmp_path: Path
) -> None:
    files = copied("per_turn_mask_other_names", tmp_path)
    shown = preview(f"data.path=[{','.join(files)}]", *(f"{name}:1" for name in files))
    assert trained(shown) == ["1.<|im_end|>"] * len(files)
    assert shown.out.count("bad 0.") == len(files)
    spans = [{"begin_offset": 0, "end_offset": 2, "train": False}]
    write_rows(
        tmp_path / "detail.jsonl",
        [
            {
                "messages": [
                    {"role": "user", "content": "u"},
                    {"role": "assistant", "content": "bad 0.", "train_detail": spans},
                ]
            }
        ],
    )
    assert (
        "has train_detail, which trains parts of a text" in preview("data.path=detail.jsonl", "1", code=2).err
    )


def test_verdicts_that_are_no_bool_are_refused_as_labels_are(preview: Preview, tmp_path: Path) -> None:
    brought("label_that_is_no_bool", tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "label01.jsonl").read_text().splitlines()]
    cells = "".join(f"{row['prompt']},{row['completion']},{bool(row['label'])}\n" for row in rows)
    (tmp_path / "np.csv").write_text(f"prompt,completion,label\n{cells}")
    for name in ("label01.jsonl", "kto_tag.jsonl", "np.csv"):
        assert "20 rows of comparisons" in preview(f"data.path={name}", "1-2", code=2).err
    write_rows(tmp_path / "classes.jsonl", [{**row, "label": number % 3} for number, row in enumerate(rows)])
    shown = preview("data.path=classes.jsonl", "1-2")
    assert trained(shown) == ["no idea<|im_end|>", "2<|im_end|>"]
    assert "not read: label in 2 of 2 rows" in shown.err


def test_a_text_beside_the_turns_is_used_or_named(preview: Preview, tmp_path: Path) -> None:
    files = copied("unread_text_columns", tmp_path)
    named = [name for name in files if "ctx" in name]
    for name in named:
        shown = preview(f"data.path={name}", "1-3")
        assert "not read: context, text in 3 of 3 rows; to use it: " in shown.err
        words = shown.err.strip().rpartition("to use it: ")[2].split()
        again = preview(f"data.path={name}", "1-3", *words)
        assert "The code is 0." in again.out
        assert "not read" not in again.err
    read = [name for name in files if "ctx" not in name]
    shown = preview(f"data.path=[{','.join(read)}]", *(f"{name}:1" for name in read))
    assert shown.out.count("You are a pirate.") == len(read) == 2
    assert "not read" not in shown.err


def test_the_same_rows_give_the_same_tokens_from_a_table(preview: Preview, tmp_path: Path) -> None:
    brought("parquet_null_arguments", tmp_path)
    ids: list[list[Any]] = []
    for name in ("calls.jsonl", "calls.parquet"):
        shown = preview(f"data.path={name}", "model/chat=qwen2_5", "1-2", "--json")
        ids.append([json.loads(line)["ids"] for line in shown.out.splitlines()])
        assert (
            "left out as filled in by a table: null in 3 arguments of calls and 6 entries of tools"
            in shown.err
        ) == (name == "calls.parquet")
    assert ids[0] == ids[1]


def test_what_is_not_read_is_in_the_ledger_can_be_left_and_can_be_refused(
    tuner: Tuner, tiny: list[str], tmp_path: Path
) -> None:
    turns = [
        {"role": "user", "content": "What is 1 plus 1?"},
        {"role": "assistant", "content": "2", "supervise": False},
    ]
    write_rows(
        tmp_path / "rows.jsonl",
        [{"messages": turns, "note": "please do not", "id": f"r{i}"} for i in range(20)],
    )
    words = [*tiny, "data.path=rows.jsonl", "until=tokenize"]
    done = tuner(*words)
    assert (
        "not read: note, text in 20 of 20 rows; id, messages.supervise in 20 of 20 rows"
        in done.out + done.err
    )
    ledger = json.loads((linked(tmp_path / "outputs", "tokenize") / "ledger.json").read_text())
    unread = {
        "note": {"rows": 20, "texts": 20},
        "id": {"rows": 20, "texts": 0},
        "messages.supervise": {"rows": 20, "texts": 0},
    }
    assert ledger["sources"][0]["unread"] == unread
    assert "nulls" in ledger["sources"][0]
    refused = tuner(*words, "data.unread=error", "data.leave=id", code=2)
    assert (
        "no format reads note, messages.supervise, and data.unread=error refuses that; to leave it: "
        "data.leave=[note,messages.supervise]" in refused.err
    )
    left = tuner(*words, "data.unread=error", "data.leave=[id,note,messages.*]")
    assert "not read" not in left.out + left.err


def test_filled_in_nulls_are_in_the_ledger(tuner: Tuner, tiny: list[str], tmp_path: Path) -> None:
    brought("parquet_null_arguments", tmp_path)
    done = tuner(*tiny, "data.path=calls.parquet", "model/chat=qwen2_5", "data.length=4096", "until=tokenize")
    assert "left out as filled in by a table: null in" in done.out + done.err
    ledger = json.loads((linked(tmp_path / "outputs", "tokenize") / "ledger.json").read_text())
    assert set(ledger["sources"][0]["nulls"]) == {"arguments", "tools"}
    assert set(ledger["sources"][0]["nulls"]["arguments"]) == {
        "play_song.time",
        "set_alarm.loud",
        "set_alarm.title",
    }
