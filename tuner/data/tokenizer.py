"""The tokenizer of a model directory: its vocabulary, its own special tokens, and text → ids as it is done in the middle of a conversation.

A tokenizer may write a space before a text (SentencePiece's dummy prefix). Whether it does so depends on where the text stands, so there are three:

    first     before the first text of a whole string, when no token stands before it
    later     before every text that follows a special token
    inner     nowhere: for a text that goes on in the middle of another, such as an answer behind `ASSISTANT:`
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tuner.errors import DataError

RESERVE = re.compile(r"\W*_*(unused|reserved|extra|special|spare|dummy|buffer|placeholder)\w*\W*", re.IGNORECASE)
"""names of ids that publishers keep free"""

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """A tokenizer and what its directory says of it."""

    tokenizer: Tokenizer
    """it cuts and pads nothing, and reads no special token out of text; for a text that no token stands before"""
    later: Tokenizer
    """the same for a text behind a special token; the same object where there is no difference"""
    inner: Tokenizer
    """the same for a text that goes on in the middle of another"""
    bos: str | None
    """the token that the tokenizer begins a text with; None where it does not"""
    eos: str | None
    """the token that ends a text"""
    names: Mapping[str, str] = field(default_factory=dict)
    """what the tokenizer's settings call bos_token, eos_token and so on, as its Jinja template sees them"""
    declared: Mapping[str, int] = field(default_factory=dict)
    """special tokens and their ids as the tokenizer's settings say, whatever its vocabulary calls them"""
    template: str | None = None
    """its own chat template, in Jinja"""
    repaired: bool = False
    """whether it is another tokenizer than the directory's: special tokens were named or marked"""


def load_vocabulary(directory: Path) -> Vocabulary:
    """The tokenizer of a model directory. Raises DataError when there is no tokenizer.json, or when a file can't be read."""
    file = directory / "tokenizer.json"
    if not file.is_file():
        raise DataError(f"{directory} has no tokenizer.json, which turns text into tokens. Copy it from the model's publisher into that directory.")
    try:
        text = file.read_text(encoding="utf-8")
        tokenizer = _tokenizer(text)
        pieces = _steps(json.loads(text))
    except Exception as error:  # the Rust side raises bare Exception
        raise DataError(f"{file} can't be read as a tokenizer ({error}). Fetch the file again.") from error
    later = _changed(text, _never_first) if any(piece.get("prepend_scheme") == "first" for piece in pieces) else tokenizer
    inner = _changed(text, _never) if any(_prefixes(piece) for piece in pieces) else tokenizer
    settings = _object(directory / "special_tokens_map.json") | _object(directory / "tokenizer_config.json")
    names = {key: name for key in NAMES if (name := _name(settings.get(key)))}
    eos = names.get("eos_token") or _by_id(tokenizer, _object(directory / "config.json").get("eos_token_id"))
    return Vocabulary(
        tokenizer=tokenizer, later=later, inner=inner, bos=_bos(tokenizer, settings, names), eos=eos, names=names, declared=_declared(settings),
        template=_template(directory, settings),
    )  # fmt: skip


