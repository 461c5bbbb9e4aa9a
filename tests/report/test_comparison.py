"""A comparison marks what is best and only where that means something, draws what was measured, fits the
terminal, and escapes what others wrote.
"""

import json
import random
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from rich.cells import cell_len

from tuner.report import chart
from tuner.report.comparison import ComparedRun, DifferingField, compare_runs
from tuner.report.comparison_page import to_html
from tuner.report.comparison_text import to_text

EVIL = (
    """</p><script>alert("1")</script> <img src=x onerror=alert(1)> {{ 7 * 7 }} & 'quoted' """
    "\x1b[2J\u202e [bold]red[/bold]"
)
VOID = {"meta", "path", "polyline", "circle"}


def report(loss: float, *, answers: dict[str, str] | None = None, tokens: int = 5000) -> dict[str, Any]:
    told = [
        {"prompt": prompt, "before": f"the base on {prompt}", "after": text}
        for prompt, text in (answers or {}).items()
    ]
    held_out = {
        "tokens": tokens,
        "loss": {"before": 3.0, "after": loss},
        "perplexity": {"before": 20.0855, "after": 2.718281828**loss},
    }
    return {"version": 1, "held_out": held_out, "answers": told}


def side(name: str = "run-0badf00d", loss: float | None = 2.0, **changes: Any) -> ComparedRun:
    rows = [
        {"step": step, "loss": 3.0 - step / 100, "tokens": 64 * step, "seconds": step / 2}
        for step in range(1, 101)
    ]
    facts = {
        "step": 100,
        "loss": 2.0,
        "tokens": 6400,
        "seconds": 50.0,
        "tokens_per_second": 128.0,
        "trainable": 8192,
    }
    whole = ComparedRun(
        run=name,
        state="evaluated",
        note=None,
        tags=(),
        train=facts,
        convert={"step": 100, "bytes": 36256},
        rows=rows,
        report=None if loss is None else report(loss, answers={"who?": "me"}),
        held_out="one",
    )
    return replace(whole, **changes)


def score(comparison: dict[str, Any], name: str) -> tuple[list[Any], list[int]]:
    return comparison["scores"][name]["values"], comparison["scores"][name]["best"]


