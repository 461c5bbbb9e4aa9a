"""What is asked must be what was trained: the same ids up to the answer, from rows with it or without."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import SHARED, write_rows
from tuner.config.compose import compose
from tuner.data.conversation import last_only
from tuner.data.formats.nulls import Nulls
from tuner.data.formats.shape import RowShape
from tuner.data.tokenize.data_file import DataFile
from tuner.data.tokenize.documents import DocumentMaker
from tuner.data.tokenize.job import SourceSettings, TokenizeSettings
from tuner.errors import DataError
from tuner.models.predict.requests import Request, choose_shape, read_requests, samples_of

TEMPLATES = {
    "internlm2": "internlm2",
    "internlm2_hf_fast": "internlm2",
    "minimind": "minimind",
    "mistral_nemo": "mistral_nemo",
    "mistral_v3": "mistral_v3",
    "qwen2_5": "qwen2_5",
    "smollm2": "smollm2",
    "tinystories_tok512": "neutral",
}
"""tokenizer → a chat template that goes with it"""

SYSTEM = {"role": "system", "content": "You are  terse. 简短"}
TURNS = [
    {"role": "user", "content": "What is 1 plus 2?"},
    {"role": "assistant", "content": "\n3."},
    {"role": "user", "content": "你好 🙂 <|im_end|>"},
    {"role": "assistant", "content": " Hello, and more"},
]
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "adds",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
    },
}


def maker_of(model: Path, template: str, shape: RowShape | None = None) -> DocumentMaker:
    return DocumentMaker(
        TokenizeSettings(
            model=model,
            chat=compose([f"model/chat={template}"], whole=False).model.chat,
            sources=(SourceSettings(shape=shape or RowShape(), fill={}, system=None),),
            length=4096,
            overlong="truncate",
            loss="assistant",
            reasoning="last",
        )
    )


def asked(rows: list[Any], maker: DocumentMaker, folder: Path, *, skip: bool = False) -> list[Request]:
    write_rows(folder / "in.jsonl", rows)
    file = DataFile(name="in", path=folder / "in.jsonl", source=0, label="", apart=True, encoding="auto")
    return read_requests(file, maker, system=None, skip=skip, tick=lambda _: None).every


def trained(row: Any, maker: DocumentMaker) -> tuple[list[int], list[int]]:
    """The ids before the last answer of a training row, and those of that answer."""
    (sample,) = samples_of(row, RowShape())
    encoded = maker.encode([last_only(maker.shown(sample, maker.settings.sources[0], Nulls()))])
    first = int(np.flatnonzero(encoded.trained)[0])
    return encoded.ids[:first].tolist(), encoded.ids[encoded.trained].tolist()


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared beside the repository")
@pytest.mark.parametrize(("tokenizer", "template"), TEMPLATES.items())
def test_prompts_are_the_ids_of_training(tokenizer: str, template: str, tmp_path: Path) -> None:
    maker = maker_of(SHARED / "tokenizers" / tokenizer, template)
    whole = [{"messages": turns} for turns in (TURNS[:2], TURNS, [SYSTEM, *TURNS])]
    if maker.settings.chat.tools:
        whole.append({"messages": TURNS, "tools": [TOOL]})
    bare = [row | {"messages": row["messages"][:-1]} for row in whole]
    answered, unanswered = asked(whole, maker, tmp_path), asked(bare, maker, tmp_path)
    for row, one, other in zip(whole, answered, unanswered, strict=True):
        before, answer = trained(row, maker)
        assert list(one.ids) == before
        assert list(other.ids) == before
        assert other.expected is None
        said = maker.template.tokenizer.decode(answer, skip_special_tokens=True)
        assert said.strip() == str(one.expected).strip()


@pytest.fixture
def maker(tiny_model: Path) -> DocumentMaker:
    return maker_of(tiny_model, "chatml")


QUESTION = {"messages": [{"role": "user", "content": "Why?"}]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Why?", "input": "", "output": "So."}, "So."),
        ({"instruction": "Why?"}, None),
        ({"instruction": "Why?", "output": None}, None),
        ({"instruction": "Why?", "output": ""}, None),
        ({"prompt": "Why?"}, None),
        ({"prompt": "Why?", "completion": "So."}, "So."),
        ({"question": "Why?"}, None),
        ({"query": "Why?", "id": 3}, None),
        ({"conversations": [{"from": "human", "value": "Why?"}]}, None),
        ({"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}, "So."),
        ({"prompt": "Why?", "chosen": "So.", "rejected": "No."}, "So."),
        ({"prompt": "Why?", "completion": "No.", "label": False}, None),
        (QUESTION["messages"], None),
    ],
)
def test_formats_with_and_without_an_answer(
    row: Any, expected: str | None, maker: DocumentMaker, tmp_path: Path
) -> None:
    one, other = asked([row, QUESTION], maker, tmp_path)
    assert list(one.ids) == list(other.ids)
    assert one.expected == expected


def test_a_system_prompt_of_the_command_is_for_conversations_without_one(
    maker: DocumentMaker, tmp_path: Path
) -> None:
    rows = [QUESTION, {"messages": [SYSTEM, *QUESTION["messages"]]}]
    write_rows(tmp_path / "in.jsonl", rows)
    file = DataFile(name="in", path=tmp_path / "in.jsonl", source=0, label="", apart=True, encoding="auto")
    words = {"skip": False, "tick": lambda _: None}
    one, other = read_requests(file, maker, system=SYSTEM["content"], **words).every
    assert list(one.ids) == list(other.ids)
    one, other = read_requests(file, maker, system="Another", **words).every
    assert list(one.ids) != list(other.ids)


def test_plain_texts_are_gone_on_with(maker: DocumentMaker, tmp_path: Path) -> None:
    one, blank = asked([{"text": "Once upon"}, {"text": " "}], maker, tmp_path)
    assert list(one.ids) == maker.template.tokenizer.encode("Once upon", add_special_tokens=False).ids
    assert (len(blank.ids), blank.reason) == (0, "the row asks nothing")


def test_bad_rows_are_refused_with_their_places_or_keep_their_reason(
    maker: DocumentMaker, tmp_path: Path
) -> None:
    rows = [
        QUESTION,
        {"messages": 3},
        {"strange": 1},
        [],
        {"messages": [{"role": "assistant", "content": "So."}]},
    ]
    with pytest.raises(
        DataError, match=r"3 rows can't be used:\n.*in.jsonl:2: messages must be a list(.|\n)*bad_rows=skip"
    ):
        asked(rows, maker, tmp_path)
    found = asked(rows, maker, tmp_path, skip=True)
    assert [bool(one.reason) for one in found] == [False, True, True, True, True]
    assert found[4].reason == "the row asks nothing"


def test_rows_of_another_shape_than_those_of_training_are_read_by_their_keys(tmp_path: Path) -> None:
    own, said = RowShape(format="alpaca", columns={"instruction": "title", "output": "body"}), list[str]()
    write_rows(tmp_path / "own.jsonl", [{"title": "Why?"}] * 3)
    write_rows(tmp_path / "other.jsonl", [QUESTION] * 3)

    def chosen(name: str, *, told: bool = False) -> RowShape:
        return choose_shape(tmp_path / name, "auto", own, told=told, say=said.append)

    assert (chosen("own.jsonl").format, said) == ("alpaca", [])
    assert chosen("other.jsonl").format == "auto"
    assert said == ["the rows are not like those of training, and are read by their own keys"]
    assert chosen("other.jsonl", told=True).format == "alpaca"
    tree = {"message_id": "a", "message_tree_id": "a", "parent_id": None, "text": "Why?", "role": "prompter"}
    (tmp_path / "flat.jsonl").write_text(json.dumps(tree) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="single messages of trees"):
        choose_shape(tmp_path / "flat.jsonl", "auto", RowShape(), told=False, say=said.append)
