"""Every file of real conversations beside the repository, as it is, through the whole stage."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPO, SHARED
from tuner.config.build import build_config
from tuner.config.view import View
from tuner.data.packs import Packs
from tuner.data.tokenizer.load import load_vocabulary
from tuner.pipeline.stage import Context, Input
from tuner.stages import tokenize

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared beside the repository")

FILES: dict[str, dict[str, Any]] = {
    "oasst/oasst_en_trees.jsonl": {},
    "oasst/oasst_en_messages.jsonl": {},
    "oasst/oasst1_val_turns.jsonl": {},
    "oasst/oasst1_guanaco.jsonl": {},
    "sharegpt/vicuna_identity.json": {},
    "sharegpt/glaive_toolcall_en.json": {},
    "sharegpt/glaive_toolcall_zh.json": {},
    "alpaca/alpaca_en.json": {},
    "alpaca/alpaca_zh.json": {},
    "alpaca/identity_template.json": {"fill": {"name": "Tuna", "author": "Tuner Labs"}},
    "alpaca/self_instruct_seed_tasks.jsonl": {
        "columns": {"input": "instances.0.input", "output": "instances.0.output"}
    },
    "messages/openai_multiturn.jsonl": {},
    "messages/openai_bare_lists.jsonl": {},
    "messages/reason_tool_parts.jsonl": {},
    "messages/openai_tools_en.jsonl": {},
    "pretrain/c4_demo.jsonl": {},
    "eval/gsm8k_train_1500.jsonl": {"columns": {"instruction": "question", "output": "answer"}},
}


def counts() -> dict[str, int]:
    """The rows that the table beside the files promises."""
    table = (SHARED / "data" / "README.md").read_text(encoding="utf-8")
    return {
        name: int(rows.replace(",", ""))
        for name, rows in re.findall(r"^\| `([^`]+)` \| ([\d,]+) \|", table, re.MULTILINE)
    }


def ledger_of(names: Sequence[str], out: Path, **data: Any) -> dict[str, Any]:
    chat = yaml.safe_load((REPO / "conf" / "model" / "chat" / "qwen3.yaml").read_text(encoding="utf-8"))
    files = {Path(name).name: SHARED / "data" / name for name in names}
    config = build_config(
        {
            "model": {"path": "-", "chat": chat},
            "data": {"path": [*map(str, files.values())], **data},
            "machine": {"workers": 1},
        }
    )
    found = {"fetch_data": Input(dir=SHARED, files=files, facts={})}
    found["fetch_model"] = Input(dir=SHARED / "tokenizers" / "qwen2_5", files={}, facts={})
    tokenize.run(Context(config=View(config, "tokenize"), inputs=found, out=out, say=print))
    ledger: dict[str, Any] = json.loads((out / "ledger.json").read_text(encoding="utf-8"))
    return ledger


@pytest.mark.parametrize("name", FILES)
def test_every_row_is_in_the_ledger(name: str, tmp_path: Path) -> None:
    ledger = ledger_of([name], tmp_path, **FILES[name])
    [source] = ledger["sources"]
    assert source["rows"] == counts()[name]
    assert source["rows"] == source["kept"] + sum(entry["rows"] for entry in source["dropped"].values())
    if name != "oasst/oasst_en_messages.jsonl":  # most of its rows are replies that are not the best
        assert source["kept"] >= 0.98 * source["rows"]
    for part in ("train", "held_out"):
        packs = list(Packs.open(tmp_path / f"{part}.arrow"))
        assert sum(len(pack.ids) for pack in packs) == ledger[part]["tokens"]
        assert sum(int(pack.trained.sum()) for pack in packs) == ledger[part]["trained_tokens"]
        assert sum(len(pack.lengths) for pack in packs) == ledger[part]["documents"]
    assert source["tokens"] == sum(ledger[part]["tokens"] for part in ("train", "held_out"))


TALK = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\nFour."},
    {"role": "user", "content": "And 3+3?"},
    {"role": "assistant", "reasoning_content": "Three and three.", "content": "Six."},
]
END, EMPTY = "<|im_end|>", "<think>\n\n</think>\n\n"
LAST = f"<think>\nThree and three.\n</think>\n\nSix.{END}"
FIRST = f"<think>\nTwo and two.\n</think>\n\nFour.{END}"


@pytest.mark.parametrize(
    ("mode", "trained", "hidden"),
    [
        ("last", [LAST], "Two and two."),
        ("every_turn", [FIRST, LAST], ""),
        ("keep", [FIRST + LAST], ""),
        ("strip", [f"Four.{END}Six.{END}"], "Three and three."),
    ],
)
def test_thoughts(mode: str, trained: list[str], hidden: str, tmp_path: Path) -> None:
    """Written as Qwen3 writes them: an answer whose thoughts are hidden is not trained, and neither is an
    empty block.
    """
    (tmp_path / "talk.jsonl").write_text(json.dumps({"messages": TALK}) + "\n", encoding="utf-8")
    ledger_of([str(tmp_path / "talk.jsonl")], tmp_path, reasoning=mode, held_out=0.0)
    [pack] = Packs.open(tmp_path / "train.arrow")
    decode = load_vocabulary(SHARED / "tokenizers" / "qwen2_5").tokenizer.decode
    ends = pack.lengths.cumsum().tolist()
    documents = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    assert sorted(
        decode(pack.ids[at][pack.trained[at]].tolist(), skip_special_tokens=False) for at in documents
    ) == sorted(trained)
    text = decode(pack.ids.tolist(), skip_special_tokens=False)
    assert not hidden or hidden not in text
    assert (EMPTY in text) == (mode == "strip")


@pytest.mark.parametrize(
    "names",
    [["oasst/oasst1_guanaco.jsonl"], ["alpaca/alpaca_en.json", "alpaca/alpaca_zh.json"]],
    ids=["guanaco", "alpaca"],
)
def test_packs_are_full(names: list[str], tmp_path: Path) -> None:
    train = ledger_of(names, tmp_path, held_out=0.0, length=2048)["train"]
    assert train["packs"] == -(-train["tokens"] // 2048), "no set of packs could be fuller"
    assert train["efficiency"] >= 0.99


@pytest.mark.parametrize(
    ("name", "data", "cut"),
    [
        ("sharegpt/glaive_toolcall_en.json", {"length": 512}, True),
        ("messages/openai_multiturn.jsonl", {"length": 512}, False),
        ("pretrain/c4_demo.jsonl", {"length": 256, "overlong": "truncate"}, False),
        ("pretrain/c4_demo.jsonl", {"length": 1024, "overlong": "drop"}, False),
    ],
)
def test_a_length_that_cuts_names_one_that_would_do(
    name: str, data: dict[str, Any], cut: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is said is tried: with the length that is named, the same data says no more."""
    found = re.compile(
        r"data\.length=(\d+) cuts ([\d,]+) of ([\d,]+) rows \([^)]*\)(, and calls of tools in [\d,]+ of"
        r" them)?; data\.length=(\d+) would hold all"
    )
    ledger = ledger_of([name], tmp_path, held_out=0.0, **data)
    said = found.search(capsys.readouterr().out)
    assert said
    assert (int(said[1]), int(said[2]), int(said[3])) == (
        data["length"],
        ledger["cut"]["rows"],
        ledger["cut"]["of_rows"],
    )
    assert bool(said[4]) == bool(ledger["cut"]["with_calls"]) == cut
    again = ledger_of([name], tmp_path, held_out=0.0, **data | {"length": int(said[5])})
    assert "cuts" not in capsys.readouterr().out
    assert again["cut"]["rows"] <= 0.01 * again["cut"]["of_rows"]
    assert not again["cut"]["with_calls"]


def test_texts_that_are_split_are_not_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = ledger_of(["pretrain/c4_demo.jsonl"], tmp_path, held_out=0.0, length=256)
    assert ledger["cut"]["rows"] == 0 < ledger["sources"][0]["split"]
    assert "cuts" not in capsys.readouterr().out
