"""The model file of a SentencePiece tokenizer (`tokenizer.model`), read as data: its pieces and how it treats
white space.

The file is a Protocol Buffers message, and a reader of its wire format is a few lines: a stream of (field
number, kind, value), where a value is a number of seven bits a byte, four or eight bytes as they are, or a
length and that many bytes. Field numbers are those of sentencepiece_model.proto.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from tuner.errors import DataError

SPACE = "▁"
"""what stands for a space inside a piece"""


class PieceKind(IntEnum):
    """What a piece is."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    """a token that no text becomes"""
    USER_DEFINED = 4
    """always one token where a text spells it"""
    UNUSED = 5
    BYTE = 6


class ModelType(IntEnum):
    """How pieces are put together."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class SentencePieceModel:
    """A SentencePiece model. The id of a piece is its place."""

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    kinds: tuple[int, ...]
    method: int
    byte_fallback: bool
    """whether a character without a piece becomes its UTF-8 bytes"""
    unk: str
    bos: str | None
    """None where there is no such control piece; `eos` and `pad` likewise"""
    eos: str | None
    pad: str | None
    charsmap: bytes
    """the compiled rules of its normalisation; empty for none"""
    dummy_prefix: bool
    """whether a space is written before a text"""
    suffix: bool
    """whether that space, and those of all pieces, is behind instead"""
    remove_extra_whitespaces: bool
    """whether spaces at the ends of a text go, and runs of them become one"""
    escape_whitespaces: bool
    """whether spaces become SPACE"""


def read_model(data: bytes) -> SentencePieceModel:
    """The model in the bytes of a file. Raises DataError, which does not name the file, where they are
    something else.
    """
    try:
        return _model(data)
    except (IndexError, struct.error, ValueError, TypeError) as error:
        raise DataError(
            f"these {len(data):,} bytes are not a SentencePiece model, or a part of one ({error})"
        ) from error


def _model(data: bytes) -> SentencePieceModel:
    pieces: list[str] = []
    scores: list[float] = []
    kinds: list[int] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1:
            piece, score, kind = _piece(value)
            pieces.append(piece)
            scores.append(score)
            kinds.append(kind)
        elif number == 2:
            trainer.update(_fields(_bytes(value)))
        elif number == 3:
            normalizer.update(_fields(_bytes(value)))
    if len({*pieces}) < max(len(pieces), 1) or kinds.count(PieceKind.UNKNOWN) != 1:
        raise DataError(
            f"a SentencePiece model has different pieces and one unknown piece; here are {len(pieces):,}, "
            f"{len({*pieces}):,} of them different"
        )

    if unknown := {*kinds} - {*PieceKind}:
        raise DataError(f"there are pieces of kinds that are not known: {sorted(unknown)}")

    def control(number: int, default: str) -> str | None:
        name = _bytes(trainer.get(number, default.encode())).decode()
        return name if name in pieces and kinds[pieces.index(name)] == PieceKind.CONTROL else None

    return SentencePieceModel(
        pieces=tuple(pieces),
        scores=tuple(scores),
        kinds=tuple(kinds),
        method=int(trainer.get(3, ModelType.UNIGRAM)),
        byte_fallback=bool(trainer.get(35)),
        unk=pieces[kinds.index(PieceKind.UNKNOWN)],
        bos=control(46, "<s>"),
        eos=control(47, "</s>"),
        pad=control(48, "<pad>"),
        suffix=bool(trainer.get(24)),
        charsmap=_charsmap(_bytes(normalizer.get(2, b""))),
        dummy_prefix=bool(normalizer.get(3, True)),
        remove_extra_whitespaces=bool(normalizer.get(4, True)),
        escape_whitespaces=bool(normalizer.get(5, True)),
    )


def _charsmap(data: bytes) -> bytes:
    """The compiled rules: the size of a table of numbers of four bytes, the table, and texts that end in a
    zero byte.
    """
    size = int.from_bytes(data[:4], "little")
    if data and (size % 4 or not 0 < size <= len(data) - 4 or not data.endswith(b"\0")):
        raise DataError("its rules of normalisation are damaged")
    return data


def _piece(message: int | bytes) -> tuple[str, float, int]:
    found = dict(_fields(_bytes(message)))
    score = struct.unpack("<f", _bytes(found[2]))[0] if 2 in found else 0.0
    return _bytes(found.get(1, b"")).decode(), score, int(found.get(3, PieceKind.NORMAL))


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("a number where a text is expected")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message in their order. Raises IndexError where it is cut off."""
    at, end = 0, len(data)
    while at < end:
        key, at = _number(data, at)
        match key & 7:
            case 0:
                value, at = _number(data, at)
                yield key >> 3, value
                continue
            case 1:
                size = 8
            case 2:
                size, at = _number(data, at)
            case 5:
                size = 4
            case kind:
                raise TypeError(f"a field of the kind {kind}")
        if at + size > end:
            raise IndexError("it ends inside a field")
        yield key >> 3, data[at : at + size]
        at += size


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends.

    >>> _number(bytes([0xAC, 0x02]), 0)
    (300, 2)
    """
    value = data[at]
    at += 1
    if value < 128:
        return value, at
    value &= 127
    for shift in range(7, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise TypeError("a number of more than ten bytes")
