"""What tuner.estimate says of this training's memory, in the words of a probe."""

from dataclasses import dataclass, replace
from typing import Any

from tuner.config.schema import Algo
from tuner.errors import DataError
from tuner.estimate.memory import CONTEXT, MemoryEstimator, Workload
from tuner.estimate.what_fits import plain_algo, ways_to_fit
from tuner.files import read_json
from tuner.models.geometry import Geometry
from tuner.pipeline.stage import Context
from tuner.train.preflight.memory_probe import MemoryEstimate, MicroBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeEstimate:
    """What tuner.estimate.memory says of this training."""

    geometry: Geometry
    algo: Algo
    work: Workload
    """with the processes that share it"""
    length: int
    estimator: MemoryEstimator

    def reserved(self, asked: MicroBatch) -> float:
        return self.estimator.at(self._workload(asked)).reserved

    def ways(self, asked: MicroBatch, room: float) -> list[str]:
        return ways_to_fit(
            self.geometry,
            self.algo,
            self._workload(asked),
            room + CONTEXT,
            length=self.length,
            micro=asked.setting.micro,
        )

    def _workload(self, asked: MicroBatch) -> Workload:
        return replace(
            self.work,
            tokens=asked.tokens,
            targets=asked.targets,
            accumulated=asked.accumulated,
            recompute=asked.setting.recompute,
            compiled=asked.compiled,
        )


def memory_estimate(ctx: Context, facts: dict[str, Any]) -> MemoryEstimate | None:
    """What estimates can tell; None for a family whose shapes are not known."""
    geometry = read_json(ctx.inputs["fetch_model"].dir / "config.json") or {}
    work = Workload(
        tokens=2,
        targets=1,
        new_tokens=len(ctx.config.model.new_tokens),
        engine=facts["engine"],
        zero=facts["zero"],
        processes=facts["processes"],
        offload=facts["offload"],
        sequence_parallel=facts["sequence_parallel"],
        fused_layers="adapter_linear" in facts.get("kernels", {}),
        fused_head="linear_cross_entropy" in facts.get("kernels", {}),
    )
    found = ShapeEstimate(
        geometry=geometry,
        algo=(algo := plain_algo(ctx.config.algo)),
        work=work,
        length=ctx.config.data.length,
        estimator=MemoryEstimator(geometry, algo),
    )
    try:
        found.estimator.at(work)
    except DataError:
        return None
    return found
