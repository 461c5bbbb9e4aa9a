"""baseline: the base model's loss and answers before training. It depends on no training, so a sweep has one."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.config.view import View
from tuner.pipeline.stage import Context, Stage
from tuner.stages.train import sources

if TYPE_CHECKING:
    from tuner.train.evaluate import Measurement

MEASURE = {"held_out": 1, "answers": 1}
"""versions of tuner.train.evaluate and tuner.models.generate"""
FP32 = 1
"""an adapter that trained in fp32 is measured merged in fp32"""


def versions(view: View) -> dict[str, int]:
    merged = {"fp32": FP32} if view.algo.precision == "fp32" and view.algo.init == "continue" else {}
    return measured(view) | merged


def measured(view: View) -> dict[str, int]:
    return MEASURE if view.eval.prompts else {"held_out": MEASURE["held_out"]}


def measure(ctx: Context, directory: Path, adapter: Path | None, quant: str = "none") -> tuple["Measurement", dict[str, Any]]:
    """Measure the model in `directory`, with `adapter` merged into it in memory, on the held-out packs and the prompts.

    quant   how the base was held while the adapter was trained

    Facts say how it was computed.
    """
    import torch

    from tuner.data.packs import Packs
    from tuner.kernels import attention
    from tuner.models.attention_needs import generation_attention, needs
    from tuner.models.checkpoint.companions import spoken
    from tuner.models.checkpoint.files import weight_files
    from tuner.models.load import DTYPES, compute_dtype, load_tuned, resolve_device
    from tuner.progress import track
    from tuner.train.determinism import deterministic
    from tuner.train.evaluate import Measurement, ask, held_out_loss, perplexity

    config, began = ctx.config, time.monotonic()
    packs, prompts = Packs.open(ctx.inputs["tokenize"].dir / "held_out.arrow"), config.eval.prompts
    if not len(packs):
        ctx.say("nothing was held out (data.held_out=0), so no loss is measured")
    if not len(packs) and not prompts:
        return Measurement(loss=None, perplexity=None, tokens=0, answers=()), {}
    if config.machine.threads != "auto":
        torch.set_num_threads(config.machine.threads)
    device = resolve_device(config.machine.device)
    compute = compute_dtype(config.algo.precision, device)
    model = load_tuned(directory, adapter, dtype=compute, device=device, rounded=DTYPES[config.algo.precision], quant=quant)
    backend, _ = attention.choose(config.machine.attention, needs(model, dtype=compute, device=device))
    with attention.using(backend), deterministic(config.machine.deterministic):
        loss, tokens = held_out_loss(model, track(packs, "held-out loss", len(packs), ctx.say), device, weight_files(directory))
        # Answers grow token by token on a cache, which the kernel for packed rows does not serve.
        model.set_attn_implementation(generation_attention(model))
        answers = ask(model, directory, spoken(config.model.chat, config.data.system), prompts, config.eval.max_new_tokens)
    facts = {
        "device": device.type,
        "attention": backend,
        "compute": str(compute).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - began, 1),
    }
    return Measurement(loss=loss, perplexity=perplexity(loss), tokens=tokens, answers=answers), facts


def write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def run(ctx: Context) -> dict[str, Any]:
    """Write baseline.json."""
    adapter = Path(ctx.config.model.adapter) if ctx.config.algo.init == "continue" else None
    result, facts = measure(ctx, ctx.inputs["fetch_model"].dir, adapter)
    write(ctx.out / "baseline.json", result.to_json())
    return {"loss": result.loss, "tokens": result.tokens} | facts


STAGE = Stage(
    name="baseline",
    version=1,
    run=run,
    upstream=("fetch_model", "tokenize"),
    versions=versions,
    sources=sources,
    child=True,
    computes=True,
)
