"""What lies beside the weights so that a model can be used: tokenizer, chat template, generation settings, config.

All of it is JSON and text, written the same to the byte wherever it is written, without library versions or local paths.
"""

import json
import shutil
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from tuner.data.chat import compile_template
from tuner.data.jinja import to_jinja
from tuner.data.tokenizer import load_vocabulary
from tuner.errors import DataError
from tuner.models.files import TEXT
from tuner.schema import Chat

LOCAL = frozenset(
    {
        "transformers_version",
        "peft_version",
        "_name_or_path",
        "_model_name_or_path",
        "name_or_path",
        "is_local",
        "local_files_only",
        "auto_map",
        "_from_model_config",
    }
)
"""keys that say where or by which version something was written, or that name code to be run"""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises DataError when it is something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error}). Get the file again.") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a {type(value).__name__} where a JSON object is expected. Get the file again.")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """A JSON object into a file: in its own order, indented, without the keys of `LOCAL`."""
    kept = {key: value[key] for key in value if key not in LOCAL}
    path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def spoken(chat: Any, system: str | None) -> Chat:
    """The chat format as it is trained and asked: `system` (data.system), where given, stands in for the template's default system prompt.

    `chat` is a tuner.schema.Chat or a stage's View on one.
    """
    values = {f.name: getattr(chat, f.name) for f in fields(Chat)}
    return Chat(**(values if system is None else values | {"default_system": system}))


def write_tokenizer(source: Path, out: Path, chat: Chat) -> None:
    """Copy a model directory's tokenizer and write the chat template beside it, in place of any that the tokenizer's own config carries.

    Where the template had to name or mark special tokens of the vocabulary, they are named and marked in what is written. A tokenizer that
    needs code of its publisher to load gets the general class instead, which reads tokenizer.json.
    """
    vocabulary = load_vocabulary(source)
    template = compile_template(chat, vocabulary)
    for name in TEXT:
        if (source / name).is_file() and name != "tokenizer_config.json":
            shutil.copyfile(source / name, out / name)
    settings = read_json(source / "tokenizer_config.json") if (source / "tokenizer_config.json").is_file() else {}
    settings.pop("chat_template", None)
    if template.vocabulary.repaired:
        (out / "tokenizer.json").write_text(template.tokenizer.to_str(pretty=True), encoding="utf-8")
    if template.vocabulary.repaired or "auto_map" in settings:
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(out / "tokenizer_config.json", settings)
    (out / "chat_template.jinja").write_text(to_jinja(chat, vocabulary), encoding="utf-8")


def write_generation_config(source: Path, out: Path, end_id: int, stops: Iterable[int] = ()) -> None:
    """The base's generation settings, with the id that ends an answer, and `stops`, among those that stop generation."""
    path = source / "generation_config.json"
    settings = read_json(path) if path.is_file() else {}
    known = settings.get("eos_token_id")
    shipped = known if isinstance(known, list) else [] if known is None else [known]
    settings["eos_token_id"] = list(dict.fromkeys([end_id, *sorted(stops), *shipped]))
    write_json(out / "generation_config.json", settings)


def write_config(source: Path, out: Path, dtype: str) -> None:
    """The base's config.json with `dtype` (bfloat16 or float32) as the weights' type, under both the newer and the older key."""
    settings = read_json(source / "config.json")
    settings["dtype"] = dtype
    if "torch_dtype" in settings:
        settings["torch_dtype"] = dtype
    write_json(out / "config.json", settings)
