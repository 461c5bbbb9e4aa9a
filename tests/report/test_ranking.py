"""A ranking has the best job first and says nothing where losses mean nothing; its text, page and CSV agree,
and what others wrote is text in all of them.
"""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from rich.cells import cell_len

from tests.report.browser import CHROMIUM, browser
from tests.report.test_comparison import EVIL, Reader, report, side
from tuner.report.ranking import RankedJob, first_sentence, rank_jobs, ranking_csv
from tuner.report.ranking_page import to_html
from tuner.report.ranking_text import short_names, to_text

NOTHING = {"state": "not trained", "train": {}, "convert": {}, "rows": [], "held_out": None}


def job(number: int, loss: float | None, **changes: Any) -> RankedJob:
    fields = changes.pop("fields", {"algo.optim.lr": f"{number}e-4"})
    code, message = changes.pop("code", 0), changes.pop("message", "")
    run = None if message else side(f"run-{number:08x}", loss=loss, **changes)
    return RankedJob(number=number, fields=fields, run=run, code=code, message=message)


def ranked(*jobs: RankedJob, places: tuple[str, ...] = ()) -> dict[str, Any]:
    return rank_jobs("lr-0badf00d", jobs, places) | {"use": "python -m tuner chat RUN root=/home/me/out"}


def order(ranking: dict[str, Any]) -> list[tuple[int | None, int]]:
    return [(row["rank"], row["job"]) for row in ranking["jobs"]]


def test_the_best_is_first_and_what_failed_is_named() -> None:
    said = "algo.steps is -2, but must be at least 1 (e.g. 64). Write 64."
    jobs = [job(1, 2.0), job(2, None, code=2, message=said), job(3, 1.5), job(4, None, **NOTHING, code=None)]
    ranking = ranked(*jobs)
    assert order(ranking) == [(1, 3), (2, 1), (None, 2), (None, 4)]
    assert ranking["best"] == "run-00000003"
    assert ranking["jobs"][2]["error"] == "algo.steps is -2, but must be at least 1 (e.g. 64)."
    text = to_text(ranking, 120).splitlines()
    assert text[0] == "sweep lr-0badf00d: 2 of 4 jobs done, 1 failed"
    assert text[-1] == f"failed: algo.optim.lr=2e-4: {ranking['jobs'][2]['error']}"
    assert text[2].split() == ["1", "3e-4", "1.5000", "4.4817", "50", "s", "run-00000003"]
    assert json.loads(json.dumps(ranking)) == ranking


def test_losses_over_other_tokens_rank_nothing() -> None:
    ranking = ranked(job(1, 2.0), job(2, 1.0, held_out="two"))
    assert order(ranking) == [(None, 1), (None, 2)]
    assert ranking["best"] is None
    assert "cannot be compared" in to_text(ranking, 80)


def test_equal_losses_have_no_best() -> None:
    ranking = ranked(job(1, 1.50002), job(2, 1.50001))
    assert ranking["best"] is None
    assert "equal as far as they are shown" in to_text(ranking, 80)
    assert ranked(job(1, 1.5))["best"] == "run-00000001"


def test_a_sweep_without_evaluation_is_ranked_by_the_last_loss_of_training() -> None:
    rows = [{"step": 1, "loss": 3.0, "held_out": 2.5}, {"step": 2, "loss": 2.0}]
    ranking = ranked(job(1, None), job(2, None, rows=rows), job(3, None, rows=[rows[0] | {"held_out": 2.0}]))
    assert ranking["by"] == "held_out_while_training"
    assert order(ranking) == [(1, 3), (2, 2), (None, 1)]
    assert "held-out loss while training" in to_text(ranking, 80)
    # never mixed with that of an evaluation, which is over all tokens
    assert order(ranked(job(1, 3.0), job(2, None, rows=rows))) == [(1, 1), (None, 2)]


def test_a_loss_that_is_no_number_ranks_nothing() -> None:
    assert order(ranked(job(1, float("nan")), job(2, 3.0), job(3, float("inf")))) == [
        (1, 2),
        (None, 1),
        (None, 3),
    ]


def test_what_a_search_has_pruned_is_not_ranked() -> None:
    rows = [{"step": 1, "loss": 3.0, "held_out": 1.0}]
    pruned = replace(job(2, None, rows=rows), pruned=True)
    ranking = rank_jobs("lr-0badf00d", [job(1, 2.0), pruned], trials=5) | {"use": None}
    assert order(ranking) == [(1, 1), (None, 2)]
    text = to_text(ranking, 120)
    assert text.startswith("sweep lr-0badf00d: 1 of 5 jobs done, 1 pruned\n")
    assert "(pruned)" in text
    # nor where all are ranked by losses while training
    alone = rank_jobs("lr-0badf00d", [job(1, None, rows=[rows[0] | {"held_out": 2.0}]), pruned])
    assert order(alone) == [(1, 1), (None, 2)]


def test_another_objective_ranks() -> None:
    jobs = [job(i, 3.0 - i, train={"loss": float(i)}, held_out=str(i)) for i in (1, 2)]
    assert order(rank_jobs("s", jobs, objective="loss")) == [(1, 1), (2, 2)]
    best = rank_jobs("s", jobs, objective="loss", maximize=True) | {"use": None}
    assert order(best) == [(1, 2), (2, 1)]
    assert "training loss" in to_text(best, 120)
    # over other held-out tokens, which only held-out losses mind
    assert order(rank_jobs("s", jobs)) == [(None, 1), (None, 2)]


def test_what_was_tried_twice_is_best_once() -> None:
    twice = [job(1, 1.0), replace(job(1, 1.0), number=2), job(3, 2.0)]
    assert rank_jobs("s", twice)["best"] == "run-00000001"


