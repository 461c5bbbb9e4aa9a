"""Tokens added to a vocabulary on purpose (model.new_tokens): what their texts were before, and the
tokenizer.json that has them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tuner.data.tokenizer.load import Vocabulary, load_vocabulary, tokenizer_from
from tuner.data.tokenizer.save import save_vocabulary
from tuner.errors import DataError

BRACKETED = re.compile(r"<[^<>]+>|\[[^\[\]]+\]")
"""names of special tokens, which no text becomes; any other new token is read out of text"""


def pieces_of(directory: Path, tokens: Sequence[str]) -> dict[str, list[int]]:
    """What each of `tokens` is made of in the vocabulary of a model directory, in the middle of a text.

    Raises DataError for a token that is there already, is named twice, or is empty.
    """
    vocabulary = load_vocabulary(directory)
    _check_new(vocabulary, tokens, directory)
    pieces: dict[str, list[int]] = {
        token: vocabulary.inner.encode(token, add_special_tokens=False).ids for token in tokens
    }
    if empty := [token for token, ids in pieces.items() if not ids]:
        raise DataError(
            f"model.new_tokens names {empty[0]!r}, which the tokenizer in {directory} encodes to no tokens: "
            "a token is a visible text."
        )
    return pieces


def write_new_tokens(directory: Path, ids: Mapping[str, int], out: Path) -> None:
    """Write the tokenizer.json and tokenizer_config.json of `directory` to `out`, with new tokens under the
    ids given.

    Those in brackets, such as <tool> or [END], are special. Raises DataError for a token that is there
    already, for an id that is taken, and for one that the vocabulary can't give.
    """
    vocabulary = load_vocabulary(directory)
    _check_new(vocabulary, list(ids), directory)
    for token, id_ in ids.items():
        if (present := vocabulary.tokenizer.id_to_token(id_)) is not None or list(ids.values()).count(
            id_
        ) > 1:
            raise DataError(
                f"the new token {token} can't be the id {id_} of the tokenizer in {directory}: that is "
                f"{present or 'another new one'}."
            )
    grown = _grown(vocabulary.tokenizer, ids, placed=False)
    # ids that do not follow the last one
    if any(grown.token_to_id(token) != id_ for token, id_ in ids.items()):
        grown = _grown(vocabulary.tokenizer, ids, placed=True)
    for token, id_ in ids.items():
        read = id_ in grown.encode(token, add_special_tokens=False).ids
        if grown.token_to_id(token) != id_ or read == _special(token):
            raise DataError(
                f"the tokenizer in {directory} can't have {token} as the id {id_}. The next free id is "
                f"{_next(vocabulary.tokenizer)}."
            )
    save_vocabulary(replace(vocabulary, tokenizer=grown, repaired=True), directory, out)


def _grown(tokenizer: Tokenizer, ids: Mapping[str, int], *, placed: bool) -> Tokenizer:
    """With the tokens behind all others; or, `placed`, put among its pieces, which may leave ids out."""
    data: dict[str, Any] = json.loads(tokenizer.to_str())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for token, id_ in sorted(ids.items(), key=lambda item: item[1]):
        data["added_tokens"].append({"id": id_, "content": token, **flags, "special": _special(token)})
        if placed and isinstance(data["model"]["vocab"], dict):
            data["model"]["vocab"][token] = id_
    return tokenizer_from(json.dumps(data, ensure_ascii=False))


def _check_new(vocabulary: Vocabulary, tokens: Sequence[str], directory: Path) -> None:
    for place, token in enumerate(tokens):
        if not token.strip() or token in tokens[:place]:
            raise DataError(
                f"model.new_tokens names {token!r}{' twice' if token.strip() else ''}: a new token is a "
                "visible text, named once."
            )
        if (id_ := vocabulary.tokenizer.token_to_id(token)) is not None:
            raise DataError(
                f"model.new_tokens names {token!r}, and the tokenizer in {directory} has that as the id "
                f"{id_}. Take it off the list: a template may use it."
            )


def _special(token: str) -> bool:
    return BRACKETED.fullmatch(token) is not None


def _next(tokenizer: Tokenizer) -> int:
    return int(max(tokenizer.get_vocab(with_added_tokens=True).values())) + 1
