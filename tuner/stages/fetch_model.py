"""fetch_model: find the base model. A Hugging Face directory is referenced as it is; a GGUF file becomes one, once."""

import json
import sys
from pathlib import Path
from typing import Any

from tuner.errors import ConfigError, DataError
from tuner.models import files
from tuner.stage import Context, Stage, View

GGUF = 1
"""bumped when the same GGUF file would be written as other bytes"""


def place(view: View) -> Path:
    """The directory or GGUF file that the config names."""
    model = view.model
    if model.source == "run":
        if not model.dir:
            raise ConfigError(f"model.run={model.run} was not looked up: a run's model is found by the command line, not by a stage.")
        return Path(model.dir)
    return files.package_file(model.package, model.file, model.install) if model.source == "package" else files.locate(model.path)


def sources(view: View) -> dict[str, Path]:
    """The model's files, by name."""
    found = place(view)
    return files.checkpoint_files(found) if found.is_dir() else {found.name: found}


def check(view: View) -> None:
    """The files are there."""
    sources(view)


def references(view: View) -> bool:
    return place(view).is_dir()


def versions(view: View) -> dict[str, int]:
    return {} if references(view) else {"gguf": GGUF}


def run(ctx: Context) -> dict[str, Any]:
    """Read every header (a cut-off download shows here), and rewrite a GGUF file. A model whose code is its own is refused: no remote code is run."""
    import os

    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported, so before transformers
    from tuner.models.shards import Checkpoint, main_dtype

    found = place(ctx.config)
    directory = found
    if not found.is_dir():
        from tuner.models.gguf import convert_gguf

        ctx.say(f"rewriting {found.name} as bf16 safetensors, once")
        convert_gguf(found, ctx.out)
        directory = ctx.out
    config = native(directory)
    specs = Checkpoint(files.weight_files(directory)).specs.values()
    size = sum(spec.nbytes for spec in specs)
    facts = {
        "source": "directory" if found.is_dir() else "gguf",
        "architecture": str((config.get("architectures") or ["unknown"])[0]),
        "parameters": sum(spec.count for spec in specs),
        "dtype": main_dtype(specs),
        "bytes": size,
    }
    ctx.say(f"{facts['architecture']}, {facts['parameters']:,} parameters in {facts['dtype']}, {size / 1e9:.2f} GB")
    return facts


def native(directory: Path) -> dict[str, Any]:
    """The model's config.json. Raises DataError when the installed transformers has no class of its own for the model's type."""
    from transformers import CONFIG_MAPPING, __version__

    path = directory / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind = config["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no model's config ({error!r}): it should be a JSON object with a model_type. Get it again.") from error
    if kind not in CONFIG_MAPPING:
        own = ", and the model brings its own code, which is never run" if config.get("auto_map") else ""
        raise DataError(f"{path} says model_type {kind}, which transformers {__version__} does not know{own}. Use a model of a family that it has.")
    return config


STAGE = Stage(
    name="fetch_model",
    version=1,
    run=run,
    versions=versions,
    sources=sources,
    check=check,
    references=references,
    by_content=True,
    child=True,
)
