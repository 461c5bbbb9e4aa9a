import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ROWS, Tuner, environment, linked, reasons, states
from tests.hub.server import Busy, Cut, Hold, Hub, Instead, jsonl
from tuner.config.schema import Config, Data, DataSource
from tuner.config.view import View
from tuner.data.sources import name_in_dataset, source_of_file
from tuner.errors import ConfigError, DataError
from tuner.hub import http
from tuner.pipeline.stage import Context
from tuner.stages import fetch_data

GOOD = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
SILENT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": ""}]}
LONG = jsonl(
    [
        *ROWS,
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "word " * 400_000}]},
    ]
)
"""2 MB"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            server.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(http, "PAUSES", (0.01, 0.01, 0.01, 0.01))
        yield server


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jsonl(rows or (GOOD,)))
    return path


def view(*, locked: bool = False, **fields: Any) -> View:
    return View(Config(data=Data(**fields), locked=locked), "fetch_data")


def names(**fields: Any) -> list[str]:
    return list(fetch_data.local_files(view(**fields)))


def run(out: Path, **fields: Any) -> dict[str, Any]:
    """As the pipeline does: what floats is looked up first."""
    out.mkdir(exist_ok=True)
    config = view(**fields)
    if None in fetch_data.find_pins(config).values():
        fetch_data.look_up(config, print)
    return fetch_data.run(Context(config=config, inputs={}, out=out, say=print))


def test_files_of_one_source_are_known_as_they_are_called(folder: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "p01-x.jsonl", "held_out-x.jsonl"):
        write(folder / name)
    assert names(path="a.jsonl") == ["a.jsonl"]
    assert names(path=("b.jsonl", "a.jsonl")) == ["0000-b.jsonl", "0001-a.jsonl"]
    assert names(path="p01-x.jsonl") == ["0000-p01-x.jsonl"]
    assert names(path="held_out-x.jsonl") == ["0000-held_out-x.jsonl"]
    assert all(source_of_file(name) == (0, False) for name in names(path="[ph]*.jsonl"))


def test_files_of_a_mixture_say_whose_they_are(folder: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "c.jsonl", "h.jsonl"):
        write(folder / name)
    parts = (
        DataSource(label="x", path="a.jsonl"),
        DataSource(label="y", source="hub", repo="org/name"),
        DataSource(label="z", path=("c.jsonl", "b.jsonl")),
    )
    found = fetch_data.local_files(view(parts=parts, held_out_path="h.jsonl"))
    assert {name: (source_of_file(name), path.name) for name, path in found.items()} == {
        "p00-a.jsonl": ((0, False), "a.jsonl"),
        "p02-0000-c.jsonl": ((2, False), "c.jsonl"),
        "p02-0001-b.jsonl": ((2, False), "b.jsonl"),
        "held_out-h.jsonl": ((0, True), "h.jsonl"),
    }


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.integers(0, 300), st.text(min_size=1, max_size=20), st.booleans())
def test_owner_inverts_the_names_that_are_given(number: int, name: str, mixture: bool) -> None:
    assert source_of_file(name_in_dataset(name, number if mixture else None)) == (
        number if mixture else 0,
        False,
    )
    assert source_of_file(f"held_out-{name}") == (0, True)


def test_what_is_missing_is_said_by_the_field_that_names_it(folder: Path) -> None:
    write(folder / "a.jsonl")
    with pytest.raises(DataError, match=r"data\.path: no file 'b\.jsonl'"):
        fetch_data.check(view(path="b.jsonl"))
    with pytest.raises(DataError, match=r"data\.held_out_path: no file 'b\.jsonl'"):
        fetch_data.check(view(path="a.jsonl", held_out_path="b.jsonl"))
    with pytest.raises(DataError, match=r"data\.of \(mine\): no file 'b\.jsonl'"):
        fetch_data.check(view(parts=(DataSource(label="mine", path="b.jsonl"),)))
    with pytest.raises(DataError, match=r"data\.held_out_path names .*a\.jsonl, which is trained on too"):
        fetch_data.check(view(path="*.jsonl", held_out_path="a.jsonl"))


def test_rows_are_read_until_one_can_be_trained_on(folder: Path) -> None:
    write(folder / "a.jsonl", SILENT, "no row", SILENT)
    write(folder / "b.jsonl", GOOD, "no row")
    facts = run(folder / "out", path=("a.jsonl", "b.jsonl"))
    assert facts == {
        "files": 2,
        "bytes": sum((folder / name).stat().st_size for name in ("a.jsonl", "b.jsonl")),
    }
    assert list((folder / "out").iterdir()) == []
    with pytest.raises(
        DataError,
        match=r"a\.jsonl: none of 3 rows can be trained on.*\n  .*a\.jsonl:2: a row must be an object",
    ):
        run(folder / "out", path="a.jsonl")
    write(folder / "c.jsonl", SILENT, SILENT)
    with pytest.raises(
        DataError,
        match=r"c\.jsonl: found 2 rows, and no assistant turn with text in any of them\. At least one",
    ):
        run(folder / "out", path="c.jsonl")
    (folder / "d.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"d\.jsonl: found no rows\."):
        run(folder / "out", path="d.jsonl")
    with pytest.raises(DataError, match=r"d\.jsonl: found no rows\."):
        run(folder / "out", path="b.jsonl", held_out_path="d.jsonl")
    with pytest.raises(DataError, match=r"c\.jsonl: found 2 rows"):
        run(
            folder / "out",
            parts=(DataSource(label="b", path="b.jsonl"), DataSource(label="c", path="c.jsonl")),
        )


def test_rows_that_compare_answers_say_how_to_train_on_the_better_ones(folder: Path) -> None:
    write(folder / "texts.jsonl", {"prompt": "q", "chosen": "a", "rejected": "b"})
    better, worse = (
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}] for text in "ab"
    )
    write(folder / "turns.jsonl", {"chosen": better, "rejected": worse})
    for name in ("texts.jsonl", "turns.jsonl"):
        with pytest.raises(
            DataError, match=r"found 1 row of comparisons .* better answers alone: data\.format=chosen$"
        ):
            run(folder / "out", path=name)
        run(folder / "out", path=name, format="chosen")
    write(folder / "labels.jsonl", {**GOOD, "label": False}, {**GOOD, "label": True})
    with pytest.raises(
        DataError, match=r"found 2 rows of comparisons .* better answers alone: data\.format=chosen$"
    ):
        run(folder / "out", path="labels.jsonl")
    run(folder / "out", path="labels.jsonl", format="chosen")
    parts = (
        DataSource(label="a", path="texts.jsonl"),
        DataSource(label="b", path="turns.jsonl", format="chosen"),
    )
    with pytest.raises(
        DataError, match=r'better answers alone, in the YAML of that source .*: format: "chosen"$'
    ):
        run(folder / "out", parts=parts)


def test_comparisons_that_cant_be_read_are_comparisons_all_the_same(folder: Path) -> None:
    better = {"prompt": "q", "chosen": "a", "rejected": "b"}
    for rows in (
        [better, {"chosen": "a", "rejected": "b"}],
        [{"chosen": "a", "rejected": 1}, {"chosen": "a", "rejected": "b"}],
    ):
        write(folder / "some.jsonl", *rows)
        with pytest.raises(
            DataError,
            match=(
                r"found 2 rows of comparisons(.|\n)*Some of them can't be read as comparisons"
                r" either(.|\n)*some\.jsonl:2: "
            ),
        ):
            run(folder / "out", path="some.jsonl")


def test_columns_that_were_said_the_wrong_way_round_are_turned(folder: Path) -> None:
    write(folder / "faq.jsonl", {"ask": "q", "answer": "a"})
    with pytest.raises(
        ConfigError,
        match=(
            r"data\.columns\.ask=instruction: the format's name comes first.*:"
            r" data\.columns\.instruction=ask$"
        ),
    ):
        fetch_data.check(view(path="faq.jsonl", columns={"ask": "instruction", "answer": "output"}))
    fetch_data.check(view(path="faq.jsonl", columns={"instruction": "ask", "output": "answer"}))
    with pytest.raises(
        ConfigError,
        match=r"data\.columns\.outputs: the format auto reads no such column\. Did you mean output\?",
    ):
        fetch_data.check(view(path="faq.jsonl", columns={"outputs": "answer"}))


def test_an_error_names_a_few_of_many_files(folder: Path) -> None:
    for number in range(30):
        write(folder / "many" / f"{number:02d}.jsonl", SILENT)
    with pytest.raises(
        DataError, match=r"00\.jsonl, .*01\.jsonl, .*02\.jsonl and 27 more files: found 30 rows"
    ) as caught:
        run(folder / "out", path="many/*.jsonl")
    assert "03.jsonl" not in str(caught.value)


def test_each_source_is_read_as_it_says(folder: Path) -> None:
    write(folder / "faq.jsonl", {"ask": "q", "answer": "a"})
    (folder / "zh.jsonl").write_bytes('{"text": "你好"}\n'.encode("gb18030"))
    faq = DataSource(label="faq", path="faq.jsonl", columns={"instruction": "ask", "output": "answer"})
    run(folder / "out", parts=(faq, DataSource(label="zh", path="zh.jsonl", encoding="gb18030")))
    with pytest.raises(DataError, match=r"faq\.jsonl:1: no known format has these keys"):
        run(folder / "out", path="faq.jsonl")
    write(
        folder / "chat.jsonl",
        {"messages": [{"role": "guest", "content": "q"}, {"role": "agent", "content": "a"}]},
    )
    run(folder / "out", path="chat.jsonl", roles={"user": "guest", "assistant": ("agent", "bot")})


def test_messages_of_trees_are_read_together(folder: Path) -> None:
    asked = {"message_id": "1", "parent_id": None, "message_tree_id": "1", "role": "prompter", "text": "q"}
    said = {
        "message_id": "2",
        "parent_id": "1",
        "message_tree_id": "1",
        "role": "assistant",
        "text": "a",
        "rank": 0,
    }
    write(folder / "trees.jsonl", asked, said)
    run(folder / "out", path="trees.jsonl")
    write(folder / "questions.jsonl", asked)
    with pytest.raises(DataError, match=r"found 1 row, and no assistant turn"):
        run(folder / "out", path="questions.jsonl")


def test_a_hubs_files_are_brought_and_local_ones_stay_where_they_are(server: Hub, folder: Path) -> None:
    commit = server.add("org/name", {"train.jsonl": jsonl([GOOD]), "test.jsonl": b"no"})
    server.add("org/other", {"a.jsonl": jsonl([GOOD] * 2)})
    write(folder / "mine.jsonl")
    hub = DataSource(label="x", source="hub", repo="org/name")
    scope = DataSource(label="z", source="modelscope", repo="org/other", files="a.*")
    fields: dict[str, Any] = {
        "parts": (hub, DataSource(label="y", path="mine.jsonl"), scope),
        "held_out_path": str(write(folder / "h.jsonl")),
    }
    facts = run(folder / "out", **fields)
    assert sorted(path.name for path in (folder / "out").rglob("*")) == [
        "p00-0000-train.jsonl",
        "p02-0000-a.jsonl",
    ]
    assert facts["files"] == 4
    assert facts["hub"][0] == {
        "repo": "org/name",
        "commit": commit,
        "files": {"p00-0000-train.jsonl": "train.jsonl"},
    }
    stage = fetch_data.STAGE
    assert stage.remote.fetches(view(**fields))
    assert not stage.remote.fetches(view(path="mine.jsonl"))
    assert list(fetch_data.local_files(view(source="hub", repo="org/name"))) == []


def test_a_reference_is_looked_up_once(server: Hub, folder: Path) -> None:
    first = server.add("org/name", {"train.jsonl": jsonl([GOOD]), "test.jsonl": b"no"}, refs=("main", "v1"))
    scope = DataSource(
        label="z", source="modelscope", repo="org/name", revision="v1", files=("t*.jsonl", "test*")
    )
    fields: dict[str, Any] = {
        "parts": (
            DataSource(label="x", source="hub", repo="org/name"),
            scope,
            DataSource(label="y", path=str(write(folder / "y.jsonl"))),
        )
    }
    names = ["data hub org/name@main", "data modelscope org/name@v1 t*.jsonl test*"]
    assert fetch_data.find_pins(view(**fields)) == dict.fromkeys(names)
    said: list[str] = []
    fetch_data.look_up(view(**fields), said.append)
    assert said == [f"{name} is the commit {first[:12]}, as tuner.lock says from now on" for name in names]
    found = fetch_data.find_pins(view(locked=True, **fields))
    assert [list(pin.files) for pin in found.values() if pin] == [
        ["train.jsonl"],
        ["test.jsonl", "train.jsonl"],
    ]
    asked, lock = len(server.asked), (folder / "tuner.lock").read_bytes()
    server.add("org/name", {"train.jsonl": jsonl([GOOD] * 2)}, refs=("main", "v1"))
    fetch_data.look_up(view(locked=True, **fields), said.append)
    assert (len(server.asked), len(said), (folder / "tuner.lock").read_bytes()) == (asked, 2, lock)
    facts = run(folder / "out", locked=True, **fields)
    assert {hub["commit"] for hub in facts["hub"]} == {first}
    assert (folder / "out" / "p00-0000-train.jsonl").read_bytes() == jsonl([GOOD])


def test_a_locked_run_takes_nothing_that_is_not_in_the_lock(
    server: Hub, tuner: Tuner, words: list[str], tmp_path: Path
) -> None:
    server.add("org/name", {"train.jsonl": jsonl([GOOD])})
    for verb in ([], ["plan"]):
        refused = tuner(*verb, *words, "locked=true", env=server.env, code=2).err
        assert re.search(
            r"tuner\.lock has no entry 'data hub org/name@main'.*once without locked=true.*commit tuner",
            refused,
        )
    assert server.asked == []
    assert not (tmp_path / "tuner.lock").exists()


def test_a_plan_refuses_a_misspelt_column_as_a_run_does(tuner: Tuner, tiny: list[str]) -> None:
    for words in (["data.columns.instrution=question"], ["data.format=alpaca", "data.columns.promt=q"]):
        planned, ran = (tuner(*verb, *tiny, *words, code=2).err for verb in (["plan"], []))
        assert planned == ran
        assert "reads no such column" in planned


def test_a_lock_holds_what_local_files_hold(
    tuner: Tuner, tiny: list[str], data: Path, tmp_path: Path
) -> None:
    """Files below the lock by their place from there, so that a checkout may lie anywhere."""
    line = [*tiny, "until=fetch"]
    here = [f"data.path={data.name}", "locked=true"]
    assert f"has no entry '{data.name}'" in tuner(*line, *here, code=2).err
    tuner("preview", *tiny)  # a look
    assert not (tmp_path / "tuner.lock").exists()
    tuner(*line)
    lock = json.loads((tmp_path / "tuner.lock").read_text(encoding="utf-8"))
    assert lock["files"][data.name] == hashlib.sha256(data.read_bytes()).hexdigest()
    model = Path(next(word for word in tiny if word.startswith("model.path=")).partition("=")[2])
    assert {name for name in lock["files"] if name != data.name} == {
        str(path) for path in model.iterdir() if path.name != "manifest.json"
    }
    tuner(*line, *here, "root=second")
    tuner("plan", *line, *here)
    whole = data.read_bytes()
    data.write_bytes(whole + whole.splitlines(keepends=True)[0])
    for verb in ([], ["plan"]):
        refused = tuner(*verb, *line, *here, code=2).err
        assert f"{data.name} has other content (sha256" in refused
        assert "once without locked=true" in refused
    tuner(*line)  # an edit that is meant
    tuner(*line, *here)


def test_nothing_is_locked_of_a_set_that_cant_be_looked_up(server: Hub, folder: Path) -> None:
    server.add("org/name", {"train.jsonl": jsonl([GOOD])})
    parts = (
        DataSource(label="x", source="hub", repo="org/name"),
        DataSource(label="y", source="hub", repo="org/nmae"),
    )
    with pytest.raises(DataError, match="no data set org/nmae"):
        fetch_data.look_up(view(parts=parts), print)
    assert list(fetch_data.find_pins(view(parts=parts)).values())[1] is None
    with pytest.raises(ConfigError, match="has lost its entry 'data hub org/nmae@main'"):
        fetch_data.run(Context(config=view(source="hub", repo="org/nmae"), inputs={}, out=folder, say=print))


def test_a_lock_that_was_tampered_with_writes_nothing_outside(server: Hub, folder: Path) -> None:
    server.add("org/name", {"train.jsonl": jsonl([GOOD])})
    config = view(source="hub", repo="org/name")
    fetch_data.look_up(config, print)
    lock = folder / "tuner.lock"
    lock.write_text(lock.read_text().replace('"train.jsonl"', '"../../../train.jsonl"'))
    (folder / "a" / "b" / "out").mkdir(parents=True)
    with pytest.raises(DataError, match=r"hides it from this account|no longer has it"):
        fetch_data.run(Context(config=config, inputs={}, out=folder / "a" / "b" / "out", say=print))
    assert [path.name for path in folder.rglob("*.jsonl")] == []


def test_what_an_interrupted_download_left_is_told_and_used(server: Hub, folder: Path) -> None:
    server.add("org/name", {"train.jsonl": LONG})
    server.fail("train.jsonl", Cut(1_000_000), *[503] * 5)
    assert fetch_data.progress(folder / "out") is None
    with pytest.raises(DataError, match="can't be reached"):
        run(folder / "out", source="hub", repo="org/name")
    assert fetch_data.progress(folder / "out") == "1.00 MB of 2.01 MB"
    (folder / "out" / "0007-stale.jsonl").write_text("of another attempt")
    run(folder / "out", source="hub", repo="org/name")
    assert [path.name for path in (folder / "out").rglob("*")] == ["0000-train.jsonl"]
    assert server.sent["train.jsonl"] == len(LONG)


@pytest.fixture
def words(tiny_model: Path) -> list[str]:
    return [
        "model=local",
        f"model.path={tiny_model}",
        "data=hub",
        "data.repo=org/name",
        "data.length=64",
        "until=fetch",
        "machine=cpu",
    ]


def test_a_set_of_a_hub_goes_through_the_front_door(
    server: Hub, tuner: Tuner, words: list[str], tmp_path: Path
) -> None:
    server.add("org/name", {"train.jsonl": jsonl(ROWS), "test.jsonl": b"no"})
    plan = tuner("plan", "--json", *words, "until=tokenize", env=server.env)
    assert states(plan)["tokenize"] == "run"
    assert reasons(plan) == {
        "fetch_data": "hub org/name@main unresolved",
        "fetch_model": "never made",
        "tokenize": "after fetch_data",
    }
    assert server.asked == []
    server.fail("datasets/org/name", Busy(0), 503)
    server.fail("train.jsonl", Cut(100), 502, Instead(b"wrong"))
    done = tuner(*words, "until=tokenize", env=server.env)
    assert "org/name at " in done.err + done.out
    assert sorted(path.name for path in linked(tmp_path / "outputs", "fetch_data").iterdir()) == [
        "0000-train.jsonl",
        "manifest.json",
    ]
    asked = len(server.asked)
    server.add("org/name", {"train.jsonl": b"another commit"})
    again = tuner("plan", "--json", *words, "until=tokenize", env={**server.env, "HF_HUB_OFFLINE": "1"})
    assert set(states(again).values()) == {"done"}
    tuner(*words, "until=tokenize", env={**server.env, "HF_HUB_OFFLINE": "1"})
    assert len(server.asked) == asked
    refused = tuner(*words, "data.repo=org/other", env={**server.env, "HF_HUB_OFFLINE": "1"}, code=2)
    assert "HF_HUB_OFFLINE forbids it" in refused.err


def test_a_committed_lock_gives_the_same_rows_after_the_branch_moved(
    server: Hub, tuner: Tuner, words: list[str], tmp_path: Path
) -> None:
    server.add("org/name", {"train.jsonl": jsonl(ROWS)})
    tuner(*words, "root=first", env=server.env)
    moved = server.add("org/name", {"train.jsonl": jsonl(ROWS * 2)})
    tuner(*words, "root=second", "locked=true", env=server.env)
    first, second = (linked(tmp_path / root, "fetch_data") for root in ("first", "second"))
    assert first.name == second.name
    assert (second / "0000-train.jsonl").read_bytes() == jsonl(ROWS)
    server.repos["datasets", "org/name"].commits = {moved: {"train.jsonl": jsonl(ROWS * 2)}}
    gone = tuner(*words, "root=third", env=server.env, code=2)
    assert "Remove the entry of org/name from the lock file" in gone.err
    assert list((tmp_path / "third" / "store").glob("fetch_data-*")) == []


def test_a_killed_download_goes_on_with_the_bytes_it_had(
    server: Hub, tuner: Tuner, words: list[str], tmp_path: Path
) -> None:
    server.add("org/name", {"a.jsonl": jsonl(ROWS), "b.jsonl": LONG})
    server.fail("b.jsonl", Hold(1_500_000))
    killed = subprocess.Popen(
        [sys.executable, "-m", "tuner", *words],
        cwd=tmp_path,
        env=environment(server.env),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert server.held.wait(60)
    partial = tmp_path / "outputs" / "store" / ".partial"
    # the small one is whole and has its name, of the large one there is half
    while not [*partial.rglob("0000-a.jsonl")] or (
        sum(path.stat().st_size for path in partial.rglob("*.part")) < 1_000_000
    ):
        assert killed.poll() is None
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    server.go.set()
    plan = tuner("plan", "--json", *words, env=server.env)
    assert states(plan)["fetch_data"] == "continue"
    assert "MB of 2.01 MB" in reasons(plan)["fetch_data"]
    before = server.sent["b.jsonl"]
    tuner(*words, env=server.env)
    artifact = linked(tmp_path / "outputs", "fetch_data")
    assert (artifact / "0001-b.jsonl").read_bytes() == LONG
    assert server.sent["b.jsonl"] - before < len(LONG) - 900_000
    assert server.sent["a.jsonl"] == len(jsonl(ROWS))
    facts = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))["facts"]
    assert facts["hub"][0]["files"] == {"0000-a.jsonl": "a.jsonl", "0001-b.jsonl": "b.jsonl"}


def test_local_data_that_cant_be_used_leaves_nothing_to_go_on_from(
    tuner: Tuner, tiny_model: Path, tmp_path: Path
) -> None:
    write(tmp_path / "a.jsonl", SILENT)
    words = ["model=local", f"model.path={tiny_model}", "data=local", "data.path=a.jsonl", "until=fetch"]
    assert "found 1 row, and no assistant turn" in tuner(*words, code=2).err
    assert states(tuner("plan", "--json", *words))["fetch_data"] == "run"
    write(tmp_path / "a.jsonl", GOOD)
    tuner(*words)
    assert states(tuner("plan", "--json", *words))["fetch_data"] == "done"


def test_a_plan_without_the_data_guesses_nothing(tuner: Tuner, tiny_model: Path) -> None:
    words = ["model=local", f"model.path={tiny_model}", "data=hub", "data.repo=org/chats"]
    assert "tokens and steps are not known until the data is downloaded" in tuner("plan", *words).out


def test_two_hubs_are_two_sources_of_one_name() -> None:
    first, second, local = (
        View(Config(data=Data(source=source, repo="org/name")), "fetch_data")
        for source in ("hub", "modelscope", "path")
    )
    assert fetch_data.versions(first) != fetch_data.versions(second)
    assert fetch_data.versions(local) == {}
