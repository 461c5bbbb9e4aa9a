"""New tokens in a checkpoint (model.new_tokens): rows for them in the embedding, and in the output head where
that is a matrix of its own.

A new token begins as the mean of the tokens that its text was made of before, so the model takes it at first
for about that text. Ids that the tokenizer leaves free and the embedding has rows for are taken first: then
nothing grows.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tuner.data.tokenizer.load import load_vocabulary
from tuner.data.tokenizer.new_tokens import BRACKETED, pieces_of, write_new_tokens
from tuner.errors import DataError
from tuner.files import link_or_copy
from tuner.models.checkpoint.config_files import read_json_object, write_json_object
from tuner.models.checkpoint.files import INDEX
from tuner.models.checkpoint.headers import EMBEDDINGS, module_name
from tuner.models.checkpoint.safetensors import FLOATS, Checkpoint, Spec, read_specs
from tuner.models.checkpoint.write_safetensors import write_file, write_index
from tuner.models.layouts.detection import ORIGINAL

HEADS = frozenset({"lm_head", "embed_out"})
"""what families call the output head"""

MULTIPLE = 64
"""an embedding whose rows are a multiple of this keeps that, for the sake of fast matmuls"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtendedVocabulary:
    """What became of a checkpoint."""

    ids: Mapping[str, int]
    """the new tokens' ids"""
    before: int
    """rows of the embedding, as the checkpoint was"""
    after: int
    """and as it was written: the same where there were rows for the new ids"""


