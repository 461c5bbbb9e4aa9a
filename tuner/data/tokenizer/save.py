"""A vocabulary written to a directory, as others read it: tokenizer.json and tokenizer_config.json, by which
every token has the id it has here.

A loader that finds a name in the settings which tokenizer.json does not have gives it a new id behind all
others, where the model has no row. So what the settings name and the vocabulary lacks is left out of them.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuner.data.tokenizer.families import RESERVE
from tuner.data.tokenizer.load import Vocabulary, settings_of, with_special_tokens

CLASS = "PreTrainedTokenizerFast"
"""the general class of transformers, which reads tokenizer.json"""


def save_vocabulary(vocabulary: Vocabulary, source: Path, out: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json of a vocabulary that was loaded from the directory
    `source`, which may be `out`.
    """
    vocabulary = as_declared(vocabulary)
    write_tokenizer_json(vocabulary, source, out)
    _write(
        out / "tokenizer_config.json",
        json.dumps(settings_for(vocabulary, source), indent=2, ensure_ascii=False) + "\n",
    )


def write_tokenizer_json(vocabulary: Vocabulary, source: Path, out: Path) -> None:
    """tokenizer.json alone: the file itself where the vocabulary is as it says."""
    if vocabulary.repaired:
        _write(out / "tokenizer.json", vocabulary.tokenizer.to_str(pretty=True))
    elif source != out:
        shutil.copyfile(source / "tokenizer.json", out / "tokenizer.json")


def _write(file: Path, text: str) -> None:
    file.unlink(missing_ok=True)  # it may be a hard link to somebody's own file
    file.write_text(text, encoding="utf-8")


def as_declared(vocabulary: Vocabulary) -> Vocabulary:
    """With reserved places under the names that the settings give them."""
    tokenizer = vocabulary.tokenizer
    missing = {
        token: id_ for token, id_ in vocabulary.declared.items() if tokenizer.token_to_id(token) is None
    }
    return with_special_tokens(
        vocabulary,
        (),
        {token: id_ for token, id_ in missing.items() if RESERVE.fullmatch(tokenizer.id_to_token(id_) or "")},
    )


def settings_for(vocabulary: Vocabulary, source: Path) -> dict[str, Any]:
    """tokenizer_config.json for a vocabulary that was loaded from `source`, with what special_tokens_map.json
    said besides, and without names that the vocabulary lacks. A tokenizer that needs code of its publisher to
    load, or that was changed here, gets the general class.
    """
    tokenizer = vocabulary.tokenizer
    settings = settings_of(source)
    named = {
        key: name
        for key, name in vocabulary.names.items()
        if key not in settings or tokenizer.token_to_id(name) is None
    }
    for key, name in named.items():
        if tokenizer.token_to_id(name) is None:
            settings.pop(key, None)
        else:
            settings[key] = name
    for key in ("additional_special_tokens", "extra_special_tokens"):
        value = settings.get(key)
        if isinstance(value, list):
            settings[key] = [token for token in value if _known(vocabulary, token)]
        elif isinstance(value, dict):
            settings[key] = {name: token for name, token in value.items() if _known(vocabulary, token)}
    decoder = settings.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        settings["added_tokens_decoder"] = {
            id_: token for id_, token in decoder.items() if str(_id(vocabulary, token)) == id_
        }
    if vocabulary.repaired or "auto_map" in settings:
        settings.pop("auto_map", None)
        settings["tokenizer_class"] = CLASS
    return settings


def _known(vocabulary: Vocabulary, token: Any) -> bool:
    return _id(vocabulary, token) is not None


def _id(vocabulary: Vocabulary, token: Any) -> int | None:
    name = token.get("content") if isinstance(token, Mapping) else token
    id_: int | None = vocabulary.tokenizer.token_to_id(name) if isinstance(name, str) else None
    return id_
