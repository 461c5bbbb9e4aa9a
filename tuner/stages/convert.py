"""convert: a trained step → a PEFT adapter, or full safetensors, with tokenizer and chat template beside
it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuner.config.schema import Config
from tuner.config.view import View
from tuner.errors import ConfigError, StageError
from tuner.models.checkpoint.files import ADAPTER_FILES, TOKENIZED, checkpoint_files, weight_files
from tuner.models.layouts import detection
from tuner.pipeline.sizes import TENSOR, DiskNeed, Quantities
from tuner.pipeline.stage import Choice, ChosenStep, Context, Stage
from tuner.report.byte_size import readable_bytes
from tuner.train.checkpoints import steps

LAYOUT = {"adapter": 1, "full": 1, "sidecars": 3}
"""versions of what tuner.models.export and tuner.models.checkpoint.config_files write"""

QUANT = 1
"""an adapter of a base in 4 or 8 bits says so"""


def versions(view: View) -> dict[str, int]:
    made = {name: LAYOUT[name] for name in ("adapter" if view.algo.uses_adapter else "full", "sidecars")}
    return made | ({"quant": QUANT} if view.algo.quant != "none" else {})


def pick(trained: Path, config: Config, finished: bool) -> ChosenStep | None:
    """The step that convert.step means. Of an unfinished run `last` and `best` become the number that they
    are now.

    Raises ConfigError when a finished run has not kept the step.
    """
    wish, found = config.convert.step, steps.saved_steps(trained)
    chosen = steps.choose(found, wish, config.convert.best_by)
    if chosen is None:
        if not finished:
            return None
        if wish == "best":
            raise ConfigError(
                f"convert.step=best asks for the step with the lowest {config.convert.best_by}, and this "
                "run measured none: set data.held_out above 0, or convert.best_by=loss."
            )
        kept = ", ".join(str(checkpoint.step) for checkpoint in found)
        raise ConfigError(
            f"convert.step={wish}: training is finished, and kept the steps {kept}. Choose one of these, "
            "or train again with redo=train, which keeps the step that convert.step names."
        )
    whole = finished and wish != chosen.step and chosen is found[-1]
    pinned = replace(config, convert=replace(config.convert, step="last" if whole else chosen.step))
    return ChosenStep(config=pinned, content=steps.weights_digest(trained, chosen), step=chosen.step)


def run(ctx: Context) -> dict[str, Any]:
    """Write the artifact; facts: the step, and the bytes of its weights.

    However many processes saved the step, its tensors are put together one at a time, on the way from their
    files to the artifact's.
    """
    from tuner.data.chat.template import compile_template
    from tuner.data.tokenizer.load import load_vocabulary
    from tuner.models.checkpoint.config_files import (
        chat_with_system,
        write_config,
        write_generation_config,
        write_tokenizer,
    )
    from tuner.models.checkpoint.safetensors import Checkpoint
    from tuner.models.export import write_full
    from tuner.models.lora.export import write_adapter
    from tuner.models.lora.tied_head import tied_head_in
    from tuner.progress import progress_bar
    from tuner.train.checkpoints import sharded

    base, trained, out = ctx.inputs["fetch_model"].dir, ctx.inputs["train"].dir, ctx.out
    algo, model = ctx.config.algo, ctx.config.model
    chat = chat_with_system(model.chat, ctx.config.data.system)
    template = compile_template(chat, load_vocabulary(base))
    found = steps.choose(steps.saved_steps(trained), ctx.config.convert.step, ctx.config.convert.best_by)
    if found is None or (damaged := found.damaged()):
        which = f": {', '.join(damaged)} of step {found.step}" if found else ""
        raise StageError(
            f"The saved files of the step to convert are damaged{which}. Train again with redo=train."
        )
    weights = sharded.open_step(found).weights
    if algo.uses_adapter:
        initial = trained / steps.INITIAL
        tie = tied_head_in(base, [name.removeprefix("base_model.model.") for name in weights.specs])
        write_adapter(
            weights,
            trained / steps.ADAPTER,
            out,
            model.repo or "",
            initial=initial if initial.exists() else None,
            quant=algo.quant,
            tie=tie,
        )
    else:
        code, dtype = {"bf16": ("BF16", "bfloat16"), "fp32": ("F32", "float32")}[algo.precision]
        numbers = sum(spec.count for spec in Checkpoint(weight_files(base)).specs.values())
        with progress_bar("convert", numbers, ctx.say) as advance:
            write_full(weights, base, out, code, tick=lambda spec: advance(spec.count))
        write_config(base, out, dtype)
        detection.copy_original_files(base, out)
    pad = write_tokenizer(base, out, chat)
    write_generation_config(base, out, template.end_id, template.stops, pad)
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    ctx.say(
        f"step {found.step} as {'an adapter for PEFT' if algo.uses_adapter else 'a full checkpoint'}, "
        f"{readable_bytes(size)}"
    )
    return {"step": found.step, "bytes": size}


def size(view: View, known: Quantities) -> DiskNeed:
    """Of the adapter, in fp32, or of all weights."""
    adapter = view.algo.uses_adapter
    width = 4 if adapter or view.algo.precision == "fp32" else 2
    weights = (known.trainable if adapter else known.parameters) * width + known.trainable_tensors * TENSOR
    return DiskNeed(peak=weights + known.beside, stays=weights + known.beside)


def must_have(view: View, out: Path, _facts: Mapping[str, Any]) -> Iterator[str]:
    yield from ADAPTER_FILES if view.algo.uses_adapter else checkpoint_files(out)
    yield from TOKENIZED


STAGE = Stage(
    name="convert",
    version=1,
    run=run,
    upstream=("train", "fetch_model"),
    versions=versions,
    child=True,
    product=lambda _: True,
    size=size,
    must_have=must_have,
    choice=Choice(upstream="train", pick=pick, extract=steps.adopt_step),
)
