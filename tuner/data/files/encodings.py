"""A file's bytes as every reader wants them: unpacked, in UTF-8, without byte order mark, its lines ended by
line feeds.

What a file is packed with is told by its first bytes, never by its name: gzip and zstd, in one piece or
several. `auto` reads UTF-8, and UTF-16 or UTF-32 that begin with a byte order mark. Other encodings can't be
told apart, so they are named.
"""

import codecs
import gzip
import io
import re
from pathlib import Path
from typing import IO, Any, cast

from tuner.errors import ConfigError, DataError

HEAD = 1 << 16
"""bytes that are enough to see what a file is"""
STEP = 1 << 18
"""bytes that are decoded at once"""
MARKS = {
    b"\xef\xbb\xbf": "utf-8",
    b"\xff\xfe\0\0": "utf-32",  # before UTF-16, whose mark it begins with
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
STRANGERS = {
    b"PK\x03\x04": "a ZIP archive (as .zip, .xlsx and .docx are)",
    b"BZh": "packed with bzip2",
    b"\xfd7zXZ\0": "packed with xz",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x1f\x8b": "packed with gzip twice",
    b"\x28\xb5\x2f\xfd": "packed with zstd twice",
    b"%PDF-": "a PDF",
    b"\x80\x04\x95": "a Python pickle, which could run code and is never opened",
    b"SQLite format 3\0": "an SQLite database",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"version https://git-lfs": "a pointer of Git LFS and not the file itself, which `git lfs pull` fetches",
}
EXPECTED = (
    "Rows are read from JSONL, JSON, CSV, text, Parquet and Arrow files, plain or packed with gzip or zstd."
)
RETURN = re.compile("\r[^\n]")
"""a carriage return that a line ends with"""
CONTROL = re.compile("[\0-\x06\x0e-\x1a\x1c-\x1f\x7f]")


def open_unpacked(file: Path) -> io.BufferedReader:
    """The file's bytes, unpacked as they are read. Raises OSError, and EOFError or zlib.error while
    reading damaged gzip.
    """
    stream = file.open("rb")
    magic = stream.peek(4)[:4]
    if magic[:2] == b"\x1f\x8b":
        stream.close()
        # the standard library's, since Arrow's takes zeros behind the end, as on a tape, for damage
        return io.BufferedReader(cast(io.RawIOBase, gzip.open(file)), STEP)
    # a frame, or one to skip
    if magic == b"\x28\xb5\x2f\xfd" or (magic[1:] == b"\x2a\x4d\x18" and magic[0] & 0xF0 == 0x50):
        import pyarrow as pa

        return io.BufferedReader(
            cast(io.RawIOBase, pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd")), STEP
        )
    return stream


def is_packed(stream: io.BufferedReader) -> bool:
    """Whether a stream of `open_unpacked` unpacks."""
    return not isinstance(stream.raw, io.FileIO)


def codec_of(head: bytes, encoding: str, file: Path) -> str:
    """Python's name of the encoding of a text file that begins with `head`.

    Raises ConfigError for an `encoding` that Python doesn't know, DataError when it contradicts the file's
    byte order mark.
    """
    marked = next((name for mark, name in MARKS.items() if head.startswith(mark)), None)
    if encoding == "auto":
        return marked or "utf-8"
    try:
        codec = codecs.lookup(encoding).name
        "".encode(codec)
    except LookupError as error:
        raise ConfigError(
            f"data.encoding: no text encoding {encoding!r} is known. Examples are utf-8, utf-16, gb18030, "
            "big5 and latin-1."
        ) from error
    if marked and not codec.startswith(marked):
        raise DataError(
            f"{file} begins with the byte order mark of {marked.upper()}, and data.encoding is {encoding}. "
            "Set data.encoding=auto for it."
        )
    return codec


def refuse_binary(head: bytes, codec: str, file: Path) -> None:
    """Raise DataError when the file that begins with `head` is no text in the encoding `codec`."""
    kind = next((kind for magic, kind in STRANGERS.items() if head.startswith(magic)), None)
    if kind is None and head[257:262] == b"ustar":
        kind = "a tar archive, to be unpacked first"
    if kind is not None:
        raise DataError(f"{file} is {kind}. {EXPECTED}")
    text = head[:4096].decode(codec, "replace")
    if len(CONTROL.findall(text)) <= max(16, len(text) // 20):  # a stray one spoils its row only
        return
    low, high = head[1:4096:2].count(0), head[:4096:2].count(0)
    ending = "le" if low > 8 * high else "be" if high > 8 * low else None
    hint = f" If it is UTF-16 without byte order mark, set data.encoding=utf-16-{ending}." if ending else ""
    raise DataError(f"{file} holds binary data that is no known kind of file. {EXPECTED}{hint}")


def in_utf8(stream: io.BufferedReader, head: bytes, codec: str, file: Path) -> io.BufferedReader:
    """The same text in UTF-8, from its first letter on; `stream` is at its begin and starts with `head`.

    UTF-8 is passed on as it is, whatever is in it. Where another `codec` doesn't fit, reading raises
    DataError naming the line.
    """
    if not codec.startswith("utf-8"):
        stream = io.BufferedReader(_Transcoded(stream, codec, file), STEP)
    elif head.startswith(codecs.BOM_UTF8):
        stream.read(len(codecs.BOM_UTF8))
    text = head.decode(codec, "replace")
    if "\n" not in text and RETURN.search(text):
        return io.BufferedReader(_Fed(stream), STEP)
    return stream


class _Fed(io.RawIOBase):
    """A stream whose lines end by line feeds, over one in which carriage returns end them, as on a Mac of
    old.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        raw = self._stream.read(len(into)).replace(b"\r", b"\n")
        into[: len(raw)] = raw
        return len(raw)

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Transcoded(io.RawIOBase):
    """A stream of UTF-8 over a stream in another encoding."""

    def __init__(self, stream: IO[bytes], codec: str, file: Path) -> None:
        self._stream, self._file, self._codec = stream, file, codec
        self._decoder = codecs.getincrementaldecoder(codec)()
        self._ready = b""
        self._line = 1
        self._begun = self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        while not self._ready and not self._ended:
            self._ready = self._next()
        size = min(len(into), len(self._ready))
        into[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def _next(self) -> bytes:
        raw = self._stream.read(STEP)
        self._ended = not raw
        try:
            text = self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            before = error.object[: error.start].decode(error.encoding, "replace")
            found = error.object[error.start : error.end].hex(" ")
            raise DataError(
                f"{self._file}:{self._line + before.count(chr(10))}: the bytes {found} are no {self._codec}. "
                "Set data.encoding to what the file is written in, or save the file as UTF-8."
            ) from error
        if text and not self._begun:
            text, self._begun = text.removeprefix("\ufeff"), True
        self._line += text.count("\n")
        return text.encode("utf-8", "surrogatepass")

    def close(self) -> None:
        self._stream.close()
        super().close()
