"""merge: base and adapter → one model directory that loads anywhere, in the dtype in which training held
the base. With full fine-tuning that is convert's, linked.
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tuner.config.view import View
from tuner.errors import ConfigError
from tuner.files import link_or_copy
from tuner.models.checkpoint.files import (
    SETTINGS,
    TEXT,
    TOKENIZED,
    checkpoint_files,
    read_config,
    weight_files,
)
from tuner.models.layouts import detection
from tuner.pipeline.sizes import MANIFEST, DiskNeed, Quantities
from tuner.pipeline.stage import Context, Stage
from tuner.report.byte_size import readable_bytes

ORIGINAL, QUANT = 1, 1
FP32 = 1
"""an adapter that trained in fp32 is merged in fp32"""


def versions(view: View) -> dict[str, int]:
    original = {"original": ORIGINAL} if view.merge.layout == "original" else {}
    whole = {"fp32": FP32} if view.algo.precision == "fp32" and view.algo.uses_adapter else {}
    return (
        {view.algo.adapter: view.algo.method.merge_version}
        | original
        | whole
        | ({"quant": QUANT} if view.algo.quant != "none" else {})
    )


def run(ctx: Context) -> dict[str, Any]:
    """Write the model; facts: its files' bytes, whether they are links, and the layout."""
    base, convert, config = ctx.inputs["fetch_model"].dir, ctx.inputs["convert"], ctx.config
    adapted = config.algo.uses_adapter
    aside = base / detection.ORIGINAL
    # a class of tuner's own is for no other tool to read
    original = (
        config.merge.layout == "original"
        or read_config(base / "config.json").get("model_type") == detection.ALIBI
    )
    if original and not aside.is_dir():
        raise ConfigError(
            "merge.layout=original: this model was not rewritten, so its layout is the original one already. "
            "Leave merge.layout out."
        )
    if not adapted and not original:
        linked = [link_or_copy(path, ctx.out / name) for name, path in sorted(convert.files.items())]
        return {"bytes": weight_bytes(ctx.out), "linked": all(linked), "layout": "native"}

    import torch

    from tuner.models.checkpoint.config_files import write_config
    from tuner.models.checkpoint.safetensors import DTYPES, Checkpoint
    from tuner.models.lora import merge
    from tuner.progress import progress_bar

    if config.machine.threads != "auto":
        torch.set_num_threads(config.machine.threads)
    adapter = convert.dir if adapted else None
    whole = base if adapted else convert.dir
    code, quant = merge.CODES[config.algo.precision], config.algo.quant
    total = sum(spec.nbytes for spec in Checkpoint(weight_files(whole)).specs.values())
    with progress_bar("merge", total, ctx.say) as advance:
        if original:
            untied = merge.merge_original(
                whole,
                adapter,
                aside,
                ctx.out,
                dtype=code,
                quant=quant,
                tick=lambda spec: advance(spec.nbytes),
            )
        else:
            untied = merge.merge_adapter(
                base, convert.dir, ctx.out, dtype=code, quant=quant, tick=lambda spec: advance(spec.nbytes)
            )
    if not original:
        write_config(base, ctx.out, str(DTYPES[code]).removeprefix("torch."), untied=untied)
        for name in (*SETTINGS, *TEXT):
            if (convert.dir / name).is_file():
                shutil.copyfile(convert.dir / name, ctx.out / name)
        detection.copy_original_files(base, ctx.out)
    size = weight_bytes(ctx.out)
    ctx.say(
        f"base and adapter in one, {readable_bytes(size)} in "
        f"{config.algo.precision}{', in the original layout' if original else ''}"
    )
    if untied:
        ctx.say(
            "the head was the embedding, and the adapter changed one of the two: they are two matrices now "
            "(tie_word_embeddings: false)"
        )
    return {"bytes": size, "linked": False, "layout": "original" if original else "native"}


def weight_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def size(view: View, known: Quantities) -> DiskNeed:
    """Of a whole model; with full fine-tuning its files are hard links."""
    if not view.algo.uses_adapter:
        return DiskNeed(peak=MANIFEST, stays=MANIFEST)
    whole = known.weights(4 if view.algo.precision == "fp32" else 2) + known.beside
    return DiskNeed(peak=whole, stays=whole)


def must_have(_view: View, out: Path, facts: Mapping[str, Any]) -> Iterator[str]:
    yield from checkpoint_files(out)
    yield from TOKENIZED if facts["layout"] == "native" else ()


STAGE = Stage(
    name="merge",
    version=1,
    run=run,
    upstream=("fetch_model", "convert"),
    versions=versions,
    child=True,
    product=lambda config: config.merge.when != "never",
    size=size,
    must_have=must_have,
)
