"""The page of one run: what the base said and what the tuned model says, as JSON and Markdown.

A report holds measured values and answers to questions of the config, or to held-out rows, which then stand
in it. It holds no paths, host names or times.
"""

import re
from collections.abc import Mapping
from typing import Any

from tuner.report.answered import BITS, decoding, differences
from tuner.report.printable import visible

VERSION = 1

HELD_OUT = (
    " The questions are first turns of rows that were kept out of training; expected is what stands there."
)
SAME = (
    "`chat`, and transformers on the merged model, answer from the same weights, in the same dtype and by "
    "the same decoding; only rounding may still change a word."
)
OTHERWISE = "`chat`, and transformers on the merged model, answer from the same weights, but:"
LITTLE = 2_000
"""held-out tokens, under which a loss says little"""


def compare_measurements(
    before: Mapping[str, Any], after: Mapping[str, Any], how: Mapping[str, Any]
) -> dict[str, Any]:
    """Two measurements ({"loss", "perplexity", "tokens", "answers"}) as one report; `how` they were asked,
    see `answered`.

    Raises ValueError when they are not over the same held-out tokens and questions: a comparison would mean
    nothing.
    """
    questions = [row["prompt"] for row in before["answers"]]
    if before["tokens"] != after["tokens"] or questions != [row["prompt"] for row in after["answers"]]:
        raise ValueError("the two measurements are over different held-out tokens or questions")
    answers = [
        {"prompt": b["prompt"], "before": b["answer"], "after": a["answer"]}
        | {name: b[name] for name in ("expected",) if name in b}
        for b, a in zip(before["answers"], after["answers"], strict=True)
    ]
    return {
        "version": VERSION,
        "held_out": {
            "tokens": before["tokens"],
            "loss": {"before": before["loss"], "after": after["loss"]},
            "perplexity": {"before": before["perplexity"], "after": after["perplexity"]},
        },
        "answers": answers,
        "answered": dict(how),
    }


def headline(report: Mapping[str, Any]) -> str:
    """The held-out loss in one line.

    >>> loss, nothing = {"before": 2.0, "after": 1.5}, {"before": None, "after": None}
    >>> perplexity = {"before": 7.389, "after": 4.4817}
    >>> headline({"held_out": {"tokens": 120_000, "loss": loss, "perplexity": perplexity}})
    'held-out loss 2.0000 → 1.5000, perplexity 7.389 → 4.482, over 120,000 tokens'
    >>> headline({"held_out": {"tokens": 0, "loss": nothing, "perplexity": nothing}})
    'nothing was held out (data.held_out=0), so no loss was measured'
    """
    held_out = report["held_out"]
    loss, perplexity = held_out["loss"], held_out["perplexity"]
    if loss["before"] is None or loss["after"] is None:
        return "nothing was held out (data.held_out=0), so no loss was measured"
    return (
        f"held-out loss {loss['before']:.4f} → {loss['after']:.4f}, perplexity {perplexity['before']:.4g} → "
        f"{perplexity['after']:.4g}, over {tokens_measured(held_out['tokens'])}"
    )


def tokens_measured(tokens: int, *, briefly: bool = False) -> str:
    """How many held-out tokens a loss is over, and whether that is little; `briefly`, where the result says
    what that means.

    >>> tokens_measured(2000), tokens_measured(174)
    ('2,000 tokens', '174 tokens, which is little: under 2,000 a small difference may be chance')
    """
    if tokens >= LITTLE:
        return f"{tokens:,} tokens"
    why = "" if briefly else f": under {LITTLE:,} a small difference may be chance"
    return f"{tokens:,} tokens, which is little{why}"


def to_markdown(report: Mapping[str, Any]) -> str:
    """The report as a page. Answers are quoted with their markup escaped: they show as the model wrote
    them.
    """
    held_out = report["held_out"]
    lines = ["# Before and after", ""]
    if held_out["loss"]["before"] is None or held_out["loss"]["after"] is None:
        lines += [headline(report).capitalize() + "."]
    else:
        lines += ["| | before | after |", "| --- | ---: | ---: |"]
        lines += [
            f"| held-out {key} | {held_out[key]['before']:.4f} | {held_out[key]['after']:.4f} |"
            for key in ("loss", "perplexity")
        ]
        lines += [
            "",
            (
                "Loss in nats per token, over tokens that were kept out of training: "
                f"{tokens_measured(held_out['tokens'])}."
            ),
        ]
    if bits := BITS.get(report["answered"].get("quant", "none")):
        lines += [
            "",
            (
                f"Before is the base as it was published, not the one in {bits} bits that training began "
                "with; after is the adapter in the weights of that one."
            ),
        ]
    if report["answers"]:
        rows = any("expected" in row for row in report["answers"])
        lines += ["", "## Answers", "", decoding(report["answered"]) + HELD_OUT * rows]
        lines += [
            "",
            " ".join([OTHERWISE, *unlike] if (unlike := differences(report["answered"])) else [SAME]),
        ]
    for row in report["answers"]:
        lines += ["", f"### {_escape(_one_line(row['prompt']))}"]
        for key in [key for key in ("before", "after", "expected") if key in row]:
            lines += [
                "",
                f"{key}:",
                "",
                *(f"> {_escape(line)}".rstrip() for line in (row[key] or "(nothing)").splitlines()),
            ]
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "(nothing)"


def _escape(text: str) -> str:
    r"""Backslashes before what Markdown or HTML would read.

    >>> print(_escape("<b> 2*3 | # x"))
    \<b\> 2\*3 \| \# x
    """
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", visible(text))
