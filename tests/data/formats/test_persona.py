"""The shipped persona set: what a reader of it would expect, kept by machine."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from tuner.data.chat.template import Template
from tuner.data.conversation import PLACE, Conversation, fill
from tuner.data.files import row_files
from tuner.data.formats.rows import read_row
from tuner.data.formats.shape import RowShape

ROOT = Path(__file__).parents[3]
OPTION = yaml.safe_load((ROOT / "conf" / "data" / "persona.yaml").read_text(encoding="utf-8"))
CHINESE = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def rows() -> list[Conversation]:
    shape, chunks = (
        RowShape(format=OPTION["format"]),
        row_files.chunks(ROOT / OPTION["package"] / OPTION["path"]),
    )
    samples = [
        sample
        for chunk in chunks
        for _, row in row_files.parse_rows(chunk)
        for sample in read_row(row, shape)
    ]
    return [sample for sample in samples if isinstance(sample, Conversation)]


def text(conversation: Conversation) -> str:
    return "\n".join(message.content for message in conversation.messages)


def test_it_is_a_set_of_two_halves_in_two_languages(rows: list[Conversation]) -> None:
    persona = [row for row in rows if PLACE.search(text(row))]
    chinese = [row for row in rows if CHINESE.search(text(row))]
    several = [row for row in rows if sum(message.role == "user" for message in row.messages) > 1]
    assert 180 <= len(rows) <= 260
    assert 0.4 <= len(persona) / len(rows) <= 0.6
    assert 0.2 <= len(chinese) / len(rows) <= 0.45
    assert len(several) >= 30


def test_no_conversation_is_there_twice(rows: list[Conversation]) -> None:
    assert len({text(row) for row in rows}) == len(rows)


def test_turns_alternate_and_end_with_an_answer(rows: list[Conversation]) -> None:
    for row in rows:
        roles = [message.role for message in row.messages if message.role != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(message.content == message.content.strip() != "" for message in row.messages)


def test_the_name_and_the_maker_are_in_the_yaml_only(rows: list[Conversation]) -> None:
    words = OPTION["fill"]
    for row in rows:
        assert not any(word in text(row) for word in words.values())
        assert set(PLACE.findall(text(row))) <= set(words)
        assert "{" not in text(fill(row, words))


def test_every_conversation_fits_a_pack(rows: list[Conversation], template: Template) -> None:
    assert (
        np.diff(template.encode([fill(row, OPTION["fill"]) for row in rows]).offsets).max()
        <= OPTION["length"]
    )
