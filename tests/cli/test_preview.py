"""Rows as the model will see them: the very documents of the packs, and nothing of the data that reaches
the terminal unseen.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pexpect
import pytest

from tests.conftest import ROWS, Tuner, environment, linked, write_rows
from tests.models.tiny import CHATML
from tuner.cli.preview_rows import preview
from tuner.cli.row_ranges import parse_row_ranges
from tuner.config.schema import Config, Data, DataSource, Machine, Model
from tuner.config.view import View
from tuner.data.packs import Packs
from tuner.data.sources import plain_names, sources_of
from tuner.data.tokenize.settings import listed_files, settings_of
from tuner.errors import ConfigError, DataError
from tuner.pipeline.stage import Context, Input
from tuner.stages import fetch_data, tokenize

Show = Callable[..., str]


def row(*texts: str, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant") * len(texts)
    return {
        "messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)],
        **more,
    }


LONG = row(*(f"{'What comes after' if n % 2 == 0 else 'It is'} {n}?" for n in range(16)))
MANY = [
    row("Hi", "Hello! 你好 🙂"),
    LONG,
    row("q", "long " * 60),
    row("q", ""),
    row("long " * 60, "a"),
    row("again", "and", "again", "twice"),
]
TREE = [
    {"message_id": "1", "parent_id": None, "message_tree_id": "1", "role": "prompter", "text": "q"},
    {
        "message_id": "2",
        "parent_id": "1",
        "message_tree_id": "1",
        "role": "assistant",
        "text": "worse",
        "rank": 1,
    },
    {
        "message_id": "3",
        "parent_id": "1",
        "message_tree_id": "1",
        "role": "assistant",
        "text": "better",
        "rank": 0,
    },
]


def written(file: Path, *values: Any) -> Path:
    write_rows(file, list(values))
    return file


def config_of(file: Path | None, **fields: Any) -> Config:
    return Config(
        model=Model(chat=CHATML),
        data=Data(**{"path": str(file) if file else None, "length": 64, **fields}),
        machine=Machine(workers=1),
    )


@pytest.fixture
def show(tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Show:
    """What `preview` prints; words are the rows, and its flags."""
    monkeypatch.delenv("FORCE_COLOR", raising=False)

    def call(config: Config, *words: str) -> str:
        view = View(config, "tokenize")
        flags = {word for word in words if word.startswith("-")}
        capsys.readouterr()
        done = preview(
            settings_of(view, tiny_model),
            listed_files(view, fetch_data.local_files(View(config, "fetch_data")), {}),
            parse_row_ranges([word for word in words if word not in flags]),
            takes=[part.take for part in sources_of(view)],
            seed=view.data.seed,
            skip=view.data.bad_rows == "skip",
            flags=flags,
        )
        assert done == 0
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output root in which the model is looked at once."""
    return tmp_path_factory.mktemp("root") / "outputs"


