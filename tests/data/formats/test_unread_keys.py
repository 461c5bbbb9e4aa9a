"""Nothing that a row says vanishes: each of its texts is in what the model sees, is named as not read, or
the row is refused.
"""

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.conftest import ROOT, SHARED, read_chat
from tuner.data.files.row_files import Chunk
from tuner.data.formats.shape import RowShape
from tuner.data.tokenize.documents import DocumentMaker
from tuner.data.tokenize.job import Job, SourceSettings, TokenizedRows, TokenizeSettings

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared beside the repository")

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "w1"}},
    "required": ["city"],
}
TOOL = {"type": "function", "function": {"name": "look", "description": "w2", "parameters": SCHEMA}}
CALL = {
    "id": "id1",
    "type": "function",
    "function": {"name": "look", "arguments": {"city": "w3", "more": {"deep": ["w4"]}}},
}
ROWS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "system", "content": "w10"},
            {"role": "user", "content": [{"type": "text", "text": "w11"}, {"type": "text", "text": "w12"}]},
            {"role": "assistant", "content": "w13", "reasoning_content": "w14", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "id1", "content": "w15"},
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "w16"}, {"type": "text", "text": "w17"}],
            },
        ],
        "tools": [TOOL],
    },
    {
        "messages": [
            {"role": "user", "content": "w20"},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "id1", "name": "look", "input": {"city": "w21"}}],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "id1", "content": "w22"},
                    {"type": "text", "text": "w23"},
                ],
            },
            {"role": "assistant", "content": "w24"},
        ],
        "tools": [{"name": "look", "description": "w25", "input_schema": SCHEMA}],
    },
    {
        "conversations": [
            {"from": "human", "value": "w30"},
            {"from": "gpt", "value": "w31"},
            {"from": "function_call", "value": '{"name": "look", "arguments": {"city": "w32"}}'},
            {"from": "observation", "value": "w33"},
            {"from": "gpt", "value": "w34"},
        ],
        "system": "w35",
    },
    {"instruction": "w40", "input": "w41", "output": "w42", "history": [["w43", "w44"]]},
    {"prompt": "w50", "completion": "w51"},
    {
        "prompt": [{"role": "user", "content": "w52"}],
        "completion": [{"role": "assistant", "content": "w53"}],
        "system_prompt": "w54",
    },
    {"text": "w60"},
    {"text": "### Human: w61### Assistant: w62"},
    {"input": "### Human: w63 ### Assistant:", "output": "w64"},
    {"conversation": [{"system": "w70", "input": "w71", "output": "w72"}, {"input": "w73", "output": "w74"}]},
    {"conversation": [{"input": "", "output": "w75"}]},
    {"messages": [{"role": "pretrain", "content": "w76"}]},
    {"question": "w80", "answer": "w81"},
    {
        "prompt": {
            "text": "w90",
            "role": "prompter",
            "message_id": "id1",
            "replies": [{"text": "w91", "role": "assistant", "message_id": "id2"}],
        }
    },
    {"prompt": "w95", "completion": "w96", "label": True},
    {
        "prompt": [{"role": "user", "content": "w97"}],
        "chosen": {"role": "assistant", "content": "w98"},
        "rejected": "w99",
    },
    {"conversation": [{"human": "w300", "assistant": "w301"}]},
    {"dialog": [{"speaker": "user", "text": "w302"}, {"speaker": "assistant", "text": "w303"}]},
    {
        "query": "w304",
        "response": "w305",
        "history": [{"role": "user", "content": "w306"}, {"role": "assistant", "content": "w307"}],
    },
    {
        "messages": [
            {"role": "user", "content": "w308"},
            {"role": "tool_call", "content": '{"name": "look", "arguments": {"city": "w309"}}'},
            {"role": "tool_response", "content": "w310"},
            {"role": "assistant", "content": "<think>w311</think>w312"},
        ]
    },
    {"text": "<|im_start|>user\nw313<|im_end|>\n<|im_start|>assistant\nw314<|im_end|>\n"},
    {"asked": [{"text": "w315"}], "said": "w316"},
]
KEYS = (
    "context",
    "thought",
    "note",
    "id",
    "system",
    "system_prompt",
    "reasoning",
    "reasoning_content",
    "thinking",
    "tools",
    "functions",
    "available_tools",
    "label",
    "kto_tag",
    "weight",
    "masked",
    "mask",
    "loss_mask",
    "train_detail",
    "supervise",
    "name",
    "content",
    "value",
    "text",
    "input",
    "output",
    "parameters",
    "args",
    "arguments",
    "description",
    "images",
    "history",
    "instruction",
    "messages",
    "conversations",
    "conversation",
    "prompt",
    "completion",
    "chosen",
    "question",
    "answer",
    "from",
    "tool_calls",
    "function_call",
    "function",
    "signature",
    "cache_control",
    "is_error",
    "strict",
    "tool_call_id",
    "call_id",
    "index",
    "input_schema",
    "replies",
    "rank",
    "title",
    "output_with_loss",
    "speaker",
    "author",
    "message",
    "dialog",
    "query",
    "response",
    "asked",
    "said",
    "rejected",
    "human",
)
WORDS = st.integers(100, 999).map(lambda number: f"w{number} w{number}x")
WORD = re.compile(r"\bw\d+x?\b")
VALUES = st.one_of(
    WORDS,
    WORDS,
    st.sampled_from([None, False, True, 0, 1, 0.5, "", [0, 1], "w9"]),
    st.lists(WORDS, min_size=1, max_size=2),
    WORDS.map(lambda word: [{"name": word, "arguments": {"city": word}}]),
    st.dictionaries(st.sampled_from(KEYS), WORDS, min_size=1, max_size=2),
    st.lists(
        st.dictionaries(
            st.sampled_from(("role", "content", "name", "from", "value", "type", "text")),
            WORDS,
            min_size=1,
            max_size=3,
        ),
        min_size=1,
        max_size=2,
    ),
)
NAMES = frozenset(("role", "from", "type", "tool_call_id", "tool_use_id", "message_id", "parent_id"))
IDS = frozenset(("id", "call_id", "index"))


