import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tuner.data import chat, tokens
from tuner.errors import DataError
from tuner.schema import Chat, Config, Data, Model
from tuner.stage import Context, Input, View
from tuner.stages import fetch_data, tokenize

ROOT = Path(__file__).parents[2]
SMOLLM2 = ROOT / ".." / "shared" / "tokenizers" / "smollm2"
Run = Callable[..., tuple[dict[str, Any], dict[str, Any], Path]]


def chatml() -> Chat:
    fields = yaml.safe_load((ROOT / "conf" / "model" / "chat" / "chatml.yaml").read_text(encoding="utf-8"))
    return Chat(**{**fields, "special": tuple(fields["special"])})


def row(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def rows(file: Path, *values: Any) -> Path:
    file.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    return file


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Fetch and tokenize; gives facts, ledger and the directory."""
    if not SMOLLM2.is_dir():
        pytest.skip("no ../shared beside the repository")

    def go(*files: Path, **fields: Any) -> tuple[dict[str, Any], dict[str, Any], Path]:
        out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        out.mkdir()
        config = Config(model=Model(chat=chatml()), data=Data(**{"path": tuple(map(str, files)), "length": 64, **fields}))
        fetched = fetch_data.files(View(config, "fetch_data"))
        fetch_data.run(Context(config=View(config, "fetch_data"), inputs={}, out=out, say=print))
        view = View(config, "tokenize")
        tokenize.check(view)
        inputs = {"fetch_data": Input(dir=tmp_path, files=fetched, facts={}), "fetch_model": Input(dir=SMOLLM2, files={}, facts={})}
        facts = tokenize.run(Context(config=view, inputs=inputs, out=out, say=print))
        return facts, json.loads((out / "ledger.json").read_text(encoding="utf-8")), out

    return go


def test_the_persona_set_becomes_packs(run: Run) -> None:
    option = yaml.safe_load((ROOT / "conf" / "data" / "persona.yaml").read_text(encoding="utf-8"))
    facts, ledger, out = run(**option)
    packs = list(tokens.Packs.open(out / "train.arrow"))
    assert len(packs) == facts["packs"] == ledger["train"]["packs"]
    assert sum(len(pack.ids) for pack in packs) == facts["tokens"]
    assert sum(int(pack.trained.sum()) for pack in packs) == facts["trained_tokens"]
    assert facts["efficiency"] > 0.9
    for pack in packs:
        assert len(pack.ids) == len(pack.trained) == pack.lengths.sum() <= option["length"]
        starts = pack.lengths.cumsum() - pack.lengths
        assert not pack.trained[starts].any()
    lines = [line for name in ("train", "held_out") for pack in tokens.Packs.open(out / f"{name}.arrow") for line in pack.lines.tolist()]
    assert sorted(lines) == list(range(1, ledger["sources"][0]["rows"] + 1))


def test_twice_gives_the_same_bytes(run: Run, tmp_path: Path) -> None:
    file = rows(tmp_path / "a.jsonl", *(row(f"question {i}", f"answer {i}") for i in range(50)))
    first, again, other = (run(file, seed=seed)[2] for seed in (0, 0, 1))
    for name in ("train.arrow", "held_out.arrow", "ledger.json"):
        assert (first / name).read_bytes() == (again / name).read_bytes()
    assert (first / "held_out.arrow").read_bytes() != (other / "held_out.arrow").read_bytes()


def test_the_ledger_tells_every_fate(run: Run, tmp_path: Path) -> None:
    a = rows(tmp_path / "a.jsonl", row("q", "a"), row("q", ""), row("q", "long " * 100), row("long " * 100, "a"))
    b = rows(tmp_path / "b.jsonl", *[row("q", " ")] * 12, row("q", "b"))
    facts, ledger, _ = run(a, b, held_out=0.0)
    silent = "no assistant turn with text is trained"
    assert ledger["sources"] == [
        {
            "file": "0000-a.jsonl",
            "rows": 4,
            "kept": 2,
            "truncated": 1,
            "held_out": 0,
            "dropped": {silent: {"rows": 1, "first": [2]}, "no trained token within data.length": {"rows": 1, "first": [4]}},
        },
        {
            "file": "0001-b.jsonl",
            "rows": 13,
            "kept": 1,
            "truncated": 0,
            "held_out": 0,
            "dropped": {silent: {"rows": 12, "first": list(range(1, 11))}},
        },
    ]
    assert ledger["held_out"] == {"packs": 0, "documents": 0, "tokens": 0, "trained_tokens": 0, "efficiency": None}
    assert facts["held_out_tokens"] == 0


def test_overlong_conversations(run: Run, tmp_path: Path) -> None:
    file = rows(tmp_path / "a.jsonl", row("q", "a"), row("q", "long " * 100), row("q", "b"))
    assert run(file, overlong="truncate")[1]["sources"][0]["truncated"] == 1
    assert run(file, overlong="drop")[1]["sources"][0]["dropped"] == {"longer than data.length": {"rows": 1, "first": [2]}}
    with pytest.raises(DataError, match=r"(?s)1 conversations are longer than data\.length=64.*a\.jsonl:2: \d+ tokens"):
        run(file, overlong="error")
    with pytest.raises(DataError, match=r"all 3 rows were left out \(longer than data\.length\)"):
        run(file, overlong="drop", length=4)


def test_held_out_conversations_are_not_trained_on(run: Run, tmp_path: Path) -> None:
    file = rows(tmp_path / "a.jsonl", *(row(f"question {i}", f"answer {i}") for i in range(40)))
    _, ledger, out = run(file, held_out=0.1)
    lines = {name: {line for pack in tokens.Packs.open(out / f"{name}.arrow") for line in pack.lines.tolist()} for name in ("train", "held_out")}
    assert len(lines["held_out"]) == ledger["sources"][0]["held_out"] == ledger["held_out"]["documents"] == 4
    assert lines["train"] | lines["held_out"] == set(range(1, 41))
    assert run(rows(tmp_path / "b.jsonl", row("q", "a")), held_out=0.5)[1]["held_out"]["documents"] == 0


def test_system_prompts_and_words_reach_the_tokens(run: Run, tmp_path: Path) -> None:
    file = rows(tmp_path / "a.jsonl", row("who?", "I'm {{name}}."))
    _, _, out = run(file, fill={"name": "Tuna"}, system="Be kind.", held_out=0.0)
    [pack] = tokens.Packs.open(out / "train.arrow")
    text = chat.load_tokenizer(SMOLLM2).decode(pack.ids.tolist(), skip_special_tokens=False)
    assert text == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nwho?<|im_end|>\n<|im_start|>assistant\nI'm Tuna.<|im_end|>\n"
    with pytest.raises(DataError, match=r"a\.jsonl:1: the text has the place \{\{name\}\}"):
        run(file, fill={"maker": "us"})


@pytest.mark.parametrize(
    ("values", "words"), [((), "found no rows"), ((row("q", ""), [{"role": "user", "content": "q"}]), "found 2 rows, and no assistant turn")]
)
def test_a_set_without_answers_is_refused(run: Run, tmp_path: Path, values: tuple[Any, ...], words: str) -> None:
    with pytest.raises(DataError, match=words):
        run(rows(tmp_path / "a.jsonl", *values))


def test_a_model_without_tokenizer_is_refused_early(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no tokenizer\.json"):
        tokenize.check(View(Config(model=Model(path=str(tmp_path))), "tokenize"))


def test_versions_are_those_of_the_pieces() -> None:
    assert (tokenize.CHAT, tokenize.PACKS) == (chat.VERSION, tokens.VERSION)
    assert tokenize.versions(View(Config(data=Data(format="alpaca")), "tokenize")) == {"format.alpaca": 1, "chat": 1, "packing": 1, "packs": 1}