def objects(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def packed(out: Path, names: list[str]) -> Counter[Any]:
    """(file, line, ids, labels) of each document in the packs of an artifact."""
    found: Counter[Any] = Counter()
    for name in ("train", "held_out"):
        for pack in Packs.open(out / f"{name}.arrow"):
            ends = pack.lengths.cumsum().tolist()
            for file, line, start, end in zip(
                pack.files.tolist(), pack.lines.tolist(), [0, *ends], ends, strict=False
            ):
                ids = pack.ids[start:end].tolist()
                trained = pack.trained[start:end].tolist()
                found[
                    names[file],
                    line,
                    tuple(ids),
                    tuple(i if t else -100 for i, t in zip(ids, trained, strict=True)),
                ] += 1
    return found


def previewed(values: list[dict[str, Any]]) -> Counter[Any]:
    found: Counter[Any] = Counter()
    for value in values:
        if not value["left_out"]:
            found[value["file"], value["line"], tuple(value["ids"]), tuple(value["labels"])] += value["times"]
    return found


CASES: dict[str, dict[str, Any]] = {
    "truncated": {},
    "split": {"overlong": "split"},
    "dropped": {"overlong": "drop"},
    "every turn": {"reasoning": "every_turn"},
    "every turn, split": {"reasoning": "every_turn", "overlong": "split"},
    "last": {"loss": "last"},
    "all": {"loss": "all", "overlong": "split"},
    "drawn": {"take": 2.5},
    "fewer": {"take": 5},
    "system": {"system": "Be kind."},
}


@pytest.mark.parametrize("fields", CASES.values(), ids=CASES.keys())
def test_the_documents_are_those_of_the_packs(
    show: Show, tiny_model: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    check_against_packs(
        show,
        tiny_model,
        tmp_path,
        config_of(written(tmp_path / "a.jsonl", *MANY, {"text": "plain " * 40}, *ROWS[:5]), **fields),
    )


def test_the_documents_of_a_mixture_are_those_of_the_packs(
    show: Show, tiny_model: Path, tmp_path: Path
) -> None:
    written(tmp_path / "one.jsonl", *MANY)
    written(
        tmp_path / "two.jsonl",
        *TREE,
        {"messages": "?"},
        *({"q": f"task {n}", "a": f"done {n}"} for n in range(10)),
    )
    written(tmp_path / "apart.jsonl", row("held", "out"))
    parts = (
        DataSource(label="chats", path=str(tmp_path / "one.jsonl"), take=2.0),
        DataSource(
            label="tasks",
            path=str(tmp_path / "two.jsonl"),
            take=7,
            columns={"instruction": "q", "output": "a"},
            system="Do it.",
        ),
    )
    config = config_of(None, parts=parts, held_out_path=str(tmp_path / "apart.jsonl"), bad_rows="skip")
    values = check_against_packs(show, tiny_model, tmp_path, config)
    assert {value["source"] for value in values} == {"chats", "tasks"}
    assert {value["file"] for value in values} == {"one.jsonl", "two.jsonl", "apart.jsonl"}


def check_against_packs(show: Show, model: Path, tmp_path: Path, config: Config) -> list[dict[str, Any]]:
    files = fetch_data.local_files(View(config, "fetch_data"))
    out = tmp_path / "out"
    out.mkdir()
    inputs = {
        "fetch_data": Input(dir=tmp_path, files=files, facts={}),
        "fetch_model": Input(dir=model, files={}, facts={}),
    }
    tokenize.run(Context(config=View(config, "tokenize"), inputs=inputs, out=out, say=print))
    values = objects(show(config, "1-1000", "--json"))
    ledger = json.loads((out / "ledger.json").read_text(encoding="utf-8"))["sources"]
    assert previewed(values) == packed(out, list(plain_names(sorted(files)).values()))
    lost: Counter[Any] = Counter()
    for value in values:
        whole = not any(
            other["file"] == value["file"] and other["line"] == value["line"] and not other["left_out"]
            for other in values
        )
        if value["left_out"] and whole and value["sample"] == 1:
            lost[value["file"], value["left_out"].split(": ")[0]] += 1
    assert lost == Counter(
        {
            (source["file"], reason): entry["rows"]
            for source in ledger
            for reason, entry in source["dropped"].items()
        }
    )
    assert any(value["truncated"] for value in values) == any(source["truncated"] for source in ledger)
    return values


def test_through_the_front_door_it_shows_what_is_trained_and_trains_nothing(
    tuner: Tuner, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    words = ["model=local", f"model.path={tiny_model}", "data=local", f"data.path={data}", "data.length=64"]
    first = tuner("preview", *words)
    assert re.findall(r"^── (.+?) · ", first.out, re.MULTILINE) == [
        f"{data.name}:{line}" for line in (1, 2, 3)
    ]
    text = (
        "<|im_start|>user\nWhat is 0 plus 0?<|im_end|>\n<|im_start|>assistant\n⟦0 plus 0 is 0.<|im_end|>⟧\n"
    )
    assert text in first.out
    outputs = tmp_path / "outputs"
    assert not (outputs / "runs").exists()  # it is a look
    assert not list((outputs / "store" / ".refs").iterdir())
    assert re.match(rf"── {re.escape(data.name)}:1 · \d+ tokens, \d+ trained\n", first.out)
    assert "what stands between ⟦ and ⟧ is trained" in first.err
    tuner("until=tokenize", *words)
    values = objects(tuner("preview", *words, "1-40", "--json").out)
    assert len(values) == len(ROWS)
    assert previewed(values) == packed(linked(outputs, "tokenize"), [data.name])
    (run,) = (outputs / "runs").iterdir()
    log = (run / "log").read_bytes()
    (tmp_path / "mine.yaml").write_text(
        f"model: {{path: '{tiny_model}'}}\ndata: {{path: '{data}'}}\n", encoding="utf-8"
    )
    assert (
        "再见。<|im_end|>⟧"
        in tuner("preview", "mine.yaml", "model=local", "data=local", "data.length=64", "40").out
    )
    assert [*(outputs / "runs").iterdir()] == [run]
    assert (run / "log").read_bytes() == log
    assert "train" not in {link.name for link in run.iterdir()}


def test_nothing_of_torch_is_imported(
    tiny_model: Path, data: Path, tuner: Tuner, tmp_path: Path, root: Path
) -> None:
    words = [
        "preview",
        f"root={root}",
        "model=local",
        f"model.path={tiny_model}",
        "data=local",
        f"data.path={data}",
    ]
    tuner(*words)
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['torch'] = sys.modules['transformers'] = None\n", encoding="utf-8"
    )
    assert "⟦" in tuner(*words, env={"PYTHONPATH": str(tmp_path)}).out


@pytest.fixture
def nasty(tmp_path: Path) -> Path:
    return written(
        tmp_path / "nasty.jsonl",
        row("\x1b[2J\x1b]0;owned\x07\x9b31m\u202e<|im_end|>", "\x1b[31mred\u200b\r\n🙂"),
        {"messages": "\x1b[2J\u202e"},
    )


def on_terminal(tiny_model: Path, data: Path, root: Path, *words: str, **env: str) -> str:
    command = [
        "-m",
        "tuner",
        "preview",
        f"root={root}",
        "model=local",
        f"model.path={tiny_model}",
        "data=local",
        f"data.path={data}",
        *words,
    ]
    settings = {
        name: value
        for name, value in environment({"TERM": "xterm-256color", **env}).items()
        if name != "FORCE_COLOR"
    }
    settings = {name: value for name, value in settings.items() if name != "NO_COLOR" or name in env}
    child = pexpect.spawn(
        sys.executable, command, env=settings, encoding="utf-8", timeout=120, dimensions=(40, 200)
    )  # type: ignore[arg-type]
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    return str(child.before)


def test_on_a_terminal_what_is_trained_is_green_and_the_data_commands_nothing(
    tiny_model: Path, nasty: Path, root: Path
) -> None:
    for flags in ((), ("--ids",)):
        screen = on_terminal(tiny_model, nasty, root, *flags)
        assert "green is trained" in screen
        assert "\x1b[32mr\x1b[0m" in screen
        assert "\x1b[7;32m\\x1b\x1b[0m" in screen
        assert "⟦" not in screen
        screen = re.sub(r"\x1b\[(\?25[lh]|2K|1A)", "", screen)  # of the spinner while a stage starts
        assert not re.search(r"\x1b(?!\[[\d;]*m)", screen), "only colours reach the terminal"
        assert not re.search(r"\x1b\[31m|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f\u200b\u202e]", screen)


def test_without_colours_it_is_marked(tiny_model: Path, nasty: Path, root: Path) -> None:
    screen = on_terminal(tiny_model, nasty, root, NO_COLOR="1")
    assert "⟦\\x1b[31mred\\u200b\\r\r\n🙂<|im_end|>⟧" in screen
    assert "user\r\n\\x1b[2J\\x1b]0;owned\\x07\\x9b31m\\u202e<\\|im_end|><|im_end|>\r\n" in screen
    assert "fails the run: can't be used" in screen
    assert "\x1b" not in screen


def test_as_json_it_is_printable_ascii(show: Show, nasty: Path) -> None:
    out = show(config_of(nasty, length=200), "--json")
    assert re.fullmatch(r"[\x20-\x7e\n]+", out)
    good, bad = objects(out)
    assert "\u202e<|im_end|>" in good["text"]
    assert good["truncated"] is False
    assert good["left_out"] is None
    assert bad["line"] == 2
    assert bad["left_out"].startswith("can't be used: ")
    assert bad["ids"] == bad["labels"] == []


def test_rows_are_named_by_number_range_file_and_source(show: Show, tmp_path: Path) -> None:
    for name in ("a", "b"):
        written(tmp_path / f"{name}.jsonl", *(row(f"{name}{n}", "yes") for n in range(1, 3001)))
    config = config_of(tmp_path / "*.jsonl")

    def shown(*words: str) -> list[str]:
        return [f"{value['file'][0]}{value['line']}" for value in objects(show(config, *words, "--json"))]

    assert shown() == ["a1", "a2", "a3"]
    assert shown("2", "2990-2991") == ["a2", "a2990", "a2991", "b2", "b2990", "b2991"]
    assert shown("b.jsonl:7", f"{tmp_path}/a.jsonl:3", "b.jsonl:5-6") == ["a3", "b5", "b6", "b7"]
    parts = tuple(DataSource(label=name, path=str(tmp_path / f"{name}.jsonl")) for name in ("a", "b"))
    mixed = config_of(None, parts=parts)
    assert [(v["source"], v["line"]) for v in objects(show(mixed, "--json"))] == [
        (name, n) for name in ("a", "b") for n in (1, 2, 3)
    ]
    assert [(v["source"], v["line"]) for v in objects(show(mixed, "b:9", "--json"))] == [("b", 9)]
    assert "── b · b.jsonl:9 · " in show(mixed, "b:9")
    with pytest.raises(ConfigError, match="'9-3' is not a row"):
        show(config, "9-3")
    with pytest.raises(ConfigError, match=r"3001: the data has no such row"):
        show(config, "1", "3001")
    with pytest.raises(
        ConfigError,
        match=r"c:1: no file or source of the data is called c\. There are: a, a\.jsonl, b, b\.jsonl",
    ):
        show(mixed, "c:1")


@pytest.mark.parametrize("word", ["0", "-", "x", "a.jsonl", "1-", "1.5", ":3"])
def test_other_words_name_no_row(word: str) -> None:
    with pytest.raises(ConfigError, match="is not a row"):
        parse_row_ranges([word])


def test_a_truncation_shows_where_it_fell_and_what_follows(show: Show, tmp_path: Path) -> None:
    out = show(config_of(written(tmp_path / "a.jsonl", LONG)))
    (value,) = objects(show(config_of(tmp_path / "a.jsonl"), "--json"))
    assert value["truncated"]
    kept, _, left = out.partition(f"— cut here at {len(value['ids'])} of ")
    assert re.match(r"[\d,]+ tokens —\n", left)
    assert "⟦It is 1?<|im_end|>⟧\n" in kept
    assert "⟦" not in left
    assert "What comes after" in left
    assert left.rstrip().endswith(" …")
    assert "It is 15?" not in left
    assert "It is 15?" in show(config_of(tmp_path / "a.jsonl"), "--all")


def test_parts_and_samples_are_numbered(show: Show, tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", LONG)
    out = show(config_of(file, overlong="split"), "--all")
    (first, *_), count = re.findall(r"part 1 of (\d)", out), out.count("── ")
    assert int(first) == count == 8
    assert "— 4 more of this row; --all shows them —" in show(config_of(file, overlong="split"))
    out = show(config_of(written(tmp_path / "b.jsonl", MANY[-1]), reasoning="every_turn"))
    assert [re.search(r"sample \d of 2", head)[0] for head in re.findall(r"^── .*", out, re.MULTILINE)] == [
        "sample 1 of 2",
        "sample 2 of 2",
    ]  # type: ignore[index]


def test_rows_that_are_left_out_say_why(show: Show, tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", *MANY[3:5], {"x": "1"}, row("long", "long " * 60), row("a", "b"))
    out = show(config_of(file), "1-3")
    assert "── a.jsonl:1 · left out: no assistant turn with text is trained\n" in out
    assert re.search(
        r"── a\.jsonl:2 · \d+ tokens · left out: no trained token within"
        r" data\.length\n<\|im_start\|>user\nlong long",
        out,
    )
    assert "── a.jsonl:3 · fails the run: can't be used: no known format has these keys" in out
    assert '{"x": "1"}' in out
    assert "a.jsonl:3 · left out: can't be used: " in show(config_of(file, bad_rows="skip"), "3")
    assert re.search(
        r"a\.jsonl:4 · \d+ tokens · left out: longer than data\.length\n",
        show(config_of(file, overlong="drop"), "4"),
    )
    assert re.search(
        r"a\.jsonl:4 · \d+ tokens · fails the run: longer than data\.length\n",
        show(config_of(file, overlong="error"), "4"),
    )
    drawn = [show(config_of(file, take=1, bad_rows="skip"), str(n)) for n in (1, 2, 3, 4, 5)]
    assert sum("left out: not drawn (take)" in out for out in drawn) == 4
    assert "drawn 3 times" in show(config_of(file, take=3.0), "5")
    with pytest.raises(DataError, match="there are 5 rows, fewer than the 6 wanted"):
        show(config_of(file, take=6))


def test_a_tree_is_one_conversation_of_several_rows(show: Show, tmp_path: Path) -> None:
    out = show(config_of(written(tmp_path / "a.jsonl", *TREE)), "3")
    assert "── a.jsonl:1 · of 3 rows · " in out
    assert "⟦better<|im_end|>⟧" in out
    assert "a.jsonl:2 (1 of 3 rows) · left out: " in out


def test_the_middle_of_a_long_document_is_left_out_unless_all_is_wished(show: Show, tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", row("q", "🙂你" * 2000))
    short, whole = (show(config_of(file, length=100_000), *flags) for flags in ((), ("--all",)))
    assert re.search(r"⟧\n— [\d,]+ tokens between, [\d,]+ of them trained; --all shows them —\n⟦", short)
    assert "\ufffd" not in short
    assert short.count("🙂") < 200
    assert whole.count("🙂你") == 2000


def test_rows_further_on_at_which_a_run_would_end_are_said(
    tuner: Tuner, tiny: list[str], tmp_path: Path
) -> None:
    good = [row(f"q{n}", "yes") for n in range(30)]
    bad = {12: {"messages": "no list"}, 17: {"messages": [{"role": "nobody", "content": "x"}]}}
    file = written(tmp_path / "later.jsonl", *(bad.get(n, value) for n, value in enumerate(good, 1)))
    words = [*tiny, f"data.path={file}"]
    looked = tuner("preview", *words)
    assert "q0" in looked.out
    assert "2 of 30 rows can't be used, and a run ends there; data.bad_rows=skip leaves" in looked.err
    ended = tuner(*words, "until=tokenize", code=2).err
    for line in bad:
        (why,) = re.findall(rf"later\.jsonl:{line}: .*", looked.err)
        assert why in ended
    assert "rows can't" not in tuner("preview", "2", *words).err  # who names rows looks at those
    skipping = tuner("preview", *words, "data.bad_rows=skip").err
    assert "2 of 30 rows are left out, as data.bad_rows=skip says" in skipping


def test_of_much_data_the_rows_are_only_read(
    show: Show, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.cli.preview_failures.WHOLE", 0)
    file = written(tmp_path / "a.jsonl", *[row("q", "a")] * 9, {"messages": 1}, *[{"messages": 2}] * 4)
    said: list[str] = []
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=said.append, flush=lambda: None))
    show(config_of(file))
    lines = "".join(said).splitlines()
    (at,) = [n for n, line in enumerate(lines) if line.startswith("5 of 14 rows can't be used, and a run")]
    assert [line.split(": ")[0] for line in lines[at + 1 : at + 4]] == [f"  {file}:{n}" for n in (10, 11, 12)]
    assert lines[at + 4] == "  and 2 more"
