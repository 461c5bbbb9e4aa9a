"""A SentencePiece model → a tokenizer.json that gives the same ids.

The same for a text by itself, and for texts between special tokens as the tokenizer's class treats them. What
can't be said in a tokenizer.json:

- Where a space is written before the first text only, a text that begins with a space gets none besides, as
  in transformers.
- A text that is one user-defined symbol of SentencePiece and nothing else gets no space written before it.
- Where a model normalises by rules of its own, a space is written behind such a symbol, as before a text.
- Of two ways to write a text that a Unigram model gives the same score, the other one may be taken.
- A BPE model with unused pieces, or one that writes its space behind words, is refused, as are models of
  words or characters.
"""

import base64
import re
from collections.abc import Mapping
from typing import Any

from tuner.data.tokenizer.added_tokens import added_token, name_tokens
from tuner.data.tokenizer.families import TokenizerFamily
from tuner.data.tokenizer.leading_space import START
from tuner.data.tokenizer.sentencepiece import SPACE, ModelType, PieceKind, SentencePieceModel
from tuner.data.tokenizer.tiktoken import merge_pairs
from tuner.data.tokenizer.tokenizer_json import (
    ConvertedTokenizer,
    bpe_model,
    post_processor,
    replace_step,
    tokenizer_json,
)
from tuner.errors import DataError


def from_sentencepiece(
    model: SentencePieceModel,
    family: TokenizerFamily,
    settings: Mapping[str, Any],
    added: Mapping[str, Any],
    *,
    piecewise: bool,
) -> ConvertedTokenizer:
    """The tokenizer of a model.

    settings   tokenizer_config.json and special_tokens_map.json
    added      added_tokens.json: names → ids
    piecewise  whether each text between special tokens begins with a space (`families.is_piecewise`)

    Raises DataError, which does not name the file.
    """
    if model.method not in (ModelType.BPE, ModelType.UNIGRAM):
        raise DataError(
            f"its pieces are put together by a method of number {model.method}; BPE (2) and Unigram (1) are "
            "known"
        )
    if model.suffix or (model.method == ModelType.BPE and PieceKind.UNUSED in model.kinds):
        raise DataError(
            "it puts spaces behind words and not before them" if model.suffix else "it has unused pieces"
        )
    names, extra, special = name_tokens(list(model.pieces), family, settings, added)
    kinds = {
        name: kind for name, old, kind in zip(names, model.pieces, model.kinds, strict=True) if name == old
    }
    places = {name: id_ for id_, name in enumerate(names)}
    special |= {
        name: added_token(name, places[name])
        for name, kind in kinds.items()
        if kind in (PieceKind.UNKNOWN, PieceKind.CONTROL) and name not in special
    }
    unigram = model.method == ModelType.UNIGRAM
    # A symbol of one character is a piece that is never joined, and Unigram finds symbols by their score; but
    # no rules may change them before.
    symbols = [
        name
        for name, kind in kinds.items()
        if kind == PieceKind.USER_DEFINED and (model.charsmap or (len(name) > 1 and not unigram))
    ]
    symbolic = {
        name: added_token(name, places[name], special=False, normalized=not model.charsmap)
        for name in symbols
    }
    vocab = places | extra
    where = _where(model, settings, piecewise=piecewise)
    names_of = {
        "bos_token": model.bos,
        "eos_token": model.eos,
        "unk_token": model.unk,
        "pad_token": model.pad,
    }
    called = {key: name for key, name in names_of.items() if name} | dict(family.names)
    begin = (
        family.begin
        if family.begin is not None
        else (model.bos,)
        if model.bos and settings.get("add_bos_token") is not False
        else ()
    )
    return ConvertedTokenizer(
        text=tokenizer_json(
            _unigram(model, names, extra) if unigram else _merging(model, vocab, kinds),
            symbolic | special,
            post_processor(begin, settings, vocab, model.eos),
            normalizer={
                "type": "Sequence",
                "normalizers": _normalizers(model, where, [] if model.charsmap else symbols),
            },
            pre_tokenizer=_pre_tokenizer(where, _found_in_text(model, kinds) if unigram else []),
            decoder={"type": "Sequence", "decoders": _decoders(where)},
        ),
        names=called,
    )


def _where(model: SentencePieceModel, settings: Mapping[str, Any], *, piecewise: bool) -> str:
    """Before which texts a space is written: `always`, `first` (where no token stands before it), `never`.

    piecewise   whether the tokenizer's class gives SentencePiece the texts between special tokens one by one,
                so that each begins with a space
    """
    if not model.dummy_prefix or settings.get("add_prefix_space") is False:
        return "never"
    return "always" if piecewise else "first"


