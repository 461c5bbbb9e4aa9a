"""What lies beside the weights so that a model can be used: tokenizer, chat template, generation settings,
config.

All of it is JSON and text, written the same to the byte wherever it is written, without library versions or
local paths.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tuner.config.schema import Chat
from tuner.data.chat.special_tokens import choose_pad
from tuner.data.chat.template import compile_template
from tuner.data.chat.to_jinja import to_jinja
from tuner.data.tokenizer.load import load_vocabulary
from tuner.data.tokenizer.save import as_declared, settings_for, write_tokenizer_json
from tuner.errors import DataError
from tuner.files import decode_json
from tuner.models.checkpoint.files import TEXT

TIED = "tie_word_embeddings"
"""the key of config.json that says whether the output head is the embedding"""
LOCAL = frozenset(
    (
        "transformers_version peft_version _name_or_path _model_name_or_path name_or_path is_local "
        "local_files_only auto_map _from_model_config"
    ).split()
)
"""keys that say where or by which version something was written, or that name code to be run"""


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises DataError when it is something else."""
    try:
        value = decode_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}). Get the file again.") from error
    if not isinstance(value, dict):
        raise DataError(
            f"{path} holds a {type(value).__name__} where a JSON object is expected. Get the file again."
        )
    return value


def write_json_object(path: Path, value: dict[str, Any]) -> None:
    """A JSON object into a file: in its own order, indented, without the keys of `LOCAL`."""
    kept = {key: value[key] for key in value if key not in LOCAL}
    path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def chat_with_system(chat: Any, system: str | None) -> Chat:
    """The chat format as it is trained and asked: `system` (data.system), where given, stands in for the
    template's default system prompt.

    `chat` is a tuner.config.schema.Chat or a stage's View on one.
    """
    values = {f.name: getattr(chat, f.name) for f in fields(Chat)}
    return Chat(**(values if system is None else values | {"default_system": system}))


def write_tokenizer(source: Path, out: Path, chat: Chat) -> int | None:
    """Copy a model directory's tokenizer and write the chat template beside it, in place of any that the
    tokenizer's own config carries.

    Where the template had to name or mark special tokens of the vocabulary, they are named and marked in what
    is written, and a file of another library is written as tokenizer.json. A tokenizer that needs code of its
    publisher to load gets the general class instead, which reads that. Returns the id to pad with, which is
    never one that the template trains; None where there is no such token.
    """
    vocabulary = load_vocabulary(source)
    template = compile_template(chat, vocabulary)
    fit = as_declared(template.vocabulary)
    for name in TEXT:
        # special_tokens_map.json would say otherwise of the pad token: it goes into tokenizer_config.json,
        # which stands before it.
        if (source / name).is_file() and name not in (
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
        ):
            shutil.copyfile(source / name, out / name)
    write_tokenizer_json(fit, source, out)
    settings = settings_for(fit, source)
    settings.pop("chat_template", None)
    config = read_json_object(source / "config.json") if (source / "config.json").is_file() else {}
    pad = choose_pad(template, chat, vocabulary_rows(config))
    settings.pop("pad_token", None)
    if pad is not None:
        settings["pad_token"] = pad
    write_json_object(out / "tokenizer_config.json", settings)
    (out / "chat_template.jinja").write_text(to_jinja(chat, vocabulary), encoding="utf-8")
    return None if pad is None else fit.tokenizer.token_to_id(pad)


def vocabulary_rows(config: Mapping[str, Any]) -> int | None:
    """The rows of a model's embedding by its config.json, the language part's of several; None where it
    does not say.
    """
    for part in (config, config.get("text_config"), config.get("language_config"), config.get("llm_config")):
        if isinstance(part, Mapping) and isinstance(
            rows := part.get("vocab_size", part.get("padded_vocab_size")), int
        ):
            return rows
    return None


def write_generation_config(
    source: Path, out: Path, end_id: int, stops: Iterable[int] = (), pad: int | None = None
) -> None:
    """The base's generation settings, with the id that ends an answer, and `stops`, among those that stop
    generation.

    `pad` is the id that `write_tokenizer` returned; without one the base's own stays, unless an answer ends
    at it.
    """
    path = source / "generation_config.json"
    settings = read_json_object(path) if path.is_file() else {}
    known = settings.get("eos_token_id")
    shipped = known if isinstance(known, list) else [] if known is None else [known]
    ends = [end_id, *sorted(stops)]
    settings["eos_token_id"] = list(dict.fromkeys([*ends, *shipped]))
    if pad is not None:
        settings["pad_token_id"] = pad
    elif settings.get("pad_token_id") in ends:
        del settings["pad_token_id"]
    write_json_object(out / "generation_config.json", settings)


def write_config(source: Path, out: Path, dtype: str, *, untied: bool = False) -> None:
    """The base's config.json with `dtype` (bfloat16 or float32) as the weights' type, under both the newer
    and the older key.

    untied   whether the output head has become a matrix of its own
    """
    settings = read_json_object(source / "config.json")
    if untied:
        settings = untied_config(settings)
    settings["dtype"] = dtype
    if "torch_dtype" in settings:
        settings["torch_dtype"] = dtype
    write_json_object(out / "config.json", settings)


def untied_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json that says that the head is not the embedding, of the whole and of its text part.

    >>> untied_config({"vocab_size": 5, "text_config": {"tie_word_embeddings": True}})
    {'vocab_size': 5, 'text_config': {'tie_word_embeddings': False}, 'tie_word_embeddings': False}
    """
    text = config.get("text_config")
    return (
        dict(config)
        | ({"text_config": text | {TIED: False}} if isinstance(text, dict) else {})
        | {TIED: False}
    )
