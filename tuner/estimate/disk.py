"""What a plan will take of the disk: the bytes of each artifact that is to be made, and whether the disk
holds them all.

The sizes follow from the shapes of the model's tensors, which the headers of its files tell; only the number
of tokens is a guess until they are counted. Standard library only, so that a plan costs milliseconds.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuner.config.schema import Algo, Config
from tuner.config.view import View, identity_fields
from tuner.data.sampler import Order, plan_order
from tuner.errors import StoreError
from tuner.estimate.memory import count_trainable
from tuner.estimate.model_size import ModelSize, measure_model, trainable_size
from tuner.files import bytes_under
from tuner.pipeline.plan import PlannedStage
from tuner.pipeline.run import store_of
from tuner.store.artifacts import digest

BYTES_A_TOKEN = 4
"""of JSONL, for a data set that was not tokenized yet: between English and Chinese, with the keys and
quotes around the text
"""
PACKED, FRAMES = 4.6, 4200
"""bytes of a token in tuner.data.packs (its id, its bit of the loss mask, its share of a short document's
numbers); of both files' schema and footer
"""
TENSOR = 128
"""bytes of a tensor's entry in the header of a safetensors file"""
MANIFEST, SETTINGS, MEASURED = 2560, 2048, 64 << 10
"""bytes of an artifact's manifest; of the small files beside weights; of losses, answers and a report"""
ROW, POINTS = 160, 320
"""bytes of a step's line in metrics.jsonl, and of its points for TensorBoard"""
RESUMABLE = 2
"""saved steps that keep the optimizer's moments while tuner.train.loop trains"""

SHARE, BLOCKS = 20, 64 << 10
"""What should be free besides: a 20th for guesses and the file system's own books, and 64 KiB an artifact,
since each file fills up its last block. No flat reserve: a small run should start on a small disk, for the
only way around a refusal is another disk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DiskNeed:
    """Bytes that the making of one artifact adds to the disk."""

    peak: int
    """at most, while it is made"""
    stays: int
    """once it is published"""


def disk_needs(steps: Sequence[PlannedStage], config: Config) -> dict[str, DiskNeed]:
    """The need of each stage that is to do, in their order, by its artifact's key: jobs that will share an
    artifact have it under one key.

    While a fingerprint is not known, a digest of what will decide it stands in, behind a `~`. Files that
    can't be read count with a guess from their size, since the stage that reads them says better what is
    wrong.
    """
    if not any(step.to_do for step in steps):
        return {}
    store, by_name = store_of(config), {step.stage.name: step for step in steps}
    shapes = measure_model(by_name["fetch_model"])
    identities: dict[str, str] = {}
    found = {}
    for name, step in by_name.items():
        places = {file: str(path.absolute()) for file, path in step.sources.items()}
        upstream = [identities[before] for before in step.stage.upstream]
        guess = digest(
            {"stage": name, "inputs": identity_fields(config, name), "sources": places, "upstream": upstream}
        )
        identities[name] = step.known_as or guess
        if step.to_do:
            peak, stays = _sizes(name, shapes, by_name, config)
            there = bytes_under(store.partial(step.key)) if step.key else 0  # gone on from, or removed
            found[step.key or f"{name}-~{guess[:12]}"] = DiskNeed(
                peak=max(0, peak - there), stays=max(0, stays - there)
            )
    return found


def peak_bytes(found: Iterable[DiskNeed]) -> int:
    """Bytes that these add at once, at most, when they are made one after the other.

    >>> peak_bytes([DiskNeed(peak=9, stays=4), DiskNeed(peak=3, stays=3)])
    9
    """
    lying = highest = 0
    for need in found:
        highest = max(highest, lying + max(need.peak, need.stays))
        lying += need.stays
    return highest


def check_disk(jobs: Sequence[tuple[Sequence[PlannedStage], Config]], free: int | None = None) -> None:
    """Raise StoreError when the disk does not hold what the plans of all `jobs` make, one job after the
    other.

    `free` is the room in bytes; by default what the file system says. A quota is not seen.
    """
    stores: dict[Path, dict[str, DiskNeed]] = {}
    for steps, config in jobs:
        found = stores.setdefault(store_of(config).root, {})
        for key, need in disk_needs(steps, config).items():
            found.setdefault(key, need)
    for root, found in stores.items():
        wanted = peak_bytes(found.values())
        wanted += wanted // SHARE + BLOCKS * len(found)
        room = _room(root) if free is None else free
        if found and room is not None and wanted > room:
            who = "This run needs" if len(jobs) == 1 else f"These {len(jobs)} jobs need"
            raise StoreError(
                f"{who} about {readable(wanted)} of disk, and {root} has {readable(room)} free; the most "
                f"goes to {_largest(found)}. Nothing was started. Make space (python -m tuner clean removes "
                "what no run uses), or put the store on a larger disk with store=DIR. Less is needed with "
                "machine.keep=1 (fewer saved steps stay) and with merge.when=never (no merged model)."
            )


def _largest(found: Mapping[str, DiskNeed]) -> str:
    """The three stages that take the most, in words."""
    stages: dict[str, list[DiskNeed]] = {}
    for key, need in found.items():
        stages.setdefault(key.partition("-")[0], []).append(need)
    largest = sorted(((peak_bytes(group), name, len(group)) for name, group in stages.items()), reverse=True)[
        :3
    ]
    return ", ".join(
        f"{f'{count} × ' if count > 1 else ''}{name} ({readable(size)})" for size, name, count in largest
    )


def readable(size: int) -> str:
    """A number of bytes for a person.

    >>> readable(65_536), readable(269_060_552), readable(6_500_000_000)
    ('66 kB', '269 MB', '6.50 GB')
    """
    return (
        f"{size / 1e9:.2f} GB"
        if size >= 1e9
        else f"{size / 1e6:.0f} MB"
        if size >= 1e7
        else f"{size / 1e3:,.0f} kB"
    )


def download_size(steps: Mapping[str, PlannedStage], config: Config) -> tuple[int, int, bool] | None:
    """Bytes to download, bytes that are here already, and whether that was counted: before a hub was asked, a
    model's size follows from its shapes.

    None where nothing is to be downloaded, or nothing is known of it.
    """
    missing = here = 0
    counted = True
    for step in steps.values():
        if not step.to_do or not step.stage.fetches(View(step.config, step.stage.name)):
            continue
        if not step.unresolved:
            more, there = step.stage.cost(
                View(step.config, step.stage.name), store_of(config).partial(step.key or "-")
            )
            missing, here = missing + more, here + there
        elif step.stage.name == "fetch_model":
            shapes = measure_model(step)
            missing, counted = missing + shapes.parameters * 2 + shapes.tokenizer, False
    return (missing, here, counted) if missing or here else None


def epoch_size(steps: Mapping[str, PlannedStage], config: Config) -> tuple[int, int, bool]:
    """Tokens and packs of the training set, and whether they were counted; else they are a guess from the
    size of the data.
    """
    if made := steps["tokenize"].artifact:
        return made.manifest["facts"]["tokens"], made.manifest["facts"]["packs"], True
    data = steps["fetch_data"]
    size = sum(bytes_under(path) for path in data.sources.values()) + (
        data.artifact.size() if data.artifact else 0
    )
    tokens = max(1, size // BYTES_A_TOKEN)
    return tokens, -(-tokens // config.data.length), False


def training_order(packs: int, config: Config) -> Order:
    """The steps that a training on `packs` packs does."""
    algo = config.algo
    order = plan_order(
        packs,
        config.data.length,
        seed=config.seed,
        epochs=algo.epochs,
        steps=algo.steps,
        batch_tokens=algo.batch_tokens,
    )
    return order.until(algo.stop_step)


def _sizes(
    stage: str, shapes: ModelSize, steps: Mapping[str, PlannedStage], config: Config
) -> tuple[int, int]:
    """Bytes of a stage's artifact: at most while it is made, and once it is published."""
    numbers, tensors = trainable_size(shapes, config.algo)
    beside = shapes.tokenizer + SETTINGS + MANIFEST
    whole = shapes.parameters * 2 + shapes.tensors * TENSOR
    adapter = config.algo.uses_adapter
    match stage:
        case "fetch_model" if shapes.gguf:
            return whole + beside + shapes.tokenizer, whole + beside  # the tokenizer is written twice
        case "fetch_model" if not (step := steps[stage]).stage.references(view := View(step.config, stage)):
            copies = bool(step.stage.versions(view)) + step.stage.fetches(view)  # what was rewritten goes
            return (whole + beside) * copies, whole + beside
        case "tokenize":
            size = int(epoch_size(steps, config)[0] * PACKED) + FRAMES + MANIFEST
            return 2 * size, size  # the documents, until they are packed
        case "train":
            return _training(numbers, tensors, _remembered(numbers, shapes, config.algo), steps, config)
        case "convert":
            size = (
                (numbers if adapter else shapes.parameters)
                * (4 if adapter or config.algo.precision == "fp32" else 2)
                + tensors * TENSOR
                + beside
            )
        case "merge":
            wide = shapes.parameters * (4 if config.algo.precision == "fp32" else 2) + shapes.tensors * TENSOR
            size = wide + beside if adapter else MANIFEST  # else hard links
        case "baseline" | "evaluate":
            size = MEASURED
        case _:
            size = 0  # the person's own files, referenced
    return size, size