def is_structure(way: tuple[str, ...]) -> bool:
    """Whether a text says how others belong together: who speaks, of what kind a part is, which call is
    answered.
    """
    return len(way) > 1 and (way[-1] in NAMES or (way[-1] in IDS and len(way) > 2))


def makers() -> dict[str, DocumentMaker]:
    chat = read_chat(ROOT / "conf" / "model" / "chat" / "qwen3.yaml")
    base = TokenizeSettings(
        model=SHARED / "tokenizers" / "qwen2_5",
        chat=chat,
        sources=(),
        length=1 << 20,
        overlong="truncate",
        loss="assistant",
        reasoning="keep",
    )
    shapes = {
        "auto": RowShape(),
        "chosen": RowShape(format="chosen"),
        "columns": RowShape(columns={"instruction": "asked.0.text", "output": "said"}),
        "templated": RowShape(format="templated"),
    }
    return {
        name: DocumentMaker(replace(base, sources=(SourceSettings(shape=shape, fill={}, system=None),)))
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module", name="makers")
def _makers() -> dict[str, DocumentMaker]:
    return makers()


def texts(value: Any, way: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Each text with the keys that lead to it."""
    if isinstance(value, str):
        yield way, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from texts(part, (*way, key))
    elif isinstance(value, list):
        for part in value:
            yield from texts(part, way)


def objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from objects(part)


def lost(row: Any, shown: Any, maker: DocumentMaker) -> list[tuple[tuple[str, ...], str]]:
    """The texts of a row that are nowhere; in `shown`, which is the same row, some columns may be JSON in a
    text.

    Which tool answered is read, and this template has no place for it.
    """
    made = maker.make(Job(source=0, rows=Chunk(first=1, values=[shown])))
    if made.bad or made.unwritten or made.dropped:
        return []
    text, named = seen(made, maker), [tuple(name.split(".")) for name in made.unread]

    def is_found(way: tuple[str, ...], one: str) -> bool:
        way = tuple(
            key
            for key in way
            if key != "replies" or way[0] != "prompt" or not isinstance(row["prompt"], dict)
        )
        return any(way[: len(name)] == name for name in named) or all(
            word in text for word in WORD.findall(one)
        )

    answered = {
        name
        for turn in objects(row)
        if isinstance(name := turn.get("name"), str)
        and any(turn.get(key) in ("tool", "observation", "tool_response") for key in ("role", "from"))
    }
    return [
        (way, one)
        for way, one in texts(row)
        if not is_structure(way) and one not in answered and not is_found(way, one)
    ]


def seen(made: TokenizedRows, maker: DocumentMaker) -> str:
    text: str = maker.template.tokenizer.decode(made.ids.tolist(), skip_special_tokens=False)
    try:
        return text + json.loads(f'"{text}"')  # as it is, and as JSON spells it
    except ValueError:
        return text


@given(data=st.data(), number=st.integers(0, len(ROWS) - 1), as_text=st.booleans())
@settings(
    max_examples=1000,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_no_text_of_a_row_vanishes(
    makers: dict[str, DocumentMaker], data: st.DataObject, number: int, as_text: bool
) -> None:
    row = deepcopy(ROWS[number])
    for _ in range(data.draw(st.integers(1, 3))):
        inside = data.draw(st.sampled_from(list(objects(row))))
        inside[data.draw(st.sampled_from(KEYS))] = data.draw(VALUES)
    shown = deepcopy(row)
    if as_text:
        for key in ("messages", "conversations", "conversation", "tools"):
            if isinstance(shown.get(key), list):
                shown[key] = json.dumps(shown[key], ensure_ascii=False)
    for name in makers:
        found = [entry for entry in lost(row, shown, makers[name]) if entry[0][0] != "rejected"]
        assert not found, f"{found} of {json.dumps(shown)}"
