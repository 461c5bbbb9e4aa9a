"""Links in a model's directory. A directory from a stranger may hold `vocab.txt → ~/.ssh/id_rsa`, and what is
trained takes a model's small files along, for others to read.

Weights may lie anywhere, as in a lab's farm of links: they are read as tensors. What is read and written anew
may, where it is what it should be. What is copied byte for byte must lie in the directory itself, or in the
cache of a hub that the directory is part of.
"""

from collections.abc import Iterator
from pathlib import Path

from tuner.errors import DataError
from tuner.files import decode_json
from tuner.models.checkpoint.files import SETTINGS, TEXT

EXPECTED = {
    "config.json": "model_type architectures",
    "generation_config.json": "eos_token_id bos_token_id pad_token_id do_sample temperature top_p",
    "tokenizer_config.json": "tokenizer_class chat_template eos_token bos_token added_tokens_decoder",
    "special_tokens_map.json": "eos_token bos_token unk_token pad_token additional_special_tokens",
    "tokenizer.json": "model",
}
"""what is read and written anew, and of which keys one at least is in it"""
COPIED = tuple(name for name in (*TEXT, *SETTINGS) if name not in EXPECTED)
"""what is copied byte for byte, or becomes part of the config"""


def refuse_astray(directory: Path) -> None:
    """Raise DataError for a link out of a model's directory whose target would become part of results."""
    for name, target in links_out(directory):
        if name in COPIED or not _is(directory / name, EXPECTED[name]):
            raise DataError(
                f"{directory / name} is a link to {target}, outside of the model's directory, and what is "
                "trained would take its content along. Put a copy of the file there if it is the model's, or "
                "set model.links=follow."
            )


def links_out(directory: Path) -> Iterator[tuple[str, Path]]:
    """The names of small files that lie elsewhere, and where. A hub's cache keeps the files of a snapshot two
    directories above it, in `blobs`.
    """
    here = directory.resolve()
    homes = (here, here.parent.parent / "blobs")
    for name in (*SETTINGS, *TEXT):
        file = directory / name
        if file.is_file() and not any((target := file.resolve()).is_relative_to(home) for home in homes):
            yield name, target


def _is(file: Path, keys: str) -> bool:
    try:
        value = decode_json(file.read_bytes())
    except ValueError:
        return False
    return isinstance(value, dict) and bool(value.keys() & set(keys.split()))
