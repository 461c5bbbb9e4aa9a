"""How much work plans hold: tokens, steps and seconds of training, of one job and of several that share
stages. Standard library only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tuner.config.schema import Config
from tuner.config.view import View
from tuner.data.sampler import Order
from tuner.estimate import disk
from tuner.estimate.model_size import measure_model
from tuner.estimate.training import GpuEstimate, estimate_training
from tuner.pipeline.planned_stage import PlannedStage
from tuner.pipeline.run import store_of
from tuner.pipeline.sizes import DiskNeed


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingWork:
    """What a plan's training takes."""

    order: Order
    """its steps"""
    tokens: float
    """that the model sees"""
    seconds: float | None
    gpu: GpuEstimate | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepWork:
    """What the jobs of a sweep take together, what they share counted once."""

    tokens: int
    """that are trained on"""
    counted: bool
    """whether those are known; else a guess"""
    seconds: float | None
    """of training; None where that is not known of every job"""
    bytes: int
    """of disk"""

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def model_unknown(stages: Mapping[str, PlannedStage], config: Config) -> bool:
    """Whether the model's sizes are not known until a hub is asked."""
    return stages["fetch_model"].unresolved and not (config.model.geometry or config.model.parameters)


def data_unknown(stages: Mapping[str, PlannedStage]) -> bool:
    """Whether tokens and steps are not known until the data is downloaded."""
    data = stages["fetch_data"]
    return data.artifact is None and data.stage.remote.fetches(View(data.config, data.stage.name))


def training_work(stages: Mapping[str, PlannedStage], config: Config) -> TrainingWork | None:
    """What there is to train; None where nothing is, or where the model or the data is not known."""
    if (
        "train" not in stages
        or not stages["train"].to_do
        or model_unknown(stages, config)
        or data_unknown(stages)
    ):
        return None
    tokens, packs, _ = disk.epoch_size(stages, config)
    order = disk.training_order(packs, config)
    made = stages["tokenize"].artifact
    ahead = estimate_training(
        measure_model(stages["fetch_model"]).geometry, config, order, made.manifest["facts"] if made else None
    )
    seen = order.end * tokens / packs
    return TrainingWork(
        order=order, tokens=seen, seconds=_seconds(seen, config, ahead), gpu=ahead[0] if ahead else None
    )


def _seconds(tokens: float, config: Config, ahead: tuple[GpuEstimate, float | None] | None) -> float | None:
    """How long training takes: from the speed of an earlier run in this store on the same GPU, whatever it
    trained; else from its FLOPs.
    """
    card = ahead[0].card.name if ahead else None
    done = [artifact.manifest["facts"] for artifact in store_of(config).all("train")]
    speeds = [facts["tokens_per_second"] for facts in done if facts.get("gpu") == card]
    return tokens / speeds[-1] if speeds else ahead[1] if ahead else None


def sweep_work(jobs: Sequence[tuple[Sequence[PlannedStage], Config]]) -> SweepWork:
    """What the plans of all jobs take together."""
    needs: dict[str, DiskNeed] = {}
    tokens, counted, spent = 0.0, True, list[float | None]()
    for stages, config in jobs:
        by_name = {planned.stage.name: planned for planned in stages}
        own = disk.disk_needs(stages, config)
        to_do = [planned.stage.name for planned in stages if planned.to_do]
        new = [name for name, key in zip(to_do, own, strict=True) if key not in needs]
        needs |= {key: need for key, need in own.items() if key not in needs}
        if "train" not in new:
            continue
        work = training_work(by_name, config)
        counted = counted and work is not None and disk.epoch_size(by_name, config)[2]
        tokens += work.tokens if work else 0
        spent.append(work.seconds if work else None)
    known = [seconds for seconds in spent if seconds is not None]
    return SweepWork(
        tokens=round(tokens),
        counted=counted,
        seconds=sum(known) if spent and len(known) == len(spent) else None,
        bytes=disk.peak_bytes(needs.values()),
    )
