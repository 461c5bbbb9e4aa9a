"""Where a model's files lie and which of them are the model: found by name, nothing heavy imported,
nothing executed.
"""

import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tuner.config.view import View
from tuner.data.files.folder_kind import describe_folder
from tuner.errors import ConfigError, DataError
from tuner.files import decode_json

TEXT = tuple(
    (
        "tokenizer.json tokenizer.model qwen.tiktoken sentencepiece.bpe.model tokenizer_config.json "
        "special_tokens_map.json added_tokens.json vocab.json vocab.txt merges.txt"
    ).split()
)
"""what makes up a tokenizer, in one layout or another"""

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "qwen.tiktoken")
"""of these, any one is enough to turn text into tokens"""

TOKENIZED = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")
"""what tuner itself writes beside a result"""

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""what makes up a PEFT adapter"""

SETTINGS = ("config.json", "generation_config.json", "chat_template.jinja")

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLED_INDEX = "pytorch_model.bin.index.json"
PICKLED = "pytorch_model.bin"
PICKLES = (".bin", ".pth", ".pt")
LARGEST_CONFIG = 16 << 20
"""bytes of a config.json beyond which it is none"""


def adapter_sources(config: View) -> dict[str, Path]:
    """The files of the adapter that is gone on from."""
    return (
        {name: Path(config.model.adapter) / name for name in ADAPTER_FILES}
        if config.algo.init == "continue"
        else {}
    )


def package_file(package: str, file: str, install: str | None) -> Path:
    """A file inside an installed Python package, which is looked up and never imported.

    Raises ConfigError with the line that installs the package when it is missing, or when it lacks the file.
    """
    if "." in package:
        # Python imports the parents of a dotted name to find it.
        raise ConfigError(
            f"model.package={package} should be a top-level package: it is looked up, never imported. The "
            "rest goes into model.file."
        )
    mend = f" Install it with: {install}" if install else ""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"The model comes with the Python package {package}, which is not installed here.{mend}"
        )
    for root in spec.submodule_search_locations:
        if (path := Path(root) / file).is_file():
            return path
    raise ConfigError(f"The installed package {package} carries no {file}; another version of it may.{mend}")


def checkpoint_files(directory: Path) -> dict[str, Path]:
    """The files of a model directory in the Hugging Face layout: name → path. Weights, settings, tokenizer;
    other files there are not the model's.

    Weights are safetensors, or where there are none, the pickles of older repositories. Raises DataError when
    there is no config.json, no weights, or a shard is missing.
    """
    if not (directory / "config.json").is_file():
        raise DataError(
            f"{directory} is no model directory, which has a config.json and safetensors weights. "
            f"{describe_folder(directory)}"
        )
    names = [name for name in (*SETTINGS, *TEXT) if (directory / name).is_file()]
    return {name: directory / name for name in sorted([*names, *_weights(directory)])}


def _weights(directory: Path) -> list[str]:
    for index, single in ((INDEX, SINGLE), (PICKLED_INDEX, PICKLED)):
        if (directory / index).is_file():
            shards = shard_names(directory / index)
            if missing := [name for name in shards if not (directory / name).is_file()]:
                raise DataError(
                    f"{directory} lacks {len(missing)} of the {len(shards)} files that {index} names, first "
                    f"{missing[0]}. Download them again."
                )
            return [index, *shards]
        if (directory / single).is_file():
            return [single]
    raise DataError(
        f"{directory} has a config.json and {_what(directory)}. Weights are expected as {SINGLE}, or as "
        f"shards with {INDEX}."
    )


def shard_names(index: Path) -> list[str]:
    """The weight files that an index names, sorted. Raises DataError for an index that can't be read or
    that points outside its directory.
    """
    try:
        names = sorted(set(decode_json(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(
            f"{index} can't be read ({error!r}): it should hold a `weight_map` of tensor names to files. Get "
            "it again."
        ) from error
    if astray := [
        name
        for name in names
        if not isinstance(name, str) or name in ("", ".", "..") or "\0" in name or Path(name).name != name
    ]:
        raise DataError(f"{index} names {astray[0]}, which is outside its own directory: refused.")
    return names


def weight_files(directory: Path) -> list[Path]:
    """The paths of a checkpoint's weight files, in order."""
    return [directory / name for name in _weights(directory) if name not in (INDEX, PICKLED_INDEX)]


def copy_small_files(found: Mapping[str, Path], out: Path) -> None:
    """Copy the small files of a model, all but its weights, into a directory."""
    for name, path in found.items():
        if name in (*SETTINGS, *TEXT):
            shutil.copyfile(path, out / name)


def read_config(path: Path) -> dict[str, Any]:
    """A model's config.json. Raises DataError for what is none."""
    size = path.stat().st_size
    return parse_config(
        path.read_bytes() if size <= LARGEST_CONFIG else b"", size, str(path), "Get it again."
    )


def parse_config(content: bytes, size: int, what: str, mend: str) -> dict[str, Any]:
    """A model's config.json of `size` bytes, which is looked at only where no config is larger. Raises
    DataError for what is none.
    """
    if size > LARGEST_CONFIG:
        raise DataError(f"{what} is {size:,} bytes long, which no model's config is. {mend}")
    try:
        config = decode_json(content)
    except ValueError as error:
        raise DataError(f"{what} is not JSON that can be read ({type(error).__name__}). {mend}") from error
    if not isinstance(config, dict):
        raise DataError(
            f"{what} holds a {type(config).__name__}, where a model's config is a JSON object with a "
            f"model_type. {mend}"
        )
    return config


def _what(directory: Path) -> str:
    """What lies in a directory that should have held a model, in words."""
    names = sorted(path.name for path in directory.iterdir())
    if "adapter_config.json" in names:
        return "a PEFT adapter, not a whole model (merge it into its base first)"
    if torch_files := [name for name in names if name.endswith((".bin", ".pt", ".pth"))]:
        return f"weights under another name ({torch_files[0]}; pickled ones are expected as {PICKLED})"
    if ggufs := [name for name in names if name.endswith(".gguf")]:
        return f"a GGUF file (name the file itself: model.path={directory / ggufs[0]})"
    if tensors := [name for name in names if name.endswith(".safetensors")]:
        return f"weights under another name ({tensors[0]})"
    return "no weights"


def locate_model(path: str) -> Path:
    """`model.path` as a directory or a GGUF file that exists. Raises DataError that names what lies
    nearby.
    """
    found = Path(path).expanduser()
    if found.is_dir() or (found.is_file() and found.suffix == ".gguf"):
        return found
    if found.is_file():
        raise DataError(
            f"model.path={path} is a file. A model is a directory with config.json and safetensors weights, "
            "or one .gguf file."
        )
    near = sorted(p.name for p in found.parent.iterdir())[:8] if found.parent.is_dir() else []
    there = (
        f"In {found.parent} there are: {', '.join(near)}."
        if near
        else f"{found.parent} does not exist or is empty either."
    )
    raise DataError(f"model.path={path} does not exist (looked up from {Path.cwd()}). {there}")
