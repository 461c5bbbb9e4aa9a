"""Which files of a hub's repository are the model: told by their names and by the index of the weights,
before anything large is downloaded.

They are those that tuner.models.checkpoint.files takes of a directory, so that a model is the same one,
wherever it came from. Code (`.py`) never is, nor what a repository holds of the same weights besides:
consolidated.*, original/, ONNX, other frameworks, other precisions.
"""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tuner.errors import DataError
from tuner.files import decode_json
from tuner.models.checkpoint.files import INDEX, PICKLED, PICKLED_INDEX, SETTINGS, SINGLE, TEXT

if TYPE_CHECKING:
    from tuner.hub.listing import Listing, RemoteFile

SHOWN = 6
PARTED = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
"""how the pieces of a GGUF file are called"""
ELSEWHERE = (
    (
        ("adapter_config.json",),
        "a PEFT adapter, not a whole model. Take its base model, or merge the two first",
    ),
    (
        ("model_index.json",),
        "a pipeline of several models, as those that make images are, and no language model",
    ),
    (
        ("tf_model.h5", "flax_model.msgpack"),
        "weights for TensorFlow or Flax alone. Take a repository with safetensors",
    ),
    (
        ("params.json",),
        (
            "weights in Meta's or Mistral's own format alone. Take the repository of the same model for "
            "transformers, often called …-hf"
        ),
    ),
)
"""files that tell what a repository is instead of a model, and what to do"""


def choose_files(
    listing: "Listing", read: "Callable[[RemoteFile], bytes]", file: str | None = None
) -> list[str]:
    """The files of a model's repository that matter: settings, tokenizer, weights; or one GGUF file alone.

    read     the content of a small file, for the index of weights in several files
    file     the GGUF file wanted, where the repository has several (model.file)
    Raises DataError when nothing fits, with what there is.
    """
    found = {remote.path: remote for remote in listing.files}
    ggufs = sorted(path for path in found if path.lower().endswith(".gguf") and "mmproj" not in path.lower())
    whole = [path for path in ggufs if not PARTED.search(path)]
    if file is not None:
        return [_chosen(listing.repo, file, found, whole)]
    weights = _weights(listing.repo, found, read)
    if weights and "config.json" in found:
        return [name for name in (*SETTINGS, *TEXT) if name in found] + weights
    if len(whole) == 1:
        return whole
    raise DataError(f"{listing.repo} holds {_what(sorted(found), ggufs, whole, weights)}.")


def _chosen(repo: str, file: str, found: "dict[str, RemoteFile]", whole: Sequence[str]) -> str:
    if file in whole:
        return file
    there = (
        f"It has {_listed(whole)}."
        if whole
        else "It has no GGUF file: leave model.file out for its own weights."
    )
    why = "is not in it" if file not in found else "is not a whole GGUF file"
    raise DataError(f"model.file={file} should name a GGUF file of {repo}, and {why}. {there}")


def _weights(repo: str, found: "dict[str, RemoteFile]", read: "Callable[[RemoteFile], bytes]") -> list[str]:
    """The files of the weights, an index before its shards; none where the repository has none."""
    for index, single in ((INDEX, SINGLE), (PICKLED_INDEX, PICKLED)):
        if index in found:
            shards = shards_in_index(
                read(found[index]), f"{index} of {repo}", ending=single.rpartition(".")[2]
            )
            if missing := [name for name in shards if name not in found]:
                raise DataError(
                    f"{index} of {repo} names {_listed(missing)}, which the repository lacks: it is not "
                    "whole. Try another model.revision."
                )
            return [index, *shards]
        if single in found:
            return [single]
    return []


def shards_in_index(content: bytes, what: str, *, ending: str) -> list[str]:
    """The files that an index of weights names, sorted. Raises DataError for one that can't be read, or
    that points to anything but such files beside it.
    """
    try:
        names = set(decode_json(content)["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(
            f"{what} can't be read ({type(error).__name__}): it should hold a `weight_map` of tensor names "
            "to files."
        ) from error
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(rf"[\w-][\w.-]*\.{ending}", name):
            raise DataError(
                f"{what} names {str(name)[:100]!r}, where a .{ending} file beside it was expected: refused. "
                "Nothing was downloaded of it."
            )
    if not names:
        raise DataError(f"{what} names no file at all: it is damaged. Try another model.revision.")
    return sorted(names)


def _what(paths: Sequence[str], ggufs: Sequence[str], whole: Sequence[str], weights: Sequence[str]) -> str:
    """What a repository has instead of a model, in words, and what to do."""
    if weights:
        return (
            "weights without a config.json, which says what model they are. Take a repository that has both"
        )
    for names, what in ELSEWHERE:
        if any(name in paths for name in names):
            return what
    if whole:
        return f"GGUF files, {_listed(whole)}. Say which: model.file={whole[0]}"
    if ggufs:
        return (
            f"a GGUF file in several pieces, {_listed(ggufs)}, which can't be read here. Take one in one "
            "piece, or safetensors"
        )
    if others := [path for path in paths if path.endswith((".safetensors", ".bin", ".pth", ".pt"))]:
        return (
            f"weights under other names, {_listed(others)}. Expected are {SINGLE}, or shards with {INDEX}, "
            f"or the same of {PICKLED}"
        )
    return f"no weights of a model, but {_listed(paths)}. Is it the name of a data set, or of the code alone"


def _listed(paths: Sequence[str]) -> str:
    return (
        ", ".join(paths[:SHOWN]) + (f" and {len(paths) - SHOWN:,} more" if len(paths) > SHOWN else "")
        if paths
        else "no files at all"
    )
