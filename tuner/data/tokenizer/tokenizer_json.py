"""A tokenizer.json and its parts, as they are written for the vocabulary of another library."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertedTokenizer:
    """A converted tokenizer."""

    text: str
    """a tokenizer.json"""
    names: Mapping[str, str]
    """what the family calls bos_token, eos_token and so on"""


def tokenizer_json(
    model: dict[str, Any],
    added: Mapping[str, dict[str, Any]],
    begun: dict[str, Any] | None,
    *,
    normalizer: Any,
    pre_tokenizer: Any,
    decoder: Any,
) -> str:
    """The text of a tokenizer.json; `added` are the entries of its added tokens, by name."""
    tokens = sorted(added.values(), key=lambda token: token["id"])
    steps = {
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": begun,
        "decoder": decoder,
    }
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": tokens,
            **steps,
            "model": model,
        },
        ensure_ascii=False,
    )


def bpe_model(
    vocab: Mapping[str, int],
    merges: Iterable[tuple[str, str]],
    *,
    unk_token: str | None,
    byte_fallback: bool,
    ignore_merges: bool,
) -> dict[str, Any]:
    """A BPE model: pieces → ids, and what is joined, first to last."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk_token,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": vocab,
        "merges": list(merges),
    }


def replace_step(pattern: dict[str, str], content: str) -> dict[str, Any]:
    """A step that replaces a text, or what a regular expression matches."""
    return {"type": "Replace", "pattern": pattern, "content": content}


def post_processor(
    begin: Iterable[str], settings: Mapping[str, Any], vocab: Mapping[str, int], eos: str | None
) -> dict[str, Any] | None:
    """The step that writes what a text begins with, and what it ends with where the settings say so."""
    first = [name for name in begin if name in vocab]
    last = [eos] if eos in vocab and settings.get("add_eos_token") is True else []
    if not first and not last:
        return None

    def around(sequence: str, type_id: int) -> list[dict[str, Any]]:
        def token(name: str) -> dict[str, Any]:
            return {"SpecialToken": {"id": name, "type_id": type_id}}

        return [
            *map(token, first),
            {"Sequence": {"id": sequence, "type_id": type_id}},
            *(token(name) for name in last if name),
        ]

    used = {name: {"id": name, "ids": [vocab[name]], "tokens": [name]} for name in (*first, *last) if name}
    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": used,
    }