def add_new_tokens(
    files: Mapping[str, Path],
    tokens: Sequence[str],
    out: Path,
    *,
    say: Callable[[str], None] = lambda _: None,
    tick: Callable[[Spec], None] = lambda _: None,
) -> ExtendedVocabulary:
    """Write the checkpoint of `files` (name → path, all in one directory) to `out` with `tokens` in its
    vocabulary; their ids follow each other.

    Only shards that hold the embedding or the head are written, one tensor in memory at a time, each told to
    `tick`; other files are linked or copied. The directory `original` of a rewritten family comes along, with
    the new tokens in its tokenizer's settings. Raises DataError for a token that is in the vocabulary
    already, and for a family whose vocabulary can't grow.
    """
    directory = files["config.json"].parent
    pieces = pieces_of(directory, tokens)
    first = max(load_vocabulary(directory).tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    ids = {token: first + place for place, token in enumerate(tokens)}
    write_new_tokens(directory, ids, out)
    before, after = write_rows(files, {ids[token]: pieces[token] for token in tokens}, out, tick=tick)
    if (directory / ORIGINAL).is_dir():
        _write_aside(directory / ORIGINAL, out / ORIGINAL, ids)
    which = (
        f"{tokens[0]} is {first}"
        if len(tokens) == 1
        else f"{tokens[0]} to {tokens[-1]} are {first} to {first + len(tokens) - 1}"
    )
    if after == before:
        say(f"{which}: rows that the embedding had free ({before:,} in all, as before)")
    else:
        kept = f", a multiple of {MULTIPLE} again" if before % MULTIPLE == 0 else ""
        say(f"{which}: the embedding grows from {before:,} to {after:,} rows{kept}")
    return ExtendedVocabulary(ids=ids, before=before, after=after)


def write_rows(
    files: Mapping[str, Path],
    pieces: Mapping[int, Sequence[int]],
    out: Path,
    *,
    tick: Callable[[Spec], None] = lambda _: None,
) -> tuple[int, int]:
    """The part of `add_new_tokens` that is not the tokenizer's: `pieces` says of each new id which ids its
    rows are the mean of. Files in `out` stay.

    Returns the rows of the embedding before and after.
    """
    config = read_json_object(files["config.json"])
    shards = {name: read_specs(path) for name, path in files.items() if path.suffix == ".safetensors"}
    specs = {name: spec for shard in shards.values() for name, spec in shard.items()}
    tables = vocabulary_tensors(config, specs)
    before = specs[tables[0]].shape[0]
    after = padded_rows(before, max(pieces) + 1)
    if lost := sorted({id_ for ids in pieces.values() for id_ in ids if id_ >= before}):
        raise DataError(
            f"The text of a new token is made of tokens, one of them {lost[-1]}, and the embedding has "
            f"{before:,} rows: tokenizer and weights are not of one model. Take both from the same."
        )
    if after != before:
        _may_grow(config, before, after)
        write_json_object(out / "config.json", resized_config(config, after))
        if INDEX in files:
            more = sum((after - before) * (specs[name].nbytes // before) for name in tables)
            write_index(out, _larger(read_json_object(files[INDEX]), more))
    for name, shard in shards.items():
        if not shard.keys().isdisjoint(tables):
            _write_shard(files[name], out / name, tables, pieces, after, tick)
    for name, path in files.items():
        if not (out / name).exists():
            link_or_copy(path, out / name)
    return before, after


def vocabulary_tensors(config: Mapping[str, Any], specs: Mapping[str, Spec]) -> tuple[str, ...]:
    """The tensors of a checkpoint that have a row for each token: the embedding, and then the head, where it
    is in the file.

    Raises DataError where they can't be told, or where there is more than rows to a token.
    """
    size = _text(config).get("vocab_size", config.get("vocab_size"))
    embeddings = [
        name
        for name, spec in specs.items()
        if module_name(name) in EMBEDDINGS and len(spec.shape) == 2 and size in (None, spec.shape[0])
    ]
    if len(embeddings) != 1:
        raise DataError(
            f"model.new_tokens needs the checkpoint's embedding, a matrix {' or '.join(sorted(EMBEDDINGS))} "
            f"with as many rows as config.json's vocab_size ({size}), and finds {len(embeddings)} such "
            "tensors. Train this model without new tokens."
        )
    heads = [name for name in specs if module_name(name) in HEADS]
    for name in (*embeddings, *heads):
        if specs[name].shape != specs[embeddings[0]].shape or specs[name].dtype not in FLOATS:
            raise DataError(
                f"model.new_tokens can't add rows to {name}, which is {specs[name].dtype} "
                f"{specs[name].shape}: the embedding, and a head of the same shape without bias, are what "
                "can grow. Train this model without new tokens."
            )
    return (*embeddings, *heads)


def padded_rows(rows: int, needed: int) -> int:
    """How many rows an embedding of `rows` gets so that it has `needed`.

    >>> padded_rows(151_936, 151_670), padded_rows(32_000, 32_003), padded_rows(50_257, 50_258)
    (151936, 32064, 50258)
    """
    step = MULTIPLE if rows % MULTIPLE == 0 else 1
    return max(rows, -(-needed // step) * step)


def resized_config(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The config with that vocabulary size, wherever it has one; that of a multimodal model in its text
    part.
    """
    text = config.get("text_config")
    changed = dict(config) | (
        {"vocab_size": rows} if "vocab_size" in config or not isinstance(text, dict) else {}
    )
    return changed | ({"text_config": text | {"vocab_size": rows}} if isinstance(text, dict) else {})


def extended_matrix(old: Tensor, pieces: Mapping[int, Sequence[int]], count: int) -> Tensor:
    """The matrix with `count` rows and, for each id of `pieces`, the mean of those rows of the old one:
    computed in fp32, rounded once.

    The other rows that it grows by are the mean of all old ones. With the mean as its row in the head, a
    token's logit is the mean logit, and so its probability at most the average one (Jensen's inequality).

    >>> extended_matrix(torch.tensor([[1.0], [2.0], [6.0]]), {3: [0, 1]}, 5).flatten().tolist()
    [1.0, 2.0, 6.0, 1.5, 3.0]
    """
    new = torch.empty(count, old.shape[1], dtype=old.dtype)
    new[: len(old)] = old
    if count > len(old):
        # never the whole in a wider type
        parts = [old[begin : begin + 4096].sum(0, dtype=torch.float64) for begin in range(0, len(old), 4096)]
        total = torch.stack(parts).sum(0)
        new[len(old) :] = (total / len(old)).to(old.dtype)
    for id_, ids in pieces.items():
        new[id_] = old[list(ids)].float().mean(0).to(old.dtype)
    return new


def token_ids(directory: Path, tokens: Sequence[str]) -> tuple[int, ...]:
    """The ids of `tokens` in a model directory's tokenizer. Raises DataError for one that is no token
    there.
    """
    if not tokens:
        return ()
    tokenizer = load_vocabulary(directory).tokenizer
    ids: list[int] = []
    for token in tokens:
        if (id_ := tokenizer.token_to_id(token)) is None:
            raise DataError(
                f"model.new_tokens names {token!r}, which the tokenizer in {directory} does not have. Fetch "
                "the model again: redo=fetch."
            )
        ids.append(id_)
    return tuple(ids)


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def _may_grow(config: Mapping[str, Any], before: int, after: int) -> None:
    if odd := sorted(key for key in _text(config) if "vocab_size" in key and key != "vocab_size"):
        raise DataError(
            f"model.new_tokens needs {after:,} rows of the embedding, which has {before:,}, and this family "
            f"has more tables of the vocabulary (config.json says {odd[0]}), so it can't grow. Name at most "
            "as many tokens as there are free rows."
        )


def _larger(index: dict[str, Any], more: int) -> dict[str, Any]:
    """The index of a checkpoint that has become `more` bytes larger."""
    metadata = index.get("metadata")
    if isinstance(metadata, dict) and isinstance(total := metadata.get("total_size"), int):
        return index | {"metadata": metadata | {"total_size": total + more}}
    return index


def _write_aside(directory: Path, out: Path, ids: Mapping[str, int]) -> None:
    """What the way back to a family's own layout needs, with the new tokens in its tokenizer's settings,
    where its own class reads them.
    """
    out.mkdir()
    for path in sorted(directory.iterdir()):
        if path.name != "tokenizer_config.json":
            link_or_copy(path, out / path.name)
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    added = {
        str(id_): {"content": token, **plain, "special": BRACKETED.fullmatch(token) is not None}
        for token, id_ in ids.items()
    }
    settings = (
        read_json_object(directory / "tokenizer_config.json")
        if (directory / "tokenizer_config.json").is_file()
        else {}
    )
    settings["added_tokens_decoder"] = settings.get("added_tokens_decoder", {}) | added
    (out / "tokenizer_config.json").write_text(
        json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _write_shard(
    path: Path,
    target: Path,
    tables: Sequence[str],
    pieces: Mapping[int, Sequence[int]],
    count: int,
    tick: Callable[[Spec], None],
) -> None:
    """One file of the checkpoint with the new rows in those of its tensors that have rows of tokens."""
    old = Checkpoint([path])
    specs = {
        name: replace(spec, shape=(count, *spec.shape[1:])) if name in tables else spec
        for name, spec in old.specs.items()
    }
    write_file(
        target,
        specs.values(),
        lambda name: extended_matrix(old[name], pieces, count) if name in tables else old[name],
        tick=tick,
    )