def fitted(vocabulary: Vocabulary, special: Iterable[str], ids: Mapping[str, int]) -> Vocabulary:
    """The vocabulary with the tokens of `ids` under those names, and all of `special` marked as special tokens, so that other readers see them too.

    Text that spells one of them is not merged into it any more.
    Only an id that is there and has a reserve name, such as [UNUSED_TOKEN_141], is given another. Raises DataError for any other.
    """
    tokenizer = vocabulary.tokenizer
    added = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    wanted = {token: id_ for token, id_ in ids.items() if tokenizer.token_to_id(token) != id_}
    known = {token: id_ for token in (*special, *ids) if (id_ := ids.get(token, tokenizer.token_to_id(token))) is not None}
    unmarked = {token: id_ for token, id_ in known.items() if token not in added or token in wanted or not added[token].special}
    merged = {token for token in known if known[token] in tokenizer.encode(token, add_special_tokens=False).ids}
    if not unmarked and not merged:
        return vocabulary
    for token, id_ in wanted.items():
        present = tokenizer.id_to_token(id_)
        if present is None:
            size = tokenizer.get_vocab_size(with_added_tokens=True)
            raise DataError(f"model.chat.ids says that {token} is the id {id_}, which the tokenizer does not have ({size} tokens). {_CHOOSE}")
        if not RESERVE.fullmatch(present):
            raise DataError(
                f"model.chat.ids says that {token} is the id {id_}, and the tokenizer calls that {present}, which is no free place. {_CHOOSE}"
            )
    data = json.loads(tokenizer.to_str())
    rename = {tokenizer.id_to_token(id_): token for token, id_ in wanted.items()}
    vocab = data["model"]["vocab"]
    if isinstance(vocab, dict):
        data["model"]["vocab"] = {rename.get(piece, piece): id_ for piece, id_ in vocab.items()}
    else:
        data["model"]["vocab"] = [[rename.get(piece, piece), score] for piece, score in vocab]
    if merged and "merges" in data["model"]:  # a conversion from SentencePiece may have made such merges, which SentencePiece itself never does
        data["model"]["merges"] = [
            pair for pair in data["model"]["merges"] if "".join(pair.split(" ") if isinstance(pair, str) else pair) not in merged
        ]
    kept = [token for token in data["added_tokens"] if token["content"] not in (*rename, *unmarked)]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    as_is = {token["content"]: token for token in data["added_tokens"]}
    marked_now = [plain | as_is.get(token, {}) | {"id": id_, "content": token, "special": True} for token, id_ in unmarked.items()]
    data["added_tokens"] = sorted([*kept, *marked_now], key=lambda token: token["id"])
    text = json.dumps(data, ensure_ascii=False)
    fresh = _tokenizer(text)
    return replace(
        vocabulary,
        tokenizer=fresh,
        later=fresh if vocabulary.later is tokenizer else _changed(text, _never_first),
        inner=fresh if vocabulary.inner is tokenizer else _changed(text, _never),
        repaired=True,
    )


_CHOOSE = "Choose the template the model was made for (model/chat=…), or the tokenizer that belongs to it."


def _tokenizer(text: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _steps(data: Any) -> list[dict[str, Any]]:
    """All steps of the normalizer and the pre-tokenizer, also those in a sequence."""
    found: list[dict[str, Any]] = []
    todo = [data.get("normalizer"), data.get("pre_tokenizer")]
    while todo:
        step = todo.pop()
        if step:
            found.append(step)
            todo += [*step.get("normalizers", ()), *step.get("pretokenizers", ())]
    return found


def _prefixes(step: dict[str, Any]) -> bool:
    """Whether it writes a space before a text."""
    kind: str = step["type"]
    if kind == "Metaspace":
        return bool(step.get("prepend_scheme", "always" if step.get("add_prefix_space") else "never") != "never")
    return kind == "Prepend" or (kind == "ByteLevel" and bool(step["add_prefix_space"]))


def _never_first(step: dict[str, Any]) -> None:
    if step.get("prepend_scheme") == "first":
        step["prepend_scheme"] = "never"


def _never(step: dict[str, Any]) -> None:
    if step["type"] == "Prepend":
        step["prepend"] = ""
    elif step["type"] == "Metaspace":
        step["prepend_scheme"] = "never"
        step.pop("add_prefix_space", None)
    elif step["type"] == "ByteLevel":
        step["add_prefix_space"] = False


def _changed(text: str, change: Any) -> Tokenizer:
    data = json.loads(text)
    for step in _steps(data):
        change(step)
    return _tokenizer(json.dumps(data, ensure_ascii=False))


def _object(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
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


def _bos(tokenizer: Tokenizer, settings: Mapping[str, Any], names: Mapping[str, str]) -> str | None:
    alone, begun = (tokenizer.encode("a", add_special_tokens=add).ids for add in (False, True))
    if begun[:1] != alone[:1]:
        return _by_id(tokenizer, begun[0])
    return names.get("bos_token") if settings.get("add_bos_token") is True else None


def _declared(settings: Mapping[str, Any]) -> dict[str, int]:
    added = settings.get("added_tokens_decoder")
    entries = added.items() if isinstance(added, dict) else ()
    return {
        name: int(id_) for id_, token in entries if id_.isdecimal() and (name := _name(token)) and isinstance(token, dict) and token.get("special")
    }


def _template(directory: Path, settings: Mapping[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    return next(_templates(settings.get("chat_template")), None)


def _templates(value: Any) -> Iterator[str]:
    """The template; of several named ones the default."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        named = {str(entry.get("name")): entry.get("template") for entry in value if isinstance(entry, dict)}
        yield from _templates(named.get("default") or next(iter(named.values()), None))