def _remembered(numbers: int, shapes: ModelSize, algo: Algo) -> int:
    """Bytes of what the optimizer remembers."""
    inside = (
        numbers if algo.uses_adapter or shapes.geometry is None else count_trainable(shapes.geometry, algo)[1]
    )
    return int(algo.optim.kind.saved * inside + algo.optim.kind.elsewhere * (numbers - inside))


def _training(
    numbers: int, tensors: int, remembered: int, steps: Mapping[str, PlannedStage], config: Config
) -> tuple[int, int]:
    """Of the saved steps: fp32 weights of the newest, the best and convert.step's, and the optimizer's
    moments where a training may go on from.

    A step is written before the oldest goes, so there is one more at the peak.
    """
    machine, stop = config.machine, config.algo.stop_step
    weights, moments = 4 * numbers + TENSOR * tensors, remembered + 3 * TENSOR * tensors
    _, packs, counted = epoch_size(steps, config)
    length, pinned = training_order(packs, config).steps, isinstance(config.convert.step, int)
    saves = -(-length // machine.save_every) + pinned if counted or config.algo.steps else machine.keep + 1
    beside = (saves > machine.keep) + pinned  # the best may be one of the newest too
    earlier = min(machine.keep, saves - 1) + beside
    journal = MANIFEST + SETTINGS + length * (ROW + POINTS * ("tensorboard" in machine.trackers))
    resumable = config.train.keep == "resume" or (config.train.keep == "auto" and stop is not None)
    peak = (earlier + 1) * weights + (min(RESUMABLE, earlier) + 1) * moments
    return peak + journal, (min(machine.keep, saves) + beside) * weights + resumable * moments + journal


def _room(root: Path) -> int | None:
    """Free bytes where the store is, or will be; None when that can't be told, and making the store will
    say why.
    """
    try:
        return shutil.disk_usage(
            next(path for path in (root, *root.absolute().parents) if path.exists())
        ).free
    except OSError:
        return None
