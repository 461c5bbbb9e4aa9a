"""What a plan will take of the disk: the bytes of each artifact that is to be made, and whether the disk
holds them all.

The sizes follow from the shapes of the model's tensors, which the headers of its files tell; only the number
of tokens is a guess until they are counted. Standard library only, so that a plan costs milliseconds.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tuner.config.schema import Algo, Config
from tuner.config.view import View, identity_fields
from tuner.data.sampler import Order, plan_order
from tuner.errors import StoreError
from tuner.estimate.model_size import ModelSize, measure_model, trainable_size
from tuner.estimate.trained_model import count_trainable
from tuner.files import bytes_under
from tuner.pipeline.advice import command
from tuner.pipeline.planned_stage import PlannedStage
from tuner.pipeline.run import store_of
from tuner.pipeline.sizes import DiskNeed, Quantities
from tuner.report.byte_size import readable_bytes
from tuner.store.digests import json_digest

BYTES_A_TOKEN = 4
"""of JSONL, for a data set that was not tokenized yet: between English and Chinese, with the keys and
quotes around the text
"""

SHARE, BLOCKS = 20, 64 << 10
"""What should be free besides: a 20th for guesses and the file system's own books, and 64 KiB an artifact,
since each file fills up its last block. No flat reserve: a small run should start on a small disk, for the
only way around a refusal is another disk."""


def disk_needs(stages: Sequence[PlannedStage], config: Config) -> dict[str, DiskNeed]:
    """The need of each stage that is to do, in their order, by its artifact's key: jobs that will share an
    artifact have it under one key.

    While a fingerprint is not known, a digest of what will decide it stands in, behind a `~`. Files that
    can't be read count with a guess from their size, since the stage that reads them says better what is
    wrong.
    """
    if not any(planned.to_do for planned in stages):
        return {}
    store, by_name = store_of(config), {planned.stage.name: planned for planned in stages}
    known = quantities(by_name, config)
    identities: dict[str, str] = {}
    found = {}
    for name, planned in by_name.items():
        places = {file: str(path.absolute()) for file, path in planned.sources.items()}
        upstream = [identities[before] for before in planned.stage.upstream]
        guess = json_digest(
            {"stage": name, "inputs": identity_fields(config, name), "sources": places, "upstream": upstream}
        )
        identities[name] = planned.known_as or guess
        if planned.to_do:
            need = planned.stage.size(View(config, name), known)
            there = bytes_under(store.partial(planned.key)) if planned.key else 0  # gone on from, or removed
            found[planned.key or f"{name}-~{guess[:12]}"] = DiskNeed(
                peak=max(0, need.peak - there), stays=max(0, need.stays - there)
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
    for stages, config in jobs:
        found = stores.setdefault(store_of(config).root, {})
        for key, need in disk_needs(stages, config).items():
            found.setdefault(key, need)
    for root, found in stores.items():
        wanted = peak_bytes(found.values())
        wanted += wanted // SHARE + BLOCKS * len(found)
        room = _room(root) if free is None else free
        if found and room is not None and wanted > room:
            clean = command("clean", root=jobs[0][1].root, store=jobs[0][1].store)
            who = "This run needs" if len(jobs) == 1 else f"These {len(jobs)} jobs need"
            raise StoreError(
                f"{who} about {readable_bytes(wanted)} of disk, and {root} has {readable_bytes(room)} free; "
                f"the most goes to {_largest(found)}. Nothing was started. Make space ({clean} removes what "
                "no run uses), or put the store on a larger disk with store=DIR. Less is needed with "
                "machine.keep=1 (fewer saved steps stay) and with merge.when=never (no merged model)."
            )


def _largest(found: Mapping[str, DiskNeed]) -> str:
    """The three stages that take the most, in words."""
    stages: dict[str, list[DiskNeed]] = {}
    for key, need in found.items():
        stages.setdefault(key.partition("-")[0], []).append(need)
    largest = sorted(((peak_bytes(group), name, len(group)) for name, group in stages.items()), reverse=True)
    return ", ".join(
        f"{f'{count} × ' if count > 1 else ''}{name} ({readable_bytes(size)})"
        for size, name, count in largest[:3]
    )


def download_size(stages: Mapping[str, PlannedStage], config: Config) -> tuple[int, int, bool] | None:
    """Bytes to download, bytes that are here already, and whether that was counted: before a hub was asked, a
    model's size follows from its shapes.

    None where nothing is to be downloaded, or nothing is known of it.
    """
    missing = here = 0
    counted = True
    for planned in stages.values():
        if not planned.to_do or not planned.stage.remote.fetches(View(planned.config, planned.stage.name)):
            continue
        if not planned.unresolved:
            more, there = planned.stage.remote.cost(
                View(planned.config, planned.stage.name), store_of(config).partial(planned.key or "-")
            )
            missing, here = missing + more, here + there
        elif planned.stage.name == "fetch_model":
            shapes = measure_model(planned)
            missing, counted = missing + shapes.parameters * 2 + shapes.tokenizer, False
    return (missing, here, counted) if missing or here else None


def epoch_size(stages: Mapping[str, PlannedStage], config: Config) -> tuple[int, int, bool]:
    """Tokens and packs of the training set, and whether they were counted; else they are a guess from the
    size of the data.
    """
    if made := stages["tokenize"].artifact:
        return made.manifest["facts"]["tokens"], made.manifest["facts"]["packs"], True
    data = stages["fetch_data"]
    size = sum(bytes_under(path) for path in data.sources.values()) + (
        data.artifact.size() if data.artifact else 0
    )
    tokens = max(1, size // BYTES_A_TOKEN)
    return tokens, -(-tokens // config.data.length), False


def training_order(packs: int, config: Config) -> Order:
    """The steps of training on `packs` packs."""
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


def quantities(stages: Mapping[str, PlannedStage], config: Config) -> Quantities:
    """What decides the sizes of all that the plan makes."""
    model = measure_model(stages["fetch_model"])
    parameters, tensors = trainable_size(model, config.algo)
    tokens, packs, counted = epoch_size(stages, config) if "tokenize" in stages else (0, 0, False)
    return Quantities(
        parameters=model.parameters,
        tensors=model.tensors,
        tokenizer=model.tokenizer,
        gguf=model.gguf,
        trainable=parameters,
        trainable_tensors=tensors,
        optimizer_state=_optimizer_state(parameters, model, config.algo),
        tokens=tokens,
        steps=training_order(packs, config).steps if packs else 0,
        counted=counted,
    )


def _optimizer_state(numbers: int, shapes: ModelSize, algo: Algo) -> int:
    """Bytes of what the optimizer remembers."""
    inside = (
        numbers if algo.uses_adapter or shapes.geometry is None else count_trainable(shapes.geometry, algo)[1]
    )
    return int(algo.optim.kind.saved * inside + algo.optim.kind.elsewhere * (numbers - inside))


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
