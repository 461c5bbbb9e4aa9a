"""A checkpoint from its family's own layout into the one that transformers has a class for, and back: tensor
by tensor, never the whole model in memory.

Beside a rewritten checkpoint, in the directory `original`, lies what the way back needs: the settings and the
tokenizer as they were, and the tensors that the rewritten ones don't determine. No code of the publisher's is
among it, and none is run.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from tuner.errors import DataError
from tuner.models.checkpoint.config_files import TIED, read_json_object, write_json_object
from tuner.models.checkpoint.files import INDEX
from tuner.models.checkpoint.safetensors import Checkpoint, Spec, main_dtype
from tuner.models.checkpoint.write_safetensors import write_checkpoint, write_file
from tuner.models.layouts.detection import LAYOUT_FILE, MODULES, NATIVE, ORIGINAL, WITHOUT_CLASS
from tuner.models.layouts.llama import DTYPES, vocabulary_size
from tuner.models.layouts.mapped_tensor import MappedTensor, NativeCheckpoint
from tuner.progress import progress_bar

KEPT = "kept.safetensors"
"""beside the settings in `original`: the tensors that were kept"""
CONFIG, GENERATION = "config.json", "generation_config.json"
VOCABULARY = ("padded_vocab_size", "vocab_size")
"""how config.json says how many rows the embedding has: ChatGLM's by the first, whatever the second says"""


class Family(Protocol):
    """What a family's module has."""

    def to_native(
        self, config: Mapping[str, Any], specs: Mapping[str, Spec], layout: str
    ) -> NativeCheckpoint:
        """A checkpoint with this original config.json and these tensors. Raises DataError for what the
        mapping can't represent.
        """

    def to_original(
        self, config: Mapping[str, Any], specs: Mapping[str, Spec], layout: str
    ) -> list[MappedTensor]:
        """The original tensors, but the kept ones, made of these native ones; `config` is the original's."""


def layout_module(layout: str) -> Family:
    """The module of a layout in tuner.models.layouts.detection.VERSIONS. Raises DataError for any other."""
    if layout not in MODULES:
        raise DataError(
            f"model.layout={layout} is not a layout that is rewritten. There are: {', '.join(MODULES)}, "
            f"and {NATIVE} for what needs no rewriting."
        )
    return cast(Family, import_module(f"tuner.models.layouts.{MODULES[layout]}"))


def _silent(_: Spec) -> None:
    return None


def write_native(
    source: Mapping[str, Path],
    layout: str,
    out: Path,
    *,
    say: Callable[[str], None],
    tick: Callable[[Spec], None] = _silent,
) -> None:
    """Write the checkpoint whose files are `source` (name → path) to `out` as transformers reads it, and the
    directory `original` beside it.

    Tokenizer files are copied as they are. What users should know of the family goes to `say`, each
    written tensor to `tick`. Raises DataError, before anything is written, for a checkpoint that its layout's
    mapping can't represent.
    """
    weights = Checkpoint(path for name, path in sorted(source.items()) if name.endswith(".safetensors"))
    config = read_json_object(source[CONFIG])
    native = layout_module(layout).to_native(config, weights.specs, layout)
    made = {tensor.spec.name: tensor for tensor in native.tensors}
    beside = {
        name: path
        for name, path in source.items()
        if not name.endswith((".safetensors", ".py")) and name != INDEX and Path(name).name == name
    }

    aside = out / ORIGINAL
    aside.mkdir(exist_ok=True)
    for name, path in beside.items():
        for directory in (out, aside):
            shutil.copyfile(path, directory / name)
    (aside / LAYOUT_FILE).write_text(json.dumps({"layout": layout}) + "\n", encoding="utf-8")
    if native.kept:
        write_file(aside / KEPT, [weights.specs[name] for name in native.kept], weights.__getitem__)

    settings = read_json_object(source[GENERATION]) if GENERATION in source else {}
    settings = {key: value for key, value in native.generation.items() if value is not None} | settings
    write_json_object(out / CONFIG, dict(native.config))
    write_json_object(out / GENERATION, settings)

    def value(name: str) -> Tensor:
        return _make(made[name], weights.__getitem__)

    with progress_bar("rewrite", sum(tensor.spec.nbytes for tensor in native.tensors), say) as advance:

        def written(spec: Spec) -> None:
            advance(spec.nbytes)
            tick(spec)

        write_checkpoint(out, [tensor.spec for tensor in native.tensors], value, tick=written)
    for warning in native.warnings:
        say(warning)


