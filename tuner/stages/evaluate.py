"""evaluate: the tuned model measured as the base was, and the two side by side in a report.

An adapter is merged in memory, to the very weights that merge would write: no merged model has to be on the
disk for this.
"""

import json
from typing import Any

from tuner.config.view import View
from tuner.files import read_json
from tuner.models.checkpoint.files import ADAPTER_FILES
from tuner.pipeline.stage import Context, Stage
from tuner.report import page
from tuner.report.answered import answered
from tuner.stages.measured import FP32, measure, measure_versions, size, write_result

PAGE = 3
"""2: says where held-out tokens are few; 3: how the answers were computed, and who would answer otherwise"""
QUANT = 1
"""with a base in 4 or 8 bits, the report says what its "before" is"""


def versions(view: View) -> dict[str, int]:
    merged = {"fp32": FP32} if view.algo.precision == "fp32" else {}
    quant = {"quant": QUANT} if view.algo.quant != "none" else {}
    return measure_versions(view) | {"page": PAGE} | merged | quant


def run(ctx: Context) -> dict[str, Any]:
    """Write eval.json, report.json and report.md."""
    tuned = ctx.inputs["convert"]
    adapted = ADAPTER_FILES[0] in tuned.files
    base, adapter, quant = (
        (ctx.inputs["fetch_model"].dir, tuned.dir, ctx.config.algo.quant)
        if adapted
        else (tuned.dir, None, "none")
    )
    result, facts = measure(ctx, base, adapter, quant)
    before = json.loads((ctx.inputs["baseline"].dir / "baseline.json").read_text(encoding="utf-8"))
    after = result.to_json()
    how = answered(
        precision=ctx.config.algo.precision,
        quant=quant,
        most=ctx.config.eval.max_new_tokens,
        facts=facts,
        before=ctx.inputs["baseline"].facts,
        settings=read_json(tuned.dir / "generation_config.json") or {},
    )
    report = page.compare_measurements(before, after, how)
    write_result(ctx.out / "eval.json", after)
    write_result(ctx.out / "report.json", report)
    (ctx.out / "report.md").write_text(page.to_markdown(report), encoding="utf-8")
    ctx.say(page.headline(report))
    return {"loss": result.loss, "base_loss": before["loss"], "tokens": result.tokens} | facts


STAGE = Stage(
    name="evaluate",
    version=1,
    run=run,
    upstream=("baseline", "fetch_model", "convert", "tokenize"),
    versions=versions,
    child=True,
    computes=True,
    product=lambda _: True,
    size=size,
    must_have=lambda *_: ("eval.json", "report.json", "report.md"),
)
