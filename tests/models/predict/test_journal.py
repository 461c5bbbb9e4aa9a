"""Answers that were kept must come back as they were, whatever a kill left behind them."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tuner.errors import ConfigError
from tuner.models.predict.journal import Journal, journal_path

OF = {"generation.temperature": 0.0, "the file of rows": "abc"}
BATCHES = [{0: {"text": "a\nb"}, 5: {"text": "你好 \u2028"}}, {2: {"reason": "too long"}}, {1: {"text": ""}}]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 400))
def test_what_a_kill_left_is_read_up_to_the_last_whole_line(tmp_path: Path, lost: int) -> None:
    out = tmp_path / "out.jsonl"
    journal_path(out).unlink(missing_ok=True)
    with Journal(out, OF) as journal:
        assert journal.choice("batches", lambda: [4, 100]) == [4, 100]
        for batch in BATCHES:
            journal.add("tuned", batch)
    path = journal_path(out)
    text = path.read_bytes()
    path.write_bytes(text[: max(len(text) - lost, 0)])
    whole = max(path.read_bytes().count(b"\n") - 2, 0)
    kept = {row: answer for batch in BATCHES[:whole] for row, answer in batch.items()}
    with Journal(out, OF) as journal:
        assert journal.answers.get("tuned", {}) == kept
        for batch in BATCHES[whole:]:
            journal.add("tuned", batch)
    with Journal(out, OF) as journal:
        assert journal.answers == {"tuned": {row: one for batch in BATCHES for row, one in batch.items()}}


def test_a_choice_stays(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Journal(out, OF) as journal:
        journal.choice("seed", lambda: 7)
        journal.add("tuned", BATCHES[0])
    with Journal(out, OF) as journal:
        assert journal.choice("seed", lambda: 8) == 7


def test_answers_of_another_command_are_kept_from_it(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Journal(out, OF) as journal:
        journal.add("tuned", BATCHES[0])
        with pytest.raises(ConfigError, match="Another process is writing"):
            Journal(out, OF)
    before = journal_path(out).read_bytes()
    for of, why in (
        (OF | {"generation.temperature": 1.0}, r"generation.temperature was 0.0 and is 1.0\. The command"),
        (OF | {"the file of rows": "xyz"}, "the file of rows is another one"),
    ):
        with pytest.raises(ConfigError, match=why):
            Journal(out, of)
    assert journal_path(out).read_bytes() == before
    assert json.loads(before.splitlines()[0])["of"] == OF


def test_without_an_answer_nothing_stays(tmp_path: Path) -> None:
    with Journal(tmp_path / "out.jsonl", OF) as journal:
        journal.choice("seed", lambda: 7)
    assert list(tmp_path.iterdir()) == []