def _normalizers(model: SentencePieceModel, where: str, symbols: list[str]) -> list[dict[str, Any]]:
    """The steps from a text to what is cut into pieces, in SentencePiece's order."""
    steps: list[dict[str, Any]] = []
    if model.charsmap:
        steps.append(
            {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(model.charsmap).decode()}
        )
    if model.remove_extra_whitespaces:
        # Behind a special token a space is one in the middle; at the very start it is the one that would be
        # written.
        steps += [] if where == "first" else [replace_step({"Regex": f"{START} +"}, "")]
        steps.append(replace_step({"Regex": " {2,}"}, " "))
    if where == "always" and symbols:
        # The tokenizer applies these steps to the symbols themselves too, and would find them only where a
        # space stands before.
        spelled = "|".join(map(re.escape, symbols))
        steps.append(replace_step({"Regex": rf"{START}(?!\z)(?!(?:{spelled})\z)"}, SPACE))
    elif where == "always":
        steps.append({"type": "Prepend", "prepend": SPACE})
    if model.escape_whitespaces:
        steps.append(replace_step({"String": " "}, SPACE))
    if model.remove_extra_whitespaces:
        steps.append(replace_step({"Regex": rf"{SPACE if model.escape_whitespaces else ' '}+\z"}, ""))
    return steps


def _pre_tokenizer(where: str, unwanted: list[str]) -> dict[str, Any] | None:
    """With a cut inside the names of `unwanted` pieces, so that no text has them whole."""
    cuts = "|".join(f"(?<={re.escape(name[0])})(?={re.escape(name[1:])})" for name in unwanted)
    steps = (
        [{"type": "Split", "pattern": {"Regex": cuts}, "behavior": "Isolated", "invert": False}]
        if cuts
        else []
    )
    steps += (
        [{"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False}]
        if where == "first"
        else []
    )
    return {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else next(iter(steps), None)


def _found_in_text(model: SentencePieceModel, kinds: Mapping[str, int]) -> list[str]:
    """Pieces that no text becomes, but for which Unigram would take them: an unknown character costs more
    than any of them.
    """
    known = {name for name, kind in kinds.items() if kind in (PieceKind.NORMAL, PieceKind.USER_DEFINED)}
    return [piece for piece in model.pieces if piece not in known and not known.issuperset(piece)]


def _decoders(where: str) -> list[dict[str, Any]]:
    strip = [] if where == "never" else [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    return [replace_step({"String": SPACE}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]


def _merging(model: SentencePieceModel, vocab: Mapping[str, int], kinds: Mapping[str, int]) -> dict[str, Any]:
    # Only normal pieces are joined: text never becomes a control piece, and user-defined symbols are not
    # taken apart or added to.
    normal = [name for name, kind in kinds.items() if kind == PieceKind.NORMAL]
    ranked = sorted(normal, key=lambda name: -model.scores[vocab[name]])
    return bpe_model(
        vocab,
        merge_pairs(ranked, normal),
        unk_token=model.unk,
        byte_fallback=model.byte_fallback,
        ignore_merges=False,
    )


def _unigram(model: SentencePieceModel, names: list[str], extra: Mapping[str, int]) -> dict[str, Any]:
    """The tokenizer would find any piece in a text, so those that no text becomes get a score that loses
    against every other way to write them.
    """
    lowest = min(
        (score for score, kind in zip(model.scores, model.kinds, strict=True) if kind == PieceKind.NORMAL),
        default=0.0,
    )
    never = 100 * min(lowest, -1.0)

    def score(name: str, id_: int) -> float:
        if name != model.pieces[id_] or model.kinds[id_] not in (PieceKind.NORMAL, PieceKind.USER_DEFINED):
            return never
        # as SentencePiece has it for a symbol, whatever the file says
        return model.scores[id_] if model.kinds[id_] == PieceKind.NORMAL else -0.1

    scored = [[name, score(name, id_)] for id_, name in enumerate(names)]
    behind = {id_: name for name, id_ in extra.items()}
    scored += [
        [behind.get(id_, f"[UNUSED_TOKEN_{id_}]"), never]
        for id_ in range(len(names), max(behind, default=-1) + 1)
    ]
    return {
        "type": "Unigram",
        "unk_id": model.kinds.index(PieceKind.UNKNOWN),
        "vocab": scored,
        "byte_fallback": model.byte_fallback,
    }