def test_few_tokens_are_said_once() -> None:
    few = [job(i, i / 2, report=report(i / 2, tokens=100)) for i in (2, 3)]
    assert to_text(ranked(*few), 80).count("100 tokens, which is little") == 1


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("one\nline", "one line"),
        ("a.jsonl:3 has no role. Add one.", "a.jsonl:3 has no role."),
        ("lr is 1e-4. `algo.optim.lr` wins.", "lr is 1e-4."),
        ("v. 2 of 3.5 is old", "v. 2 of 3.5 is old"),
        ("数据为空。 再试。", "数据为空。 再试。"),
    ],
)
def test_first_sentence(text: str, first: str) -> None:
    assert first_sentence(text) == first


@settings(deadline=None)
@given(some.lists(some.text("ab.", min_size=1, max_size=6), unique=True))
def test_short_names_tell_fields_apart(fields: list[str]) -> None:
    names = short_names(fields)
    assert len(set(names)) == len(fields)
    assert all(field == name or field.endswith(f".{name}") for field, name in zip(fields, names, strict=True))


LOSSES = some.lists(some.none() | some.floats(0.1, 20), min_size=1, max_size=9)
VALUES = some.text(some.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=12)


@settings(deadline=None, max_examples=50)  # a busy machine renders a page slowly
@given(LOSSES, some.data())
def test_text_page_and_table_agree(losses: list[float | None], data: some.DataObject) -> None:
    words = [{"data.system": data.draw(VALUES), "seed": str(i)} for i in range(len(losses))]
    ranking = ranked(*(job(i, loss, fields=words[i - 1]) for i, loss in enumerate(losses, 1)))
    measured = sorted(loss for loss in losses if loss is not None)
    assert [row["held_out_loss"] for row in ranking["jobs"] if row["rank"]] == measured
    assert sorted(row["job"] for row in ranking["jobs"]) == list(range(1, len(losses) + 1))
    table = list(csv.DictReader(io.StringIO(ranking_csv(ranking), newline="")))
    assert [row["run"] for row in table] == [row["run"] for row in ranking["jobs"]]
    assert [row["data.system"] for row in table] == [row["fields"]["data.system"] for row in ranking["jobs"]]
    if measured:
        assert [float(row["held_out_loss"]) for row in table if row["rank"]] == measured
    cells = [text for _, text in Reader(to_html(ranking)).all("td", **{"class": "run"})]
    assert cells == [row["run"] for row in ranking["jobs"]]
    lines = to_text(ranking, 10_000).splitlines()
    assert [line.rsplit(None, 1)[-1] for line in lines[2 : 2 + len(losses)]] == cells


def evil() -> dict[str, Any]:
    fields = [{"data.path": f"/home/me/{i}/rows.jsonl", "data.system": EVIL} for i in range(3)]
    failed = job(3, None, code=2, message=f"/home/me/rows.jsonl: {EVIL}", fields=fields[2])
    jobs = [job(i, i / 2, fields=fields[i - 1], note=EVIL) for i in (1, 2)]
    return ranked(*jobs, failed, places=("data.path",))


def test_what_others_wrote_is_text_on_the_page() -> None:
    page = to_html(evil())
    reader = Reader(page)
    assert [tag for tag, _, _ in reader.found].count("script") == 1
    assert not {"img", "link", "a", "b", "iframe", "form"} & {tag for tag, _, _ in reader.found}
    told = [text for _, text in reader.all("td")]
    assert sum("</p><script>" in text for text in told) == 4  # a system prompt each, and the error
    assert not any(
        name.startswith("on") or name in ("src", "href", "style")
        for _, attributes, _ in reader.found
        for name in attributes
    )
    (policy,) = (a["content"] for a, _ in reader.all("meta", **{"http-equiv": "Content-Security-Policy"}))
    assert policy
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "/home/me" not in page
    assert all(char == "\n" or char.isprintable() for char in to_text(evil(), 100))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_rows_fit_the_terminal_with_the_run_below(width: int) -> None:
    fields = [{"algo.optim.lr": "1e-4", "algo.r": "8", "seed": str(i)} for i in range(12)]
    text = to_text(ranked(*(job(i + 1, 2 - i / 9, fields=fields[i]) for i in range(12))), width)
    assert max(map(cell_len, text.splitlines())) <= width
    assert all(f"run-{i:08x}" in text for i in range(1, 13))


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(scheme: str, tmp_path: Path) -> None:
    losses = [2.0, 11.0, 1.5, None]
    ranking = ranked(*(job(i, loss, fields={"seed": str(i)}) for i, loss in enumerate(losses, 1)))
    (tmp_path / "ranking.html").write_text(to_html(ranking), encoding="utf-8")
    with browser(tmp_path / "profile") as page:
        page.open(tmp_path / "ranking.html", width=380, scheme=scheme)
        assert page.ask("document.documentElement.scrollWidth") <= 380
        paper = page.ask("getComputedStyle(document.body).backgroundColor")
        assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
        jobs = "[...document.querySelectorAll('.ranking tbody tr')].map((row) => row.children[1].textContent)"
        loss = "document.querySelectorAll('.ranking button')[2].click()"
        assert page.ask(jobs) == ["3", "1", "2", "4"]
        for found in (["3", "1", "2", "4"], ["2", "1", "3", "4"]):  # what is missing stays last
            page.ask(loss)
            assert page.ask(jobs) == found
        page.ask("document.querySelectorAll('.ranking button')[1].click()")
        assert page.ask(jobs) == ["1", "2", "3", "4"]
        assert page.complaints == []
        assert page.requests == [(tmp_path / "ranking.html").as_uri()]
