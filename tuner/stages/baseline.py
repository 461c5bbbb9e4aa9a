"""baseline: the base model's loss and answers before training. It depends on no training, so a sweep has
one.
"""

from pathlib import Path
from typing import Any

from tuner.config.view import View
from tuner.models.checkpoint.files import adapter_sources
from tuner.pipeline.stage import Context, Stage
from tuner.stages.measured import FP32, measure, measure_versions, size, write_result


def versions(view: View) -> dict[str, int]:
    merged = {"fp32": FP32} if view.algo.precision == "fp32" and view.algo.init == "continue" else {}
    return measure_versions(view) | merged


def run(ctx: Context) -> dict[str, Any]:
    """Write baseline.json."""
    adapter = Path(ctx.config.model.adapter) if ctx.config.algo.init == "continue" else None
    result, facts = measure(ctx, ctx.inputs["fetch_model"].dir, adapter)
    write_result(ctx.out / "baseline.json", result.to_json())
    return {"loss": result.loss, "tokens": result.tokens} | facts


STAGE = Stage(
    name="baseline",
    version=1,
    run=run,
    upstream=("fetch_model", "tokenize"),
    versions=versions,
    sources=adapter_sources,
    child=True,
    computes=True,
    stop=False,
    size=size,
    must_have=lambda *_: ("baseline.json",),
)
