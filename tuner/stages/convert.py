"""convert: the newest trained step → a PEFT adapter, or full safetensors, with tokenizer and chat template beside it."""

from typing import Any

from tuner.errors import StageError
from tuner.stage import Context, Stage, View

LAYOUT = {"adapter": 1, "full": 1, "sidecars": 1}
"""versions of what tuner.models.convert and tuner.models.sidecars write"""


def versions(view: View) -> dict[str, int]:
    return {name: LAYOUT[name] for name in ("adapter" if view.algo.adapter == "lora" else "full", "sidecars")}


def run(ctx: Context) -> dict[str, Any]:
    """Write the artifact; facts: the step, and the bytes of its weights."""
    from tuner.data.chat import compile_template, load_tokenizer
    from tuner.models.convert import write_adapter, write_full
    from tuner.models.sidecars import spoken, write_config, write_generation_config, write_tokenizer
    from tuner.train.checkpoint import WEIGHTS, newest

    base, trained, out = ctx.inputs["fetch_model"].dir, ctx.inputs["train"].dir, ctx.out
    algo, model = ctx.config.algo, ctx.config.model
    chat = spoken(model.chat, ctx.config.data.system)
    end_id = compile_template(chat, load_tokenizer(base)).end_id
    found = newest(trained)
    if found is None:
        raise StageError("The training has no whole step to convert: its files are damaged. Train again with redo=train.")
    if algo.adapter == "lora":
        write_adapter(found.dir / WEIGHTS, trained / "adapter_config.json", out, model.repo or "")
    else:
        code, dtype = {"bf16": ("BF16", "bfloat16"), "fp32": ("F32", "float32")}[algo.precision]
        write_full(found.dir / WEIGHTS, base, out, code)
        write_config(base, out, dtype)
    write_tokenizer(base, out, chat)
    write_generation_config(base, out, end_id)
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    ctx.say(f"step {found.step} as {'an adapter for PEFT' if algo.adapter == 'lora' else 'a full checkpoint'}, {size / 1e6:,.0f} MB")
    return {"step": found.step, "bytes": size}


STAGE = Stage(
    name="convert",
    version=1,
    run=run,
    upstream=("train", "fetch_model"),
    versions=versions,
    child=True,
    product=True,
)
