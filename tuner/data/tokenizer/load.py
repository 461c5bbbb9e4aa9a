"""The tokenizer of a model directory: its vocabulary, its own special tokens, and text → ids as it is done in
the middle of a conversation.

A tokenizer may write a space before a text, or not, by where the text stands, so there are three of it
(tuner.data.tokenizer.leading_space).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tuner.data.chat.choice import own_template
from tuner.data.tokenizer import leading_space
from tuner.data.tokenizer.convert import convert, ordinary_pieces, vocabulary_file
from tuner.data.tokenizer.families import RESERVE
from tuner.errors import DataError, Interrupted
from tuner.files import decode_json
from tuner.hardware.limits import reading

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """A tokenizer and what its directory says of it."""

    tokenizer: Tokenizer
    """it cuts and pads nothing, and reads no special token out of text; for a text that no token stands
    before
    """
    later: Tokenizer
    """the same for a text behind a special token; the same object where there is no difference"""
    inner: Tokenizer
    """the same for a text that goes on in the middle of another"""
    bos: str | None
    """the token that the tokenizer begins a text with, the first of them; None where it does not"""
    eos: str | None
    """the token that ends a text"""
    begin: tuple[int, ...] = ()
    """the ids that the tokenizer begins a text with: `bos`, and for some families more"""
    names: Mapping[str, str] = field(default_factory=dict)
    """what the tokenizer's settings call bos_token, eos_token and so on, as its Jinja template sees them"""
    declared: Mapping[str, int] = field(default_factory=dict)
    """special tokens and their ids as the tokenizer's settings say, whatever its vocabulary calls them"""
    template: str | None = None
    """its own chat template, in Jinja"""
    repaired: bool = False
    """whether it is another tokenizer than the directory's: special tokens were named or marked"""


def load_vocabulary(directory: Path) -> Vocabulary:
    """The tokenizer of a model directory: its tokenizer.json, or a file of SentencePiece or tiktoken, which
    is converted.

    Where there are both, they must agree on the ids of ordinary pieces: nothing says with which of them the
    model was trained. Raises DataError when there is none, when a file can't be read, or when two disagree.
    """
    with reading(f"the tokenizer in {directory}"):
        return _load(directory)


def _load(directory: Path) -> Vocabulary:
    settings = settings_of(directory)
    file, other = directory / "tokenizer.json", vocabulary_file(directory)
    if not file.is_file():
        if other is None:
            raise DataError(
                f"{directory} has no tokenizer.json, which turns text into tokens, and no tokenizer.model or "
                "qwen.tiktoken to make one of. Copy it from the model's publisher into that directory."
            )
        # which is that of a rewritten checkpoint
        config = _object(directory / "config.json") | _object(directory / "original" / "config.json")
        found = convert(other, settings, config, _object(directory / "added_tokens.json"))
    try:
        text = file.read_text(encoding="utf-8") if file.is_file() else found.text
        tokenizer = tokenizer_from(text)
        later, inner = _elsewhere(text, tokenizer)
        begin = _begin(tokenizer)
    except BaseException as error:  # the Rust side raises bare Exception, and BaseException where it panics
        if isinstance(error, KeyboardInterrupt | SystemExit | Interrupted):
            raise
        raise DataError(
            f"{file if file.is_file() else other} can't be read as a tokenizer ({error}). Fetch the file "
            "again."
        ) from error
    if file.is_file() and other is not None:
        _agree(tokenizer, file, other)
    names = ({} if file.is_file() else dict(found.names)) | {
        key: name for key in NAMES if (name := _name(settings.get(key)))
    }
    eos = names.get("eos_token") or _by_id(tokenizer, _object(directory / "config.json").get("eos_token_id"))
    if (
        not begin
        and settings.get("add_bos_token") is True
        and (id_ := tokenizer.token_to_id(names.get("bos_token", ""))) is not None
    ):
        begin = (id_,)
    return Vocabulary(
        tokenizer=tokenizer,
        later=later,
        inner=inner,
        bos=_by_id(tokenizer, begin[0]) if begin else None,
        begin=begin,
        eos=eos,
        names=names,
        declared=_declared(settings),
        template=own_template(directory, settings),
        repaired=not file.is_file(),
    )


