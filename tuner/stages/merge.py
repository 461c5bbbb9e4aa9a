"""merge: base and adapter → one bf16 model directory that loads anywhere. With full fine-tuning that is convert's, linked."""

import shutil
from pathlib import Path
from typing import Any

from tuner.disk import link_or_copy
from tuner.models.files import SETTINGS, TEXT, weight_files
from tuner.stage import Context, Stage, View

MERGE = {"lora": 1, "none": 1}


def versions(view: View) -> dict[str, int]:
    return {view.algo.adapter: MERGE[view.algo.adapter]}


def run(ctx: Context) -> dict[str, Any]:
    """Write the model; facts: its files' bytes and whether they are links."""
    if ctx.config.algo.adapter == "none":
        linked = [link_or_copy(path, ctx.out / name) for name, path in sorted(ctx.inputs["convert"].files.items())]
        return {"bytes": weight_bytes(ctx.out), "linked": all(linked)}

    import torch

    from tuner.models.merge import merge_adapter
    from tuner.models.shards import Checkpoint
    from tuner.models.sidecars import write_config
    from tuner.report.progress import bar

    base, convert = ctx.inputs["fetch_model"].dir, ctx.inputs["convert"].dir
    if ctx.config.machine.threads != "auto":
        torch.set_num_threads(ctx.config.machine.threads)
    total = sum(spec.nbytes for spec in Checkpoint(weight_files(base)).specs.values())
    with bar("merge", total, ctx.say) as advance:
        merge_adapter(base, convert, ctx.out, tick=lambda spec: advance(spec.nbytes))
    write_config(base, ctx.out, "bfloat16")
    for name in (*SETTINGS, *TEXT):
        if (convert / name).is_file():
            shutil.copyfile(convert / name, ctx.out / name)
    size = weight_bytes(ctx.out)
    ctx.say(f"base and adapter in one, {size / 1e9:.2f} GB in bf16")
    return {"bytes": size, "linked": False}


def weight_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


STAGE = Stage(
    name="merge",
    version=1,
    run=run,
    upstream=("fetch_model", "convert"),
    versions=versions,
    child=True,
    product=lambda config: config.merge != "never",
)
