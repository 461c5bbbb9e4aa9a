import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tuner.config.schema import Chat, Config, Data, DataSource, Machine, Model
from tuner.config.view import View
from tuner.data.chat.template import VERSION as CHAT
from tuner.data.packs import VERSION as PACKS
from tuner.data.packs import Packs
from tuner.data.tokenize.documents import VERSION as PREPARE
from tuner.data.tokenizer.load import load_vocabulary
from tuner.errors import DataError
from tuner.pipeline.stage import Context, Input
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
    file.write_text(
        "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8"
    )
    return file


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Fetch and tokenize; gives facts, ledger and the directory."""
    if not SMOLLM2.is_dir():
        pytest.skip("no ../shared beside the repository")

    def go(*files: Path, **fields: Any) -> tuple[dict[str, Any], dict[str, Any], Path]:
        out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        out.mkdir()
        workers = fields.pop("workers", 1)
        described = {"path": tuple(map(str, files)) or None, "length": 64, **fields}
        config = Config(model=Model(chat=chatml()), data=Data(**described), machine=Machine(workers=workers))
        fetched = fetch_data.local_files(View(config, "fetch_data"))
        fetch_data.run(Context(config=View(config, "fetch_data"), inputs={}, out=out, say=print))
        view = View(config, "tokenize")
        tokenize.check(view)
        inputs = {
            "fetch_data": Input(dir=tmp_path, files=fetched, facts={}),
            "fetch_model": Input(dir=SMOLLM2, files={}, facts={}),
        }
        facts = tokenize.run(Context(config=view, inputs=inputs, out=out, say=print))
        return facts, json.loads((out / "ledger.json").read_text(encoding="utf-8")), out

    return go


def test_the_persona_set_becomes_packs(run: Run) -> None:
    option = yaml.safe_load((ROOT / "conf" / "data" / "persona.yaml").read_text(encoding="utf-8"))
    facts, ledger, out = run(**option)
    packs = list(Packs.open(out / "train.arrow"))
    assert len(packs) == facts["packs"] == ledger["train"]["packs"]
    assert sum(len(pack.ids) for pack in packs) == facts["tokens"]
    assert sum(int(pack.trained.sum()) for pack in packs) == facts["trained_tokens"]
    assert facts["efficiency"] > 0.9
    for pack in packs:
        assert len(pack.ids) == len(pack.trained) == pack.lengths.sum() <= option["length"]
        starts = pack.lengths.cumsum() - pack.lengths
        assert not pack.trained[starts].any()
    lines = [
        line
        for name in ("train", "held_out")
        for pack in Packs.open(out / f"{name}.arrow")
        for line in pack.lines.tolist()
    ]
    assert sorted(lines) == list(range(1, ledger["sources"][0]["rows"] + 1))


def test_twice_gives_the_same_bytes(run: Run, tmp_path: Path) -> None:
    file = rows(tmp_path / "a.jsonl", *(row(f"question {i}", f"answer {i}") for i in range(50)))
    first, again, other = (run(file, seed=seed)[2] for seed in (0, 0, 1))
    for name in ("train.arrow", "held_out.arrow", "ledger.json"):
        assert (first / name).read_bytes() == (again / name).read_bytes()
    assert (first / "held_out.arrow").read_bytes() != (other / "held_out.arrow").read_bytes()


def test_the_ledger_tells_every_fate(run: Run, tmp_path: Path) -> None:
    a = rows(
        tmp_path / "a.jsonl", row("q", "a"), row("q", ""), row("q", "long " * 100), row("long " * 100, "a")
    )
    b = rows(tmp_path / "b.jsonl", *[row("q", " ")] * 12, row("q", "b"))
    facts, ledger, _ = run(a, b, held_out=0.0)
    silent = "no assistant turn with text is trained"
    first, second = ledger["sources"]
    assert {
        name: first[name]
        for name in ("file", "rows", "kept", "truncated", "split", "held_out", "documents", "dropped")
    } == {
        "file": "a.jsonl",
        "rows": 4,
        "kept": 2,
        "truncated": 1,
        "split": 0,
        "held_out": 0,
        "documents": 2,
        "dropped": {
            silent: {"rows": 1, "first": [2]},
            "no trained token within data.length": {"rows": 1, "first": [4]},
        },
    }
    assert (second["rows"], second["kept"], second["dropped"]) == (
        13,
        1,
        {silent: {"rows": 12, "first": list(range(1, 11))}},
    )
    assert first["tokens"] + second["tokens"] == facts["tokens"] == ledger["train"]["tokens"]
    assert first["trained_tokens"] + second["trained_tokens"] == facts["trained_tokens"]
    assert ledger["held_out"] == {
        "packs": 0,
        "documents": 0,
        "tokens": 0,
        "trained_tokens": 0,
        "efficiency": None,
    }
    assert facts["held_out_tokens"] == 0


def documents(out: Path, name: str = "train") -> list[tuple[int, str, str]]:
    """(line, text, trained text) of each document, in the order of the lines."""
    found = []
    for pack in Packs.open(out / f"{name}.arrow"):
        ends = pack.lengths.cumsum()
        for line, start, end in zip(pack.lines.tolist(), ends - pack.lengths, ends, strict=True):
            ids, trained = pack.ids[start:end], pack.trained[start:end]
            found.append((line, decode(ids.tolist()), decode(ids[trained].tolist())))
    return sorted(found)


def decode(ids: list[int]) -> str:
    text: str = smollm2().decode(ids, skip_special_tokens=False)
    return text


@cache
def smollm2() -> Any:
    return load_vocabulary(SMOLLM2).tokenizer


def test_overlong_conversations(run: Run, tmp_path: Path) -> None:
    file = rows(tmp_path / "a.jsonl", row("q", "a"), row("q", "long " * 100), row("q", "b"))
    assert run(file, overlong="auto", held_out=0.0)[1]["sources"][0]["truncated"] == 1
    assert run(file, overlong="drop")[1]["sources"][0]["dropped"] == {
        "longer than data.length": {"rows": 1, "first": [2]}
    }
    with pytest.raises(DataError, match=r"(?s)1 row is longer than data\.length=64 tokens.*a\.jsonl:2"):
        run(file, overlong="error")
    with pytest.raises(DataError, match=r"all 3 rows were left out \(longer than data\.length\)"):
        run(file, overlong="drop", length=4)


LONG = {
    "messages": [
        {"role": "system", "content": "Count."},
        *(
            turn
            for n in range(12)
            for turn in row(f"What comes after {n}?", f"After {n} comes {n + 1}.")["messages"]
        ),
    ]
}


def test_a_long_conversation_is_cut_where_an_answer_ends(run: Run, tmp_path: Path) -> None:
    [(_, text, trained)] = documents(run(rows(tmp_path / "a.jsonl", LONG), held_out=0.0)[2])
    assert text.endswith("<|im_end|>")
    assert 1 < trained.count("<|im_end|>") == text.count("assistant") < 12


def test_a_split_conversation_loses_no_answer(run: Run, tmp_path: Path) -> None:
    _, ledger, out = run(rows(tmp_path / "a.jsonl", LONG), held_out=0.0, overlong="split")
    found = documents(out)
    assert len(found) > 2
    assert all(
        text.startswith("<|im_start|>system\nCount.<|im_end|>") and text.count("system") == 1
        for _, text, _ in found
    )
    said = sorted(answer for _, _, trained in found for answer in trained.split("<|im_end|>") if answer)
    assert said == sorted(f"After {n} comes {n + 1}." for n in range(12))
    assert (
        ledger["sources"][0]["kept"],
        ledger["sources"][0]["split"],
        ledger["sources"][0]["documents"],
    ) == (1, 1, len(found))


def test_a_split_answer_keeps_all_its_tokens(run: Run, tmp_path: Path) -> None:
    words = " ".join(map(str, range(100)))
    found = documents(
        run(rows(tmp_path / "a.jsonl", row("q", words)), held_out=0.0, overlong="split", length=50)[2]
    )
    assert len(found) > 2
    assert "".join(text for _, text, _ in found).count("<|im_end|>") == 2
    assert all(len(text) > len(trained) for _, text, trained in found)


def test_a_plain_text_is_trained_whole_and_split(run: Run, tmp_path: Path) -> None:
    words = " ".join(map(str, range(100)))
    _, ledger, out = run(rows(tmp_path / "a.jsonl", {"text": words}, {"text": "short"}), held_out=0.0)
    found = documents(out)
    assert ledger["sources"][0]["split"] == 1
    assert next(trained for line, _, trained in found if line == 2).endswith("<|im_end|>")
    assert sum(len(trained) for line, _, trained in found if line == 1) > 0.9 * len(words)


def test_loss_on_the_last_answer_or_on_all(run: Run, tmp_path: Path) -> None:
    file = rows(
        tmp_path / "a.jsonl", {"messages": [*row("q", "one")["messages"], *row("r", "two")["messages"]]}
    )
    [(_, text, trained)] = documents(run(file, held_out=0.0)[2])
    assert trained == "one<|im_end|>two<|im_end|>"
    [(_, _, trained)] = documents(run(file, held_out=0.0, loss="last")[2])
    assert trained == "two<|im_end|>"
    [(_, _, trained)] = documents(run(file, held_out=0.0, loss="all")[2])
    assert trained == text.removeprefix("<|im_start|>")


def test_each_turn_as_a_sample(run: Run, tmp_path: Path) -> None:
    file = rows(
        tmp_path / "a.jsonl", {"messages": [*row("q", "one")["messages"], *row("r", "two")["messages"]]}
    )
    _, ledger, out = run(file, held_out=0.0, reasoning="every_turn")
    assert sorted(trained for _, _, trained in documents(out)) == ["one<|im_end|>", "two<|im_end|>"]
    assert (ledger["sources"][0]["kept"], ledger["sources"][0]["documents"]) == (1, 2)


def test_rows_are_drawn_by_number_and_by_share(run: Run, tmp_path: Path) -> None:
    file = rows(tmp_path / "a.jsonl", *(row(f"question {i}", f"answer {i}") for i in range(40)))
    lines = {
        take: [line for line, _, _ in documents(run(file, held_out=0.0, take=take)[2])]
        for take in (10, 0.25, 2.0, 1.0)
    }
    assert len(set(lines[10])) == 10
    assert lines[10] == lines[0.25]
    assert lines[1.0] == list(range(1, 41))
    assert lines[2.0] == sorted([*range(1, 41)] * 2)
    ledger = run(file, take=10)[1]["sources"][0]
    assert (ledger["rows"], ledger["kept"], ledger["dropped"]["not drawn (take)"]["rows"]) == (40, 10, 30)
    with pytest.raises(DataError, match="there are 40 rows, fewer than the 41 wanted"):
        run(file, take=41)


def test_a_mixture_takes_of_each_what_it_says(run: Run, tmp_path: Path) -> None:
    chats = rows(tmp_path / "chats.jsonl", *(row(f"question {i}", f"answer {i}") for i in range(20)))
    tasks = rows(tmp_path / "tasks.jsonl", *({"q": f"task {i}", "a": f"done {i}"} for i in range(20)))
    parts = (
        DataSource(label="chats", path=str(chats), take=0.5, system="Chat."),
        DataSource(
            label="tasks",
            path=str(tasks),
            take=5,
            format="alpaca",
            columns={"instruction": "q", "output": "a"},
        ),
    )
    _, ledger, out = run(parts=parts, held_out=0.0, system="All.")
    assert [(source["source"], source["rows"], source["kept"]) for source in ledger["sources"]] == [
        ("chats", 20, 10),
        ("tasks", 20, 5),
    ]
    found = documents(out)
    assert sum("Chat." in text and "answer" in text for _, text, _ in found) == 10
    assert sum("All." in text and "done" in text for _, text, _ in found) == 5


def test_what_is_not_read_of_a_mixture_is_named_for_each_source(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = rows(
        tmp_path / "a.jsonl",
        *({**row(f"question {i}", "answer"), "note": "do not do so", "id": f"i{i}"} for i in range(20)),
    )
    other = rows(
        tmp_path / "b.jsonl", *({**row(f"question {i}", "answer"), "id": f"i{i}"} for i in range(20))
    )
    parts = (
        DataSource(label="a", path=str(named), take=0.5),
        DataSource(label="b", path=str(other), leave="id"),
    )
    run(parts=parts)
    assert "a: not read: note, text in 10 of 10 rows; id in 10 of 10 rows\n" in (
        said := capsys.readouterr().out
    )
    assert "b: not read" not in said
    run(parts=parts, leave=("note", "id"), unread="error")
    assert "not read" not in capsys.readouterr().out
    with pytest.raises(DataError, match=r"no format reads note, and data\.unread=error refuses that"):
        run(parts=parts, leave="id", unread="error")


def test_a_file_of_its_own_is_held_out(run: Run, tmp_path: Path) -> None:
    file = rows(
        tmp_path / "a.jsonl",
        *(row(f"question {i}", f"answer {i}") for i in range(10)),
        row("question 100", "answer 100"),
    )
    other = rows(tmp_path / "b.jsonl", *(row(f"question {i}", f"answer {i}") for i in range(100, 105)))
    _, ledger, out = run(file, held_out_path=str(other))
    assert ledger["held_out"]["documents"] == 6, "the row that is in both files is not trained on"
    assert not {text for _, text, _ in documents(out)} & {text for _, text, _ in documents(out, "held_out")}


def test_duplicates_never_stand_on_both_sides(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = rows(tmp_path / "a.jsonl", *(row(f"question {i % 20}", f"answer {i % 20}") for i in range(60)))
    _, ledger, out = run(file, held_out=0.2)
    assert ledger["sources"][0]["duplicates"] == 40
    assert not {text for _, text, _ in documents(out)} & {text for _, text, _ in documents(out, "held_out")}
    assert ledger["held_out"]["documents"] == 12  # 4 of 20, three times each
    assert (
        ledger["held_out"]["rows"],
        ledger["held_out"]["contents"],
        ledger["held_out"]["of_contents"],
    ) == (12, 4, 20)
    said = capsys.readouterr().out
    assert "held out: 12 of 60 rows (4 of 20 that differ); a loss stands on " in said
    assert (
        "12 of 60 rows are held out and not trained on; data.held_out=0 trains on all 60, and measures no "
        "loss" in said
    )
    assert ledger["held_out"]["cost"] in said
    _, ledger, out = run(file, held_out=0.0, duplicates="drop")
    assert [line for line, _, _ in documents(out)] == list(range(1, 21))
    assert ledger["sources"][0]["dropped"] == {
        "the same tokens as a row before": {"rows": 40, "first": list(range(21, 31))}
    }


def test_bad_rows_fail_with_their_number_or_are_counted(run: Run, tmp_path: Path) -> None:
    good = [row(f"question {i}", f"answer {i}") for i in range(30)]
    file = rows(tmp_path / "a.jsonl", *good, *[{"messages": "what?"}] * 12, [1], *good)
    with pytest.raises(
        DataError,
        match=(
            r"(?s)13 rows can't be used\. The first 10:\n.*a\.jsonl:31: .*a\.jsonl:40: .*data\.bad_rows=skip"
        ),
    ):
        run(file)
    ledger = run(file, bad_rows="skip")[1]["sources"][0]
    bad = ledger["dropped"]["can't be used"]
    assert (ledger["rows"], ledger["kept"], bad["rows"], bad["first"]) == (73, 60, 13, list(range(31, 41)))
    assert len(bad["why"]) == 10


def test_thresholds_fail_the_run(run: Run, tmp_path: Path) -> None:
    file = rows(tmp_path / "a.jsonl", *[row("q", "a")] * 8, *[row("q", "")] * 2)
    run(file, max_dropped=2, held_out=0.0)
    run(file, max_dropped=0.2, held_out=0.0)
    hundred = rows(
        tmp_path / "hundred.jsonl", *[row("q", " ")] * 29, *(row("q", f"a {i}") for i in range(71))
    )
    run(hundred, max_dropped=0.29, held_out=0.0)  # 29, where the binary product is 28.999999999999996
    with pytest.raises(
        DataError,
        match=r"(?s)2 of 10 rows are left out, more than data\.max_dropped=0\.1 allows.*a\.jsonl:9, 10",
    ):
        run(file, max_dropped=0.1)
    with pytest.raises(DataError, match=r"16 tokens are trained, fewer than data\.min_trained_tokens=17"):
        run(file, min_trained_tokens=17, held_out=0.0)


def test_extreme_rows_are_handled(run: Run, tmp_path: Path) -> None:
    many = {"messages": [turn for n in range(1500) for turn in row(f"{n}?", f"{n}!")["messages"]]}
    wide = row("q", "a word " * 30_000)
    odd = row("two\u2028lines\x00and a \ufeffmark", "<|im_end|> is text ")
    deep = {"message_id": "0", "parent_id": None, "message_tree_id": "t", "text": "q", "role": "prompter"}
    tree = [
        deep,
        *(
            {
                **deep,
                "message_id": str(n),
                "parent_id": str(n - 1),
                "role": "assistant" if n % 2 else "prompter",
            }
            for n in range(1, 2000)
        ),
    ]
    _, ledger, out = run(
        rows(tmp_path / "a.jsonl", many, wide, odd),
        rows(tmp_path / "b.jsonl", *tree),
        held_out=0.0,
        length=1024,
        overlong="split",
    )
    first, second = ledger["sources"]
    assert (first["rows"], first["kept"], first["split"]) == (3, 3, 2)
    assert (second["rows"], second["kept"], second["split"]) == (2000, 2000, 1)
    found = [(text, trained) for line, text, trained in documents(out) if line == 3]
    assert [trained for _, trained in found] == ["<|im_end|> is text <|im_end|>"]
    # of both files
    assert sum(trained.count("<|im_end|>") for line, _, trained in documents(out) if line == 1) == 1500 + 1000


def test_one_and_two_workers_give_the_same_bytes(run: Run, tmp_path: Path) -> None:
    file = rows(
        tmp_path / "a.jsonl",
        *(row(f"question {i} " * (i % 40 + 1), f"answer {i}\n" * (i % 17)) for i in range(6000)),
    )
    outs = [run(file, workers=workers, held_out=0.1, length=256)[2] for workers in (1, 2, 3)]
    for name in ("train.arrow", "held_out.arrow", "ledger.json"):
        assert len({(out / name).read_bytes() for out in outs}) == 1


def test_held_out_conversations_are_not_trained_on(run: Run, tmp_path: Path) -> None:
    file = rows(tmp_path / "a.jsonl", *(row(f"question {i}", f"answer {i}") for i in range(40)))
    _, ledger, out = run(file, held_out=0.1)
    lines = {
        name: {line for pack in Packs.open(out / f"{name}.arrow") for line in pack.lines.tolist()}
        for name in ("train", "held_out")
    }
    assert len(lines["held_out"]) == ledger["sources"][0]["held_out"] == ledger["held_out"]["documents"] == 4
    assert lines["train"] | lines["held_out"] == set(range(1, 41))
    assert run(rows(tmp_path / "b.jsonl", row("q", "a")), held_out=0.5)[1]["held_out"]["documents"] == 0


def test_system_prompts_and_words_reach_the_tokens(run: Run, tmp_path: Path) -> None:
    file = rows(tmp_path / "a.jsonl", row("who?", "I'm {{name}}."))
    _, _, out = run(file, fill={"name": "Tuna"}, system="Be kind.", held_out=0.0)
    [pack] = Packs.open(out / "train.arrow")
    text = decode(pack.ids.tolist())
    assert (
        text == "<|im_start|>system\nBe"
        " kind.<|im_end|>\n<|im_start|>user\nwho?<|im_end|>\n<|im_start|>assistant\nI'm Tuna.<|im_end|>\n"
    )
    with pytest.raises(DataError, match=r"a\.jsonl:1: the text has the place \{\{name\}\}"):
        run(file, fill={"maker": "us"})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((), "found no rows"),
        ((row("q", ""), [{"role": "user", "content": "q"}]), "found 2 rows, and no assistant turn"),
    ],
)
def test_a_set_without_answers_is_refused(
    run: Run, tmp_path: Path, values: tuple[Any, ...], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        run(rows(tmp_path / "a.jsonl", *values))


def test_a_model_without_tokenizer_is_refused_early(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no tokenizer\.json"):
        tokenize.check(View(Config(model=Model(path=str(tmp_path))), "tokenize"))


def test_versions_are_those_of_the_pieces() -> None:
    assert (tokenize.CHAT, tokenize.PACKS, tokenize.PREPARE) == (CHAT, PACKS, PREPARE)
    names = {"format.alpaca", "chat", "packing", "packs", "prepare"}
    assert tokenize.versions(View(Config(data=Data(format="alpaca")), "tokenize")).keys() == names
    mixed = Data(parts=(DataSource(format="alpaca"), DataSource(format="text")))
    assert tokenize.versions(View(Config(data=mixed), "tokenize")).keys() == names | {"format.text"}
