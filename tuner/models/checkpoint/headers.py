"""The shapes of a model's tensors, from the headers of its files alone: safetensors and GGUF, by the standard
library, in milliseconds.

For guesses and sizes before anything runs: whatever is odd about a file makes it unreadable here.
`tuner.models.checkpoint.safetensors` reads safetensors strictly, and says what is wrong.
"""

from collections.abc import Mapping
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from tuner.files import decode_json, file_identity

HEADER, ENTRIES = 100_000_000, 1 << 21
"""bytes of a safetensors header (that format's own limit) and values in a GGUF header, beyond which a file
is not read
"""

EMBEDDINGS = frozenset({"embed_tokens", "wte", "word_embeddings", "embed_in"})
"""what families call the embedding, in the layouts that transformers has classes for"""

NUMBERS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""bytes of a number in a GGUF header, by the number of its type"""


def read_header(path: Path) -> tuple[Mapping[str, tuple[int, ...]], int]:
    """The shapes of a file's tensors, outer dimension first, and the bytes of its header. Nothing of a
    file that is damaged, or not what its name says.
    """
    try:
        return _read_header(path, tuple(file_identity(path)))
    except OSError:
        return {}, 0


def read_types(path: Path) -> Mapping[str, str]:
    """The type of each tensor of a safetensors file, in the format's own words. Nothing of a file that is
    damaged.
    """
    try:
        return _read_types(path, tuple(file_identity(path)))
    except OSError:
        return {}


def embedding_rows(directory: Path) -> int | None:
    """How many tokens the model in a directory has rows for; None where no header tells."""
    for path in sorted(directory.glob("*.safetensors")):
        shapes, _ = read_header(path)
        if rows := [
            shape[0] for name, shape in shapes.items() if len(shape) == 2 and module_name(name) in EMBEDDINGS
        ]:
            return rows[0]
    return None


def module_name(name: str) -> str:
    """The last module of a tensor's name: lm_head of lm_head.bias."""
    return name.split(".")[-2] if "." in name else ""


@lru_cache(maxsize=1024)
def _read_header(path: Path, stamp: tuple[int, ...]) -> tuple[Mapping[str, tuple[int, ...]], int]:
    try:
        with path.open("rb") as file:
            shapes = _gguf(file) if path.suffix == ".gguf" else _safetensors(file, stamp[0])
            length = file.tell()
        return (shapes, length) if sum(map(prod, shapes.values())) <= 8 * stamp[0] else ({}, 0)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}, 0


@lru_cache(maxsize=1024)
def _read_types(path: Path, stamp: tuple[int, ...]) -> Mapping[str, str]:
    try:
        with path.open("rb") as file:
            return {
                name: str(entry["dtype"])
                for name, entry in _entries(file, stamp[0]).items()
                if name != "__metadata__"
            }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _safetensors(file: BinaryIO, size: int) -> dict[str, tuple[int, ...]]:
    return {
        name: _shape(entry["shape"]) for name, entry in _entries(file, size).items() if name != "__metadata__"
    }


def _entries(file: BinaryIO, size: int) -> dict[str, Any]:
    """https://github.com/huggingface/safetensors#format: the header's length in 8 bytes, then name →
    dtype, shape, offsets as JSON.
    """
    length = int.from_bytes(file.read(8), "little")
    if length > min(HEADER, size - 8):
        raise ValueError("no header")
    entries: dict[str, Any] = decode_json(file.read(length))
    return entries


def _gguf(file: BinaryIO) -> dict[str, tuple[int, ...]]:
    """https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: magic, version, two counts, the metadata
    (skipped), each tensor's name and shape.
    """
    left = ENTRIES

    def number(width: int = 8) -> int:
        if len(data := file.read(width)) < width:
            raise ValueError("the file ends within its header")
        return int.from_bytes(data, "little")

    def times(count: int) -> range:
        nonlocal left
        left -= count
        if left < 0:
            raise ValueError("more values than any model has")
        return range(count)

    def skip(kind: int, count: int) -> None:
        if kind in NUMBERS:
            file.seek(NUMBERS[kind] * count, 1)
        elif kind == 8:  # texts
            for _ in times(count):
                file.seek(number(), 1)
        elif kind == 9:  # arrays
            for _ in times(count):
                skip(number(4), number())
        else:
            raise ValueError(f"values of an unknown type {kind}")

    if file.read(4) != b"GGUF" or number(4) not in (2, 3):
        raise ValueError("no little-endian GGUF of version 2 or 3")
    tensors, settings = number(), number()
    for _ in times(settings):
        file.seek(number(), 1)
        skip(number(4), 1)
    shapes = {}
    for _ in times(tensors):
        name = file.read(min(number(), 1024)).decode()
        shapes[name] = _shape([number() for _ in range(min(number(4), 9))][::-1])  # inner dimension first
        file.seek(12, 1)  # type and place
    return shapes


def _shape(sizes: list[int]) -> tuple[int, ...]:
    if len(sizes) > 8 or any(type(size) is not int or not 0 <= size < 1 << 63 for size in sizes):
        raise ValueError("no shape of a tensor")
    return tuple(sizes)
