"""Which files answer for a run: the merged model where there is one, else what was converted."""

from dataclasses import dataclass, replace
from pathlib import Path

from tuner.errors import ConfigError
from tuner.files import read_json
from tuner.pipeline.advice import command_on
from tuner.pipeline.run import RunDirectory
from tuner.report.answered import BITS


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Where the model of a run is."""

    home: Path
    """the artifact: tokenizer, generation settings"""
    base: Path
    adapter: Path | None
    """None when `base` is the whole model"""
    called: str
    """in words"""
    quant: str = "none"
    """how the base stays, with the adapter beside it; "none" where both are one matrix"""
    content: str = ""
    """the digest of what was converted: the same result has the same one, merged or not"""


def locate_weights(run: RunDirectory, base: Path | None, *, quant: str = "none") -> Weights:
    """The merged model of a run, or else what it converted: a whole model, or an adapter on `base`. With
    `quant`, how the base was held in training, the adapter on a base that is held so, where they are there.
    Raises ConfigError.
    """
    merge, convert = run.path("merge"), run.path("convert")
    made, merged = (read_json(directory / "manifest.json") or {} for directory in (convert, merge))
    step = f"step {made['facts']['step']}, " if "step" in made.get("facts", {}) else ""
    current = made.get("content")
    adapter = Weights(
        home=convert,
        base=convert if base is None else base,
        adapter=convert,
        called=f"{step}the adapter on its base",
        content=current or "",
    )
    adapted = (convert / "adapter_config.json").is_file()
    if quant != "none" and adapted and base is not None and base.is_dir():
        called = f"{step}the adapter on its base in {BITS[quant]} bits, as it was trained"
        return replace(adapter, called=called, quant=quant)
    # only what transformers has a class for can generate
    native = merged.get("facts", {}).get("layout", "native") == "native"
    # not of a step that was converted before
    if native and merge.is_dir() and current in (None, merged.get("upstream", {}).get("convert", current)):
        return replace(adapter, home=merge, base=merge, adapter=None, called=f"{step}the merged model")
    if not convert.is_dir():
        raise ConfigError(
            f"{run.dir} has neither a merged nor a converted model, so there is nothing to answer with. "
            f"Once it is trained, make one with: {command_on(run, 'convert')}"
        )
    if not adapted:
        return replace(adapter, base=convert, adapter=None, called=f"{step}the whole model")
    if base is None or not base.is_dir():
        raise ConfigError(
            f"{run.dir.name} has an adapter, but its base model is "
            f"missing{f' ({base})' if base else ''}. Put it back where the run's config says, or run the "
            "pipeline again."
        )
    return adapter
