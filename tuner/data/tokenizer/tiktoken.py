"""The vocabulary file of tiktoken: a line for each token, its bytes in base64 and its rank, which is its
id and the order in which pairs are joined.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Iterator

from tuner.errors import DataError

LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?(\n|\Z)")
LONGEST = 2048
"""bytes of one token; the work of cutting one in two grows with the square"""


def is_ranks(data: bytes) -> bool:
    """Whether a file is one of tiktoken's, judged by its first line.

    >>> is_ranks(b"IQ== 0\\nIg== 1\\n"), is_ranks(b"\\n\\x0e\\n\\x05<unk>")
    (True, False)
    """
    return LINE.match(data) is not None


def read_ranks(data: bytes) -> list[bytes]:
    """The tokens in the order of their ranks. Raises DataError, which does not name the file, where ranks
    are missing or a byte has no token.
    """
    tokens: dict[int, bytes] = {}
    try:
        for line in data.split(b"\n"):
            if line.strip():
                token, rank = line.split()
                tokens[int(rank)] = base64.b64decode(token, validate=True)
    except (ValueError, binascii.Error) as error:
        raise DataError(f"a line of it is not a token in base64 and a rank ({error})") from error
    found = [tokens[rank] for rank in sorted(tokens)]
    if sorted(tokens) != [*range(len(found))] or len({*found}) < len(found):
        raise DataError(f"its {len(found):,} ranks should be 0 to {len(found) - 1:,}, each for another token")
    if missing := {bytes([byte]) for byte in range(256)} - {*found}:
        raise DataError(
            f"{len(missing)} of the 256 single bytes have no token, so there would be texts that it can't "
            "write"
        )
    return found


def spell(token: bytes) -> str:
    """A token as byte-level vocabularies write it: a printable character for each byte.

    >>> spell("a b".encode()), spell("é".encode())
    ('aĠb', 'Ã©')
    """
    return token.decode("latin-1").translate(_LETTERS)


def _letters() -> Iterator[tuple[int, int]]:
    """Bytes that are printable in Latin-1 stand for themselves, the others for the characters from 256 on,
    in order.
    """
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (byte for byte in range(256) if byte not in plain)
    yield from ((byte, 256 + i) for i, byte in enumerate(others))


_LETTERS = dict(_letters())


def merge_pairs(ranked: Iterable[str], parts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """What may be joined, first to last: every cut of each of `ranked`, in that order, into two of `parts`.

    tiktoken and SentencePiece join the neighbours whose joined text comes first in the order, whatever they
    are; a list of merges that has every cut of a text in one place says the same. Raises DataError for a
    token of absurd length.

    >>> list(merge_pairs(["ab", "bc", "abc"], ["a", "b", "c", "ab", "bc"]))
    [('a', 'b'), ('b', 'c'), ('a', 'bc'), ('ab', 'c')]
    """
    known = {*parts}
    for text in ranked:
        if len(text) > LONGEST:
            raise DataError(
                f"a token of it has {len(text):,} characters, and at most {LONGEST:,} are accepted"
            )
        for at in range(1, len(text)):
            if (left := text[:at]) in known and (right := text[at:]) in known:
                yield left, right
