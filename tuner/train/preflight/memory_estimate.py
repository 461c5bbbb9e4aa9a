"""What tuner.estimate says of this training's memory, in the words of a probe."""

from dataclasses import dataclass, replace
from typing import Any

from tuner.config.schema import Algo
from tuner.errors import DataError
from tuner.estimate.memory import CONTEXT, MemoryEstimator, Workload
from tuner.estimate.recompute import Setting
from tuner.estimate.what_fits import plain_algo, ways_to_fit
from tuner.files import read_json
from tuner.models.geometry import Geometry
from tuner.pipeline.stage import Context
from tuner.train.preflight.memory_probe import MemoryEstimate


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeEstimate:
    """What tuner.estimate.memory says of this training."""

    geometry: Geometry
    algo: Algo
    work: Workload
    """with the processes that share it"""
    length: int
    estimator: MemoryEstimator

    def at(
        self, tokens: int, targets: int, setting: Setting, *, accumulated: bool, compiled: bool
    ) -> Workload:
        return replace(
            self.work,
            tokens=tokens,
            targets=targets,
            accumulated=accumulated,
            recompute=setting.recompute,
            compiled=compiled,
        )

    def reserved(
        self, tokens: int, targets: int, setting: Setting, *, accumulated: bool, compiled: bool
    ) -> float:
        work = self.at(tokens, targets, setting, accumulated=accumulated, compiled=compiled)
        return self.estimator.at(work).reserved

    def ways(
        self,
        tokens: int,
        targets: int,
        setting: Setting,
        *,
        accumulated: bool,
        compiled: bool,
        room: float,
    ) -> list[str]:
        work = self.at(tokens, targets, setting, accumulated=accumulated, compiled=compiled)
        return ways_to_fit(
            self.geometry, self.algo, work, room + CONTEXT, length=self.length, micro=setting.micro
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