def original_tensors(aside: Path, specs: Mapping[str, Spec], *, untied: bool = False) -> list[MappedTensor]:
    """All tensors of the original layout, made of native ones that are as `specs` say: trained or not, of the
    old type or another.

    aside   the directory `original` of the rewritten checkpoint
    untied  whether a head that is the embedding there has become a tensor of its own

    A kept tensor is written as it was, in the type of the native tensor that was made of it. Making it raises
    DataError where that has trained.
    """
    loose = {TIED: False} if untied else {}
    layout, config = _layout(aside), with_vocabulary(read_json_object(aside / CONFIG), specs) | loose
    family = layout_module(layout)
    tensors = family.to_original(read_json_object(aside / CONFIG) | loose, specs, layout)
    kept = Checkpoint([aside / KEPT] if (aside / KEPT).is_file() else [])
    before = {tensor.spec.name: tensor.spec for tensor in tensors} | kept.specs
    forward = {
        tensor.sources[0]: tensor
        for tensor in family.to_native(config, before, layout).tensors
        if len(tensor.sources) == 1
    }
    for name, spec in kept.specs.items():
        if name not in forward:
            tensors.append(MappedTensor(spec=spec, sources=(), make=lambda name=name: kept[name]))
            continue
        native = forward[name].spec.name
        dtype = specs[native].dtype
        tensors.append(
            MappedTensor(
                spec=replace(spec, dtype=dtype),
                sources=(native,),
                make=_untrained(layout, forward[name], kept),
            )
        )
    return tensors


def write_original(
    specs: Mapping[str, Spec],
    value: Callable[[str], Tensor],
    aside: Path,
    out: Path,
    *,
    untied: bool = False,
    tick: Callable[[Spec], None] = _silent,
) -> list[str]:
    """Write native tensors in their original layout to `out`, with the settings and the tokenizer of `aside`,
    and return the names of the weight files.

    specs, value    the native tensors: what they are, and a function that computes one by name

    config.json follows the type that is written and the rows of the embedding, and keeps `auto_map`: it is
    the publisher's own format, which other tools may read so. Untrained tensors give the original's names,
    types and bytes; where shards are cut is free. Raises DataError where a tensor has trained that the layout
    has no place for.
    """
    tensors = {tensor.spec.name: tensor for tensor in original_tensors(aside, specs, untied=untied)}
    for path in sorted(aside.iterdir()):
        if path.name not in (KEPT, LAYOUT_FILE, CONFIG):
            shutil.copyfile(path, out / path.name)
    config = with_vocabulary(read_json_object(aside / CONFIG), specs) | ({TIED: False} if untied else {})
    dtype = DTYPES[main_dtype(specs.values())]
    config |= {key: dtype for key in ("dtype", "torch_dtype") if key in config}
    (out / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def made(name: str) -> Tensor:
        return _make(tensors[name], value)

    return write_checkpoint(out, [tensor.spec for tensor in tensors.values()], made, tick=tick)


def with_vocabulary(config: Mapping[str, Any], specs: Mapping[str, Spec]) -> dict[str, Any]:
    """The original's config.json, with the rows that the native embedding has now as its vocabulary.

    >>> name = "model.embed_tokens.weight"
    >>> specs = {name: Spec(name=name, dtype="BF16", shape=(320, 64))}
    >>> with_vocabulary({"vocab_size": 300, "pad_token_id": 0}, specs)
    {'vocab_size': 320, 'pad_token_id': 0}
    """
    before = next((config[key] for key in VOCABULARY if config.get(key) is not None), None)
    after = vocabulary_size(specs)
    return {
        key: after if after and key in VOCABULARY and value == before else value
        for key, value in config.items()
    }


def _layout(aside: Path) -> str:
    if not (aside / LAYOUT_FILE).is_file():
        raise DataError(
            f"{aside} has no {LAYOUT_FILE}: it is not what was put beside a rewritten checkpoint, so the "
            "way back is not known."
        )
    return str(read_json_object(aside / LAYOUT_FILE).get("layout"))


def _make(tensor: MappedTensor, value: Callable[[str], Tensor]) -> Tensor:
    made: Tensor = tensor.make(*(value(name) for name in tensor.sources))
    return made


def _untrained(layout: str, forward: MappedTensor, kept: Checkpoint) -> Callable[[Tensor], Tensor]:
    """A kept tensor in the type of the native one that was made of it, if that is still what it gives."""
    (name,) = forward.sources
    otherwise = "" if layout in WITHOUT_CLASS else ", or write the native layout: merge.layout=native"

    def make(native: Tensor) -> Tensor:
        if not torch.equal(_make(forward, kept.__getitem__).to(native.dtype), native):
            raise DataError(
                f"{forward.spec.name} has trained, and the {layout} layout has no place for that: there it "
                f"is computed from {name} on every use. Train it neither by algo.targets nor by "
                f"model.new_tokens{otherwise}."
            )
        return kept[name].to(native.dtype)

    return make
