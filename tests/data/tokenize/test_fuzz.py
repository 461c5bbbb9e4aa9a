"""Random rows in random files: whatever comes, a row is kept or dropped with a reason, or the file is
refused in words.
"""

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tuner.config.schema import Chat
from tuner.data.formats.shape import RowShape
from tuner.data.tokenize.cuts import Cuts
from tuner.data.tokenize.data_file import DataFile
from tuner.data.tokenize.dataset import read_dataset, survey_sources
from tuner.data.tokenize.job import SourceSettings, TokenizeSettings
from tuner.data.tokenize.ledger import FileCounts
from tuner.data.tokenize.spool import Spool
from tuner.errors import DataError

EXAMPLES = 4000 if os.environ.get("TUNER_TEST_ALL") else 120
WORDS = st.text(max_size=12) | st.sampled_from(
    [
        "<|im_end|>",
        "\u2028",
        "\ud800",
        "\x00",
        "### Human:",
        "<think>",
        "</think>",
        "<|im_start|>user\n",
        "[INST] a [/INST] b",
        "### Instruction:\na\n### Response:\nb",
        "user",
        "assistant",
        "12",
        "",
        " ",
    ]
)
LEAVES = st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | WORDS
KEYS = st.sampled_from(
    [
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
        "tool_calls",
        "name",
        "arguments",
        "id",
        "type",
        "function",
        "weight",
        "loss",
        "chosen",
        "rejected",
        "label",
        "message_id",
        "parent_id",
        "message_tree_id",
        "rank",
        "replies",
        "reasoning_content",
        "split",
    ]
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | WORDS, inner, max_size=5),
    max_leaves=14,
)
SPEECH = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "bot"]), "content": WORDS | st.none()},
    optional={"weight": LEAVES, "reasoning_content": WORDS, "tool_calls": VALUES},
)
ROWS = (
    VALUES
    | st.fixed_dictionaries({"messages": st.lists(SPEECH, max_size=5)}, optional={"tools": VALUES})
    | st.fixed_dictionaries(
        {"instruction": WORDS, "output": WORDS}, optional={"input": LEAVES, "history": VALUES}
    )
    | st.fixed_dictionaries(
        {
            "conversations": st.lists(
                st.fixed_dictionaries(
                    {"from": st.sampled_from(["human", "gpt", "observation"]), "value": WORDS}
                ),
                max_size=5,
            )
        }
    )
    | st.fixed_dictionaries(
        {
            "message_id": WORDS,
            "parent_id": WORDS | st.none(),
            "message_tree_id": WORDS,
            "text": WORDS,
            "role": st.sampled_from(["prompter", "assistant"]),
        }
    )
    | st.fixed_dictionaries({"text": WORDS}, optional={"split": st.sampled_from(["train", "test", ""])})
)


@pytest.fixture(scope="module")
def described(tiny_model: Path, chatml: Chat) -> TokenizeSettings:
    source = SourceSettings(shape=RowShape(), fill={}, system=None)
    return TokenizeSettings(
        model=tiny_model,
        chat=chatml,
        sources=(source,),
        length=24,
        overlong="auto",
        loss="assistant",
        reasoning="last",
    )


def account(path: Path, described: TokenizeSettings, out: Path) -> list[FileCounts] | None:
    """The counts of a file, all rows accounted for; None where the file was refused."""
    documents = Spool(out / "spill")
    listed = [DataFile(name=path.name, path=path, source=0, label="", apart=False, encoding="auto")]
    try:
        sources = read_dataset(
            survey_sources(described, listed),
            listed,
            documents,
            Cuts(),
            takes=[None],
            seed=0,
            skip=True,
            workers=1,
            say=print,
        )
    except DataError as error:
        refused = str(error)
    else:
        refused = ""
    finally:
        documents.close()
    if refused:
        assert str(path) in refused or "were left out" in refused
        return None
    for source in sources:
        assert source.rows == source.kept + source.lost
    assert int(documents.lengths.max()) <= described.length
    assert all(documents.trained > 0)
    return sources


@seed(0)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(ROWS, max_size=6), form=st.sampled_from(["jsonl", "json", "gz", "csv"]))
def test_every_row_is_accounted_for(
    rows: list[Any], form: str, described: TokenizeSettings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("fuzz", numbered=True)
    path = out / f"rows.{'json' if form == 'gz' else form}"
    good = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    lines = "".join(json.dumps(row) + "\n" for row in [good, *rows])
    if form == "json":
        path.write_text(json.dumps([good, *rows]), encoding="utf-8")
    elif form == "gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines, encoding="utf-8")
    sources = account(path, described, out)
    if form != "csv":
        assert sources is not None
        assert sources[0].rows == len(rows) + 1


@pytest.mark.parametrize("number", range(EXAMPLES // 4))
def test_damaged_bytes_are_refused_or_accounted_for(
    number: int, described: TokenizeSettings, tmp_path: Path
) -> None:
    draw = random.Random(number)
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"问 {i}"},
                {"role": "assistant", "content": f"答 {i}" * draw.randrange(9)},
            ]
        }
        for i in range(12)
    ]
    text = (
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if number % 2
        else json.dumps(rows, ensure_ascii=False)
    )
    data = bytearray(text.encode())
    for _ in range(draw.randrange(1, 5)):
        at = draw.randrange(max(1, len(data)))
        match draw.randrange(5):
            case 0:
                data[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                del data[at : at + draw.randrange(1, 60)]
            case 2:
                data[at:at] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 4)))
            case 3:
                data[at:at] = draw.choice(
                    [b"\n", b"\r\n", b"\xef\xbb\xbf", b"[", b"]", b"{", b'"', b"\x00", b"\xff\xfe"]
                )
            case _:
                del data[max(1, at) :]
    path = tmp_path / draw.choice(["rows.jsonl", "rows.json", "rows"])
    path.write_bytes(bytes(data))
    account(path, described, tmp_path)
