"""The entries under `added_tokens` of a tokenizer.json, for a vocabulary that comes without one: what its
settings say of special tokens.
"""

from collections.abc import Mapping
from typing import Any

from tuner.data.tokenizer.families import RESERVE, TokenizerFamily
from tuner.errors import DataError

ROOM = 65_536
"""ids that may lie between a vocabulary and a token added to it; more are an error in the settings"""


def name_tokens(
    names: list[str], family: TokenizerFamily, settings: Mapping[str, Any], added: Mapping[str, Any]
) -> tuple[list[str], dict[str, int], dict[str, dict[str, Any]]]:
    """The pieces with reserved ones under the names that the settings give them, the ids of tokens behind
    them, and all added tokens by name.
    """
    size, places = len(names), {name: id_ for id_, name in enumerate(names)}
    called = {
        name
        for key, name in ((key, _content(value)) for key, value in settings.items() if key.endswith("_token"))
        if name
    }
    called |= {
        name
        for key in ("additional_special_tokens", "extra_special_tokens")
        for name in _list(settings.get(key))
    }
    wanted = {
        name: added_token(name, id_, special=name in called)
        for name, id_ in added.items()
        if isinstance(id_, int)
    }
    decoder = settings.get("added_tokens_decoder")
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        if number.isdecimal() and isinstance(token, dict) and (name := _content(token)):
            flags = {
                key: bool(token.get(key))
                for key in ("single_word", "lstrip", "rstrip", "normalized", "special")
            }
            wanted[name] = added_token(name, int(number)) | flags
    told = {token["id"] for token in wanted.values()}
    wanted = {
        name: added_token(name, size + i) for i, name in enumerate(family.special) if size + i not in told
    } | wanted
    wanted = {name: token for name, token in wanted.items() if places.get(name, token["id"]) == token["id"]}
    for name, token in list(wanted.items()):
        id_ = token["id"]
        if id_ > size + ROOM:
            raise DataError(
                f"the settings beside it give the token {name} the id {id_:,}, far behind its {size:,} tokens"
            )
        if id_ < size and names[id_] != name:
            if RESERVE.fullmatch(names[id_]):
                names[id_] = name
            else:
                del wanted[name]
    behind = {name: token["id"] for name, token in wanted.items() if token["id"] >= size}
    if len({*behind.values()}) < len(behind):
        raise DataError("the settings beside it give two tokens one id")
    return names, behind, wanted


def added_token(name: str, id_: int, *, special: bool = True, normalized: bool = False) -> dict[str, Any]:
    """An entry under `added_tokens`."""
    return {
        "id": id_,
        "content": name,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": normalized,
        "special": special,
    }


def _content(token: Any) -> str | None:
    name = token.get("content") if isinstance(token, dict) else token
    return name if isinstance(name, str) and name else None


def _list(tokens: Any) -> list[str]:
    return [name for token in tokens if (name := _content(token))] if isinstance(tokens, list) else []
