"""Help, and how much a command says."""

import shlex
from pathlib import Path

import pytest

from tests.conftest import Tuner
from tuner.cli.help import verb_help
from tuner.cli.main import main
from tuner.cli.parse import parse
from tuner.cli.verbs import VERBS
from tuner.config.compose import compose, compose_jobs
from tuner.progress import VERBOSITY

LINES = [(verb, line) for verb in VERBS.values() for line in verb.examples]


@pytest.fixture(autouse=True)
def normal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command of these tests sets for its processes is not for the next one's."""
    monkeypatch.setenv(VERBOSITY, "")


@pytest.mark.parametrize("verb", VERBS)
def test_a_page_is_about_its_verb(verb: str) -> None:
    page = verb_help(VERBS[verb])
    assert page.startswith(f"usage: python -m tuner {VERBS[verb].usage}")
    assert page.count(f"  python -m tuner {verb}") == 2
    for flag, does in VERBS[verb].flags.items():
        assert f"  {flag} " in page
        assert does in page
    assert max(map(len, page.splitlines())) <= 110


@pytest.mark.parametrize(("verb", "line"), LINES, ids=[line for _, line in LINES])
def test_each_example_is_taken(verb: object, line: str) -> None:
    taken = parse(shlex.split(line))
    assert VERBS[taken.verb] is verb
    if "-m" in taken.flags:
        assert len(compose_jobs(taken.words)) == 4
    else:
        compose(taken.words, whole=False)


@pytest.mark.slow
def test_each_example_runs(tuner: Tuner, words: list[str], tmp_path: Path) -> None:
    """In the order of the table, with a tiny model, on a finished run called support; but `stop`, which wants
    one that trains, and what wants a server or a hub.
    """
    tuner(*words, "name=support")
    env = {"HOME": str(tmp_path)}
    (tmp_path / "questions.jsonl").write_text('{"prompt": "1 plus 1?"}\n', encoding="utf-8")
    (tmp_path / "week.csv").write_text("question\n1 plus 1?\n", encoding="utf-8")
    for verb, line in LINES:
        if verb.name not in ("stop", "serve", "push"):
            tiny = words if verb.name in ("run", "preview") else []
            tiny = [word for word in tiny if word.partition("=")[0] not in line]
            allowed = None if verb.name == "doctor" or "--check" in line else 0
            if line == "clean support":
                tuner("rename", "support-v2", "support")
            done = tuner(*shlex.split(line), *tiny, env=env, code=allowed)
            assert "Traceback" not in done.err


def test_help_is_the_page_of_a_verb_and_the_whole_without(tuner: Tuner) -> None:
    page = verb_help(VERBS["plan"]) + "\n"
    assert tuner("plan", "--help").out == tuner("help", "plan").out == tuner("-h", "plan", "x=1").out == page
    assert tuner("help").out == tuner("--help").out
    assert "Did you mean plan?" in tuner("help", "paln", code=2).err


def test_a_quiet_command_says_what_came_of_it(tuner: Tuner, words: list[str], tmp_path: Path) -> None:
    done = tuner("-q", *words, "until=tokenize")
    assert done.err == ""
    assert done.out.startswith("run ")
    (run,) = (tmp_path / "outputs" / "runs").iterdir()
    assert "packs of 64" in (run / "log").read_text(encoding="utf-8")
    wrong = tuner("-q", *words, "data.path=nobody.jsonl", "until=tokenize", code=2)
    assert "nobody.jsonl" in wrong.err
    assert wrong.err.startswith("tuner: ")


def test_a_quiet_chat_is_the_conversation_alone(tuner: Tuner, finished: Path) -> None:
    assert "/exit leaves" in tuner("chat", "last", f"root={finished}").err
    done = tuner("-q", "chat", "last", f"root={finished}")
    assert (done.out, done.err) == ("", "")


def test_a_verbose_command_says_where_an_error_comes_from(
    tuner: Tuner, words: list[str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"messages": 1}\n', encoding="utf-8")
    line = [*words, f"data.path={broken}", "until=tokenize"]
    plain, verbose = tuner(*line, code=2), tuner(*line, "-v", code=2)
    assert "Traceback" not in plain.err
    assert verbose.err.index("Traceback") < verbose.err.index("tuner: ")
    assert verbose.err.splitlines()[-1] == plain.err.splitlines()[-1]


def test_quiet_and_verbose_are_two(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-q", "-v"]) == 2
    assert "give one of them" in capfd.readouterr().err


def test_versions(tuner: Tuner) -> None:
    assert tuner("--version").out == tuner("-V").out == tuner("plan", "--version").out