class Reader(HTMLParser):
    """The elements of a page, in order, with their attributes and text; open and close tags have to match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[int] = []
        self.feed(page)
        self.close()
        assert not self.open, "tags stay open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), []))
        if tag not in VOID:
            self.open.append(len(self.found) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        assert self.found[self.open.pop()][0] == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        for i in self.open[-1:]:
            self.found[i][2].append(data)

    def all(self, tag: str, **attributes: str) -> list[tuple[dict[str, str | None], str]]:
        return [
            (a, "".join(text))
            for name, a, text in self.found
            if name == tag and all(a.get(k.rstrip("_")) == v for k, v in attributes.items())
        ]


def test_the_best_of_a_row() -> None:
    runs = [
        side(loss=2.0),
        side(loss=1.5),
        side(loss=1.5, train={"step": 1, "loss": 0.1, "tokens_per_second": 999.0}),
        side(loss=None),
    ]
    comparison = compare_runs(runs, [])
    assert score(comparison, "held_out_loss") == ([2.0, 1.5, 1.5, None], [1, 2])
    assert score(comparison, "perplexity")[1] == [1, 2]
    assert score(comparison, "tokens_per_second") == ([128.0, 128.0, 999.0, 128.0], [2])
    for name in ("held_out_loss_base", "loss", "steps", "tokens", "seconds", "trainable", "bytes"):
        assert score(comparison, name)[1] == [], name
    assert json.loads(json.dumps(comparison)) == comparison


def test_nothing_is_best_among_equals_or_alone() -> None:
    assert score(compare_runs([side(loss=1.5), side(loss=1.5)], []), "held_out_loss")[1] == []
    # as they are shown
    assert score(compare_runs([side(loss=1.50001), side(loss=1.50002)], []), "held_out_loss")[1] == []
    assert score(compare_runs([side(loss=1.5), side(loss=None)], []), "held_out_loss")[1] == []


def test_losses_over_other_held_out_tokens_are_not_ranked() -> None:
    comparison = compare_runs(
        [side(loss=2.0), side(loss=1.0, held_out="two", train={"tokens_per_second": 1.0})], []
    )
    assert score(comparison, "held_out_loss") == ([2.0, 1.0], [])
    assert score(comparison, "perplexity")[1] == []
    assert score(comparison, "tokens_per_second")[1] == [0]
    for shown in (to_text(comparison, 200, colour=False), to_html(comparison)):
        assert "different tokens (A | B)" in shown
        assert "cannot be compared" in shown


def test_few_held_out_tokens_are_said() -> None:
    comparison = compare_runs(
        [
            side(),
            side(report=report(1.5, tokens=174)),
            side(loss=None),
            side(report=report(1.6, tokens=1999)),
        ],
        [],
    )
    assert score(comparison, "held_out_tokens") == ([5000, 174, None, 1999], [])
    words = (
        "Few tokens were held out (B 174 | D 1,999): under 2,000 a small difference between losses may be "
        "chance."
    )
    assert words in comparison["notes"]
    assert words in re.sub(r"\s+", " ", to_text(comparison, 80, colour=False))
    assert words in to_html(comparison)


def test_a_run_that_measured_nothing_does_not_spoil_the_ranking() -> None:
    comparison = compare_runs([side(loss=2.0), side(loss=1.0), side(loss=None, held_out="two")], [])
    assert score(comparison, "held_out_loss")[1] == [1]
    assert comparison["notes"] == []


def test_each_question_with_the_answers_of_all() -> None:
    first = side(report=report(1.0, answers={"who?": "A's me", "what?": "this"}))
    second = side(report=report(1.0, answers={"who?": "B's me"}))
    comparison = compare_runs([first, second, side(loss=None)], [])
    assert comparison["answers"] == [
        {
            "question": "who?",
            "before": ["the base on who?", "the base on who?", None],
            "after": ["A's me", "B's me", None],
        },
        {"question": "what?", "before": ["the base on what?", None, None], "after": ["this", None, None]},
    ]
    assert any("asked different questions" in note for note in comparison["notes"])
    text = to_text(comparison, 80, colour=False)
    assert re.search(r"who\?\n  base  the base on who\?\n  A     A's me\n  B     B's me\n  C     -\n", text)
    assert re.search(r"what\?\n  base  the base on what\?\n  A     this\n  B, C  -", text)


def test_bases_that_answer_differently_are_told_apart() -> None:
    other = report(1.0, answers={"who?": "me"})
    other["answers"][0]["before"] = "another base"
    text = to_text(compare_runs([side(), side(report=other)], []), 80, colour=False)
    assert re.search(r"base of A  the base on who\?\n  base of B  another base\n  A, B       me", text)


def test_a_curve_is_the_mean_of_its_steps() -> None:
    rows = [{"step": step, "loss": float(step % 7)} for step in range(1, 1001)]
    comparison = compare_runs([side(rows=rows), side(rows=rows[:10])], [])
    long, short = comparison["curves"]["loss"]
    assert len(long) <= 60
    ends = [0, *(step for step, _ in long)]
    assert ends[-1] == 1000
    for begin, (end, value) in zip(ends, long, strict=False):
        assert value == pytest.approx(fmean(row["loss"] for row in rows[begin:end]))
    assert short == [[10, pytest.approx(fmean(row["loss"] for row in rows[:10]))]]  # both with the same width


def test_values_that_are_no_numbers_are_left_out_of_curves() -> None:
    rows = [
        {"step": 1, "loss": float("nan")},
        {"step": 2, "loss": 1.0, "held_out": None},
        {"step": 3, "loss": 2.0, "held_out": 1.5},
    ]
    comparison = compare_runs([side(rows=rows), side(rows=[])], [])
    assert comparison["curves"] == {"loss": [[[2, 1.0], [3, 2.0]], []], "held_out": [[[3, 1.5]], []]}
    assert "</html>" in to_html(comparison)


def test_lines_of_the_page_map_back_to_the_values() -> None:
    """By the numbers at the axes, as a reader would."""
    rows = [{"step": 10 * i, "loss": 2.0 + 1.0 / i, "held_out": 5.0 - 0.3 * i} for i in range(1, 13)]
    comparison = compare_runs([side(rows=rows), side(rows=rows[:3]), side(rows=[])], [])
    page = to_html(comparison)
    drawings = page.split('<svg class="chart"')[1:]
    assert len(drawings) == 2
    for name, drawing in zip(("loss", "held_out"), drawings, strict=True):
        reader = Reader('<svg class="chart"' + drawing.split("</svg>")[0] + "</svg>")
        across = [(float(a["x"] or ""), float(text)) for a, text in reader.all("text", class_="x")]
        down = [(float(a["y"] or ""), float(text)) for a, text in reader.all("text", class_="y")]
        assert len(across) >= 2
        assert len(down) >= 2

        def back(at: float, axis: list[tuple[float, float]]) -> float:
            (a, low), (b, high) = axis[0], axis[-1]
            return low + (at - a) / (b - a) * (high - low)

        lines = [
            [tuple(map(float, pair.split(","))) for pair in (a["points"] or "").split()]
            for a, _ in reader.all("polyline")
        ]
        assert [len(line) for line in lines] == [12, 3]
        for line, measured in zip(lines, (rows, rows[:3]), strict=True):
            for (x, y), row in zip(line, measured, strict=True):
                assert back(x, across) == pytest.approx(row["step"], abs=0.1)
                assert back(y, down) == pytest.approx(row[name], abs=0.01)
                assert 0 <= x <= chart.WIDTH
                assert 0 <= y <= chart.HEIGHT


@pytest.mark.parametrize(
    "points",
    [
        [(1, 2.0)],
        [(1, 2.0), (2, 2.0)],
        [(1, 0.0)],
        [(5, 1e-9), (6, 2e-9)],
        [(1, 5.6), (2, 5.600000000000001)],
        [(1, 1e12), (10**7, 3e12)],
    ],
)
def test_few_equal_and_far_values_are_drawn_too(points: list[tuple[float, float]]) -> None:
    drawn = chart.draw([points, []])
    assert drawn is not None
    assert len(drawn.lines[0]) == len(points)
    assert drawn.x
    assert drawn.y
    assert chart.draw([[], []]) is None


def test_ticks_are_round_even_and_inside() -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    draw = random.Random(seed)
    for _ in range(500):
        low = draw.uniform(-10, 10) * 10 ** draw.randint(-3, 6)
        high = low + draw.uniform(0.01, 10) * 10 ** draw.randint(-1, 6)
        found = chart.ticks(low, high)
        assert 2 <= len(found) <= 8
        assert len({label for _, label in found}) == len(found)
        apart = found[1][0] - found[0][0]
        for i, (number, label) in enumerate(found):
            assert low - apart / 1e6 <= number <= high + apart / 1e6
            assert number == pytest.approx(found[0][0] + i * apart, abs=apart / 1e6)
            assert float(label.replace(",", "")) == pytest.approx(number, abs=apart / 1e6)


def test_bars_share_one_scale() -> None:
    high = chart.sparkline([(step, 8.0 - step) for step in range(1, 9)], 8, last=8, low=0.0, high=7.0)
    assert high == "█▇▆▅▄▃▂▁"
    # a shorter run ends earlier
    assert chart.sparkline([(step, 3.5) for step in range(1, 5)], 8, last=8, low=0.0, high=7.0) == "▅▅▅▅"
    assert chart.sparkline([], 8, last=8, low=0.0, high=7.0) == ""
    assert chart.sparkline([(4, 1.0)], 4, last=4, low=1.0, high=1.0) == "   ▄"


def evil() -> dict[str, Any]:
    bad = side(EVIL, note=EVIL, tags=(EVIL,), report=report(1.0, answers={EVIL: EVIL}))
    return compare_runs(
        [bad, side(loss=2.0)], [DifferingField(field="data.system", kind="identity", values=[EVIL, None])]
    )


def test_what_others_wrote_is_text_on_the_page() -> None:
    page = to_html(evil())
    reader = Reader(page)
    assert {tag for tag, _, _ in reader.found} <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "h3",
        "h4",
        "div",
        "p",
        "span",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "svg",
        "path",
        "polyline",
        "circle",
        "text",
        "g",
        "figure",
        "figcaption",
    }
    assert [text for _, text in reader.all("p", dir="auto")][:2] == [f"the base on {EVIL}", EVIL]
    assert EVIL in [text for _, text in reader.all("h3")]
    assert [text for _, text in reader.all("td")].count(EVIL) == 3  # run, tag, note
    assert not any(
        name.startswith("on") or name in ("src", "href", "style")
        for _, attributes, _ in reader.found
        for name in attributes
    )
    assert "url(" not in page
    assert "//" not in page
    assert "default-src 'none'" in page


def test_what_others_wrote_moves_no_cursor() -> None:
    plain = to_text(evil(), 100, colour=False)
    assert all(char == "\n" or char.isprintable() for char in plain)
    assert "[bold]red[/bold]" in plain
    assert "</p><script>" in plain
    assert "\x1b[2J" not in to_text(evil(), 100, colour=True)


def test_colour_is_for_terminals() -> None:
    comparison = compare_runs([side(loss=2.0), side(loss=1.0)], [])
    assert "*1.0000" in to_text(comparison, 80, colour=False)
    assert "\x1b[1;32m*1.0000" in to_text(comparison, 80, colour=True)


@pytest.mark.parametrize("width", [30, 80, 120])
@pytest.mark.parametrize("count", [2, 5, 20])
def test_lines_fit_the_terminal_and_nothing_is_lost(width: int, count: int) -> None:
    chinese = "我是一个很长的回答，中间没有空格，" * 6
    runs = [
        side(
            f"客服-第{i}次-{i:08x}",
            loss=1.0 + i,
            note="third try",
            report=report(1.0 + i, answers={"你是谁？": chinese + str(i)}),
        )
        for i in range(count)
    ]
    values = [f"/data/{'long' * 12}/客服{i}.jsonl" for i in range(count)]
    comparison = compare_runs(
        runs,
        [
            DifferingField(field="data.path", kind="place", values=values),
            DifferingField(field="seed", kind="identity", values=list(range(count))),
        ],
    )
    text = to_text(comparison, width, colour=False)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    together = re.sub(r"\s", "", text)
    for expected in (
        *values,
        *(chinese + str(i) for i in range(count)),
        *(f"{1.0 + i:.4f}" for i in range(count)),
    ):
        assert expected in together


def test_places_stay_off_the_page() -> None:
    values: list[Any] = [
        "/home/someone/secret/rows.jsonl",
        "other/rows.jsonl",
        ("/home/someone/secret/a.jsonl", "b.jsonl"),
        None,
    ]
    page = to_html(
        compare_runs(
            [side() for _ in values], [DifferingField(field="data.path", kind="place", values=values)]
        )
    )
    cells = [text for _, text in Reader(page).all("td", dir="auto") if "jsonl" in text or text == "null"]
    assert cells == ["rows.jsonl", "rows.jsonl, elsewhere", '["a.jsonl", "b.jsonl"]', "null"]
    assert "secret" not in page


def test_runs_that_have_nothing_yet() -> None:
    nothing = [
        side(f"run-{i}", loss=None, state="not trained", train={}, convert={}, rows=[], held_out=None)
        for i in range(2)
    ]
    comparison = compare_runs(nothing, [])
    assert "no field of the configs differs" in to_text(comparison, 80, colour=False)
    assert "None of the runs has been trained" in to_html(comparison)


def test_curves_can_be_seen_in_light_and_dark() -> None:
    """Contrast as WCAG 2 computes it, of each curve's colour and of the text against the paper."""

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
        parts = [value / 255 for value in bytes.fromhex(digits)]
        red, green, blue = (
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = (
        dict(re.findall(r"--(\w+): (#\w+);", block))
        for block in re.findall(r":root \{(.*?)\}", to_html(evil()), re.DOTALL)
    )
    assert light.keys() == dark.keys()
    for scheme in (light, dark):
        for name, colour in scheme.items():
            least = 4.5 if name in ("ink", "quiet") else 3.0 if re.fullmatch(r"c\d", name) else 1.0
            a, b = sorted((luminance(colour), luminance(scheme["paper"])))
            assert (b + 0.05) / (a + 0.05) >= least, (name, colour)


LAYOUT = """<!doctype html><iframe id="page" src="page.html" style="width: 390px; height: 900px"></iframe>
<pre></pre>
<script>
addEventListener("load", () => {
  const page = document.getElementById("page").contentDocument;
  const all = (what) => [...page.querySelectorAll(what)];
  const size = (node) => node.getBoundingClientRect();
  document.querySelector("pre").textContent = JSON.stringify({
    page: page.documentElement.scrollWidth,
    beside: all(".wide").map((node) => node.scrollWidth - node.clientWidth),
    names: all(".runs td:nth-child(2)").map((node) => size(node).height),
    right: Math.max(...all("td").map((node) => size(node).right)),
    numbers: all("svg.chart text").map((node) => size(node).height),
  });
});
</script>"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
@pytest.mark.parametrize("runs", [2, 4])
def test_a_telephone_shows_all_of_the_page(runs: int, tmp_path: Path) -> None:
    rows = [{"step": step, "loss": 9 / step, "held_out": 2.0} for step in range(1, 40)]
    sides = [side(f"model-lora-support_desk-{n:08x}", loss=1.0 + n, rows=rows) for n in range(runs)]
    lr = DifferingField(field="algo.optim.lr", kind="identity", values=[1e-4 * n for n in range(runs)])
    (tmp_path / "page.html").write_text(to_html(compare_runs(sides, [lr])), encoding="utf-8")
    (tmp_path / "frame.html").write_text(LAYOUT, encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-web-security --allow-file-access-from-files"
    done = subprocess.run(
        [
            "chromium",
            *flags.split(),
            f"--user-data-dir={tmp_path}/profile",
            "--virtual-time-budget=5000",
            "--dump-dom",
            (tmp_path / "frame.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = re.search(r"<pre>(.+?)</pre>", done.stdout)
    assert found, done.stdout[-2000:]
    layout = json.loads(found[1])
    assert layout["page"] <= 390
    assert layout["beside"] == [0] * len(layout["beside"])  # nothing is out of sight to the right
    assert layout["right"] <= 390
    assert max(layout["names"]) < 30  # a run's name stands on one line
    assert min(layout["numbers"]) > 10  # pixels
