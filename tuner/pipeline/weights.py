"""Which files are the model of a run: the merged model where there is one, else what was converted."""

from dataclasses import dataclass
from pathlib import Path

from tuner.errors import ConfigError
from tuner.files import read_json
from tuner.pipeline.advice import command_on
from tuner.pipeline.run import RunDirectory


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Where the model of a run is."""

    home: Path
    """the artifact: tokenizer, generation settings"""
    base: Path
    adapter: Path | None
    """None when `base` is the whole model"""
    content: str
    """the digest of what was converted: the same result has the same one, merged or not"""


def locate_weights(run: RunDirectory, base: Path | None) -> Weights:
    """The model of a run; `base` is where the model lies that its adapter belongs to. Raises ConfigError."""
    merge, convert = run.path("merge"), run.path("convert")
    made, merged = (read_json(directory / "manifest.json") or {} for directory in (convert, merge))
    content = str(made.get("content", ""))
    # only what transformers has a class for can generate
    native = merged.get("facts", {}).get("layout", "native") == "native"
    # not of a step that was converted before
    if native and merge.is_dir() and merged.get("upstream", {}).get("convert", content) == content:
        return Weights(home=merge, base=merge, adapter=None, content=content)
    if not convert.is_dir():
        raise ConfigError(
            f"{run.dir} has neither a merged nor a converted model, so nothing can answer. Once it is "
            f"trained, make one with: {command_on(run, 'convert')}"
        )
    if not (convert / "adapter_config.json").is_file():
        return Weights(home=convert, base=convert, adapter=None, content=content)
    if base is None or not base.is_dir():
        raise ConfigError(
            f"{run.dir.name} has an adapter, but its base model is "
            f"missing{f' ({base})' if base else ''}. Put it back where the run's config says, or run the "
            "pipeline again."
        )
    return Weights(home=convert, base=base, adapter=convert, content=content)
