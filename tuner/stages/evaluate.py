"""evaluate: the tuned model measured as the base was, and the two side by side in a report."""

import json
from typing import Any

from tuner.report import page
from tuner.stage import Context, Stage, View
from tuner.stages import baseline

PAGE = 1


def versions(view: View) -> dict[str, int]:
    return baseline.versions(view) | {"page": PAGE}


def run(ctx: Context) -> dict[str, Any]:
    """Write eval.json, report.json and report.md."""
    result, facts = baseline.measure(ctx, ctx.inputs["merge"].dir)
    before = json.loads((ctx.inputs["baseline"].dir / "baseline.json").read_text(encoding="utf-8"))
    after = result.to_json()
    report = page.compare(before, after)
    baseline.write(ctx.out / "eval.json", after)
    baseline.write(ctx.out / "report.json", report)
    (ctx.out / "report.md").write_text(page.to_markdown(report), encoding="utf-8")
    ctx.say(page.headline(report))
    return {"loss": result.loss, "base_loss": before["loss"], "tokens": result.tokens} | facts


STAGE = Stage(
    name="evaluate",
    version=1,
    run=run,
    upstream=("baseline", "merge", "tokenize"),
    versions=versions,
    child=True,
    product=True,
)
