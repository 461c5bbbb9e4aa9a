"""Tokenizer files of other libraries (SentencePiece's model, tiktoken's ranks) → the text of a tokenizer.json
that gives the same ids.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuner.data.tokenizer import families
from tuner.data.tokenizer.added_tokens import name_tokens
from tuner.data.tokenizer.families import TokenizerFamily
from tuner.data.tokenizer.from_sentencepiece import from_sentencepiece
from tuner.data.tokenizer.sentencepiece import PieceKind, read_model
from tuner.data.tokenizer.tiktoken import is_ranks, merge_pairs, read_ranks, spell
from tuner.data.tokenizer.tokenizer_json import ConvertedTokenizer, bpe_model, post_processor, tokenizer_json
from tuner.errors import DataError

NAMES = ("qwen.tiktoken", "tokenizer.model")
"""the files that are read, the first that is there"""


def vocabulary_file(directory: Path) -> Path | None:
    """The file of another library in a model directory."""
    return next((file for name in NAMES if (file := directory / name).is_file()), None)


def convert(
    file: Path, settings: Mapping[str, Any], config: Mapping[str, Any], added: Mapping[str, Any]
) -> ConvertedTokenizer:
    """The tokenizer in a file that `vocabulary_file` found.

    settings   tokenizer_config.json and special_tokens_map.json
    config     config.json as its publisher wrote it
    added      added_tokens.json: names → ids

    Raises DataError.
    """
    data = file.read_bytes()
    if data.startswith(b"version https://git-lfs"):
        raise DataError(f"{file} is a Git LFS pointer, not the file itself. Fetch it with: git lfs pull")
    try:
        if is_ranks(data):
            return _from_tiktoken(
                [spell(token) for token in read_ranks(data)],
                families.tiktoken_family(file.name, settings, config),
                settings,
                added,
            )
        return from_sentencepiece(
            read_model(data),
            families.sentencepiece_family(settings, config),
            settings,
            added,
            piecewise=families.is_piecewise(settings, config),
        )
    except DataError as error:
        raise DataError(
            f"{file} can't be used as a tokenizer: {error}. Fetch the file again, or bring the publisher's "
            "tokenizer.json."
        ) from error


def ordinary_pieces(file: Path) -> dict[str, int]:
    """The pieces that ordinary text becomes, as a tokenizer.json spells them, and their ids. Raises
    DataError.
    """
    data = file.read_bytes()
    if is_ranks(data):
        return {spell(token): id_ for id_, token in enumerate(read_ranks(data))}
    model = read_model(data)
    return {
        piece: id_
        for id_, (piece, kind) in enumerate(zip(model.pieces, model.kinds, strict=True))
        if kind == PieceKind.NORMAL
    }


def _from_tiktoken(
    tokens: list[str], family: TokenizerFamily, settings: Mapping[str, Any], added: Mapping[str, Any]
) -> ConvertedTokenizer:
    tokens, extra, special = name_tokens(tokens, family, settings, added)
    vocab = {token: id_ for id_, token in enumerate(tokens)} | extra
    split = {"type": "Split", "pattern": {"Regex": family.cut}, "behavior": "Isolated", "invert": False}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    # A word that is a token becomes it at once, whichever pairs it is made of: tiktoken looks first.
    model = bpe_model(
        vocab, merge_pairs(tokens, tokens), unk_token=None, byte_fallback=False, ignore_merges=True
    )
    return ConvertedTokenizer(
        text=tokenizer_json(
            model,
            special,
            post_processor(family.begin or (), settings, vocab, family.names.get("eos_token")),
            normalizer={"type": "NFC"} if family.composes else None,
            pre_tokenizer={"type": "Sequence", "pretokenizers": [split, bytes_]},
            decoder=bytes_,
        ),
        names=family.names,
    )
