"""What the two stages that measure have in common: `baseline` the base, `evaluate` what was trained."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.config.view import View
from tuner.pipeline.sizes import DiskNeed, Quantities
from tuner.pipeline.stage import Context

if TYPE_CHECKING:
    from tuner.train.evaluate import Measurement

MEASURE = {"held_out": 1, "answers": 2}
"""versions of tuner.train.evaluate and tuner.models.generate; answers 2: they end at all that ends those of
`chat` and transformers"""
ROWS = 1
"""of tuner.data.questions: which held-out rows are asked, and how they are told"""
FP32 = 1
"""an adapter that trained in fp32 is measured merged in fp32"""
MEASURED = 64 << 10
"""bytes of losses, answers and a report"""


def measure_versions(view: View) -> dict[str, int]:
    """The pieces that measure, by version."""
    if view.eval.prompts:
        return MEASURE
    return MEASURE | {"rows": ROWS} if view.eval.held_out_rows else {"held_out": MEASURE["held_out"]}


def measure(
    ctx: Context, directory: Path, adapter: Path | None, quant: str = "none"
) -> tuple["Measurement", dict[str, Any]]:
    """The model in `directory` on what a stage was given, and how it was computed; see
    tuner.train.evaluate.measure_model.
    """
    from tuner.train import evaluate

    return evaluate.measure_model(
        ctx.config, ctx.inputs["tokenize"].dir / "held_out.arrow", directory, adapter, quant, ctx.say
    )


def write_result(path: Path, value: dict[str, Any]) -> None:
    """A result as people may read it."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def size(_view: View, _known: Quantities) -> DiskNeed:
    return DiskNeed(peak=MEASURED, stays=MEASURED)