def settings_of(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json, with what special_tokens_map.json says besides."""
    return _object(directory / "special_tokens_map.json") | _object(directory / "tokenizer_config.json")


def with_special_tokens(vocabulary: Vocabulary, special: Iterable[str], ids: Mapping[str, int]) -> Vocabulary:
    """The vocabulary with the tokens of `ids` under those names, and all of `special` marked as special
    tokens, so that other readers see them too.

    Text that spells one of them is not merged into it any more.
    Only an id that is there and has a reserve name, such as [UNUSED_TOKEN_141], is given another. Raises
    DataError for any other.
    """
    tokenizer = vocabulary.tokenizer
    added = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    wanted = {token: id_ for token, id_ in ids.items() if tokenizer.token_to_id(token) != id_}
    known = {
        token: id_
        for token in (*special, *ids)
        if (id_ := ids.get(token, tokenizer.token_to_id(token))) is not None
    }
    unmarked = {
        token: id_
        for token, id_ in known.items()
        if token not in added or token in wanted or not added[token].special
    }
    merged = {
        token for token in known if known[token] in tokenizer.encode(token, add_special_tokens=False).ids
    }
    if not unmarked and not merged:
        return vocabulary
    for token, id_ in wanted.items():
        present = tokenizer.id_to_token(id_)
        if present is None:
            size = tokenizer.get_vocab_size(with_added_tokens=True)
            raise DataError(
                f"model.chat.ids says that {token} is the id {id_}, which the tokenizer does not have "
                f"({size} tokens). {_CHOOSE}"
            )
        if not RESERVE.fullmatch(present):
            raise DataError(
                f"model.chat.ids says that {token} is the id {id_}, and the tokenizer calls that {present}, "
                f"which is no reserved token. {_CHOOSE}"
            )
    data = decode_json(tokenizer.to_str())
    rename = {tokenizer.id_to_token(id_): token for token, id_ in wanted.items()}
    vocab = data["model"]["vocab"]
    if isinstance(vocab, dict):
        data["model"]["vocab"] = {rename.get(piece, piece): id_ for piece, id_ in vocab.items()}
    else:
        data["model"]["vocab"] = [[rename.get(piece, piece), score] for piece, score in vocab]
    # a conversion from SentencePiece may have made such merges, which SentencePiece itself never does
    if merged and "merges" in data["model"]:
        data["model"]["merges"] = [
            pair
            for pair in data["model"]["merges"]
            if "".join(pair.split(" ") if isinstance(pair, str) else pair) not in merged
        ]
    kept = [token for token in data["added_tokens"] if token["content"] not in (*rename, *unmarked)]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    as_is = {token["content"]: token for token in data["added_tokens"]}
    marked_now = [
        plain | as_is.get(token, {}) | {"id": id_, "content": token, "special": True}
        for token, id_ in unmarked.items()
    ]
    data["added_tokens"] = sorted([*kept, *marked_now], key=lambda token: token["id"])
    text = json.dumps(data, ensure_ascii=False)
    fresh = tokenizer_from(text)
    later, inner = _elsewhere(text, fresh)
    return replace(vocabulary, tokenizer=fresh, later=later, inner=inner, repaired=True)


_CHOOSE = "Choose the template the model was made for (model/chat=…), or the tokenizer that belongs to it."


def tokenizer_from(text: str) -> Tokenizer:
    """A tokenizer.json as it is used here: it cuts and pads nothing, and reads no special token out of
    text.
    """
    tokenizer = Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _elsewhere(text: str, tokenizer: Tokenizer) -> tuple[Tokenizer, Tokenizer]:
    """`later` and `inner` for the tokenizer of a text."""
    later, inner = (
        tokenizer if other is text else tokenizer_from(other)
        for other in (leading_space.later(text), leading_space.inner(text))
    )
    return later, inner


def _object(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = decode_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is no JSON ({error}). Fetch the file again.") from error
    return value if isinstance(value, dict) else {}


def _name(token: Any) -> str | None:
    name = token.get("content") if isinstance(token, dict) else token
    return name if isinstance(name, str) and name else None


def _by_id(tokenizer: Tokenizer, id_: Any) -> str | None:
    first = id_[0] if isinstance(id_, list) and id_ else id_
    name: str | None = tokenizer.id_to_token(first) if isinstance(first, int) else None
    return name


def _begin(tokenizer: Tokenizer) -> tuple[int, ...]:
    alone, begun = (tokenizer.encode("a", add_special_tokens=add).ids for add in (False, True))
    at = next((i for i in range(len(begun) - len(alone) + 1) if begun[i : i + len(alone)] == alone), 1)
    return tuple(begun[:at])


def _agree(tokenizer: Tokenizer, file: Path, other: Path) -> None:
    """Raises DataError where a piece of `other` has another id in `file`, unless it is a reserved one or
    that id went to an added token.
    """
    ids = tokenizer.get_vocab(with_added_tokens=True)
    added = tokenizer.get_added_tokens_decoder()
    try:
        known = ordinary_pieces(other)
    except DataError:
        return  # what can't be read says nothing else, and is not needed
    for piece, id_ in known.items():
        if ids.get(piece) != id_ and id_ not in added and not RESERVE.fullmatch(piece):
            raise DataError(
                f"{other} and {file} lie beside each other and are different tokenizers: the piece {piece!r} "
                f"is the id {id_} in the first, and "
                f"{'absent' if ids.get(piece) is None else f'the id {ids[piece]}'} in the second. Keep only "
                "the one that the model was trained with."
            )


def _declared(settings: Mapping[str, Any]) -> dict[str, int]:
    added = settings.get("added_tokens_decoder")
    entries = added.items() if isinstance(added, dict) else ()
    return {
        name: int(id_)
        for id_, token in entries
        if id_.isdecimal()
        and len(id_) < 10
        and (name := _name(token))
        and isinstance(token, dict)
        and token.get("special")
    }
