"""A window that slides over a text of JSON values: one of any size is read with the memory of its largest
value.

A value that doesn't end in it makes it grow. Where a value ends says the JSON decoder. One that is
well-formed and still no value (nested too deeply, a key that stands twice, bytes that are no UTF-8) is passed
over.
"""

import codecs
import json
import re
from json.decoder import JSONDecodeError
from typing import IO, Any

from tuner.data.files.chunk import TooLong, Unreadable
from tuner.hardware.limits import row_limit

STEP = 1 << 18
"""bytes by which the window grows at least"""
EDGE = 16
"""characters: an error so near to the window's end may be a word, a number or an escape that goes on
behind it
"""
BLANK = re.compile(r"[ \t\r\n]*")
SIGN = re.compile(r'"(?:[^"\\]++|\\.)*+"|["\[\]{}]', re.DOTALL)
"""what tells where a value ends: a whole string, a bracket, or the quote of a string that doesn't end"""
PLAIN = re.compile(r"[^\s,\[\]{}]*")
WORDS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")


class RepeatedKey(ValueError):
    """An object has one key twice: Python would silently drop the first."""


class Ended(Exception):
    """The file ends inside an item."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise RepeatedKey(next(key for key in keys if keys.count(key) > 1))
    return value


def _nothing(_: str) -> None:
    """What NaN and Infinity are, which are no JSON: pandas writes NaN where there is no value."""


decode_json = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_nothing).raw_decode
"""text, where → the value there, and where it ends; raises the ValueErrors and the RecursionError that
`why_unreadable` explains
"""


def why_unreadable(error: Exception) -> str:
    """Why a text is no row, in words."""
    match error:
        case JSONDecodeError():
            python = (
                "; this is how Python prints it, and json.dumps writes JSON"
                if error.doc[error.pos : error.pos + 1] == "'"
                else ""
            )
            return f"no valid JSON ({error.msg} at column {error.colno}){python}"
        case RepeatedKey():
            return f"an object has the key {error.args[0]!r:.60} twice, and one of the two would be lost"
        case UnicodeDecodeError():
            return f"no valid UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start}); {OTHERWISE}"
        case RecursionError():
            return "JSON nested too deeply"
        case _:
            return "no valid JSON (a number of thousands of digits)"


OTHERWISE = (
    "save the file as UTF-8, or name the encoding it is in, as data.encoding=gb18030 or data.encoding=latin-1"
)


class Window:
    """The part of a text that is looked at."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._line = 1
        self._ended = False
        self._foreign = False
        """whether bytes that are no UTF-8 were found in this part"""
        self.text = ""
        self.at = 0
        """what lies before it is done with"""

    def here(self) -> int:
        """The line of what is looked at."""
        return self._line + self.text.count("\n", 0, self.at)

    def excerpt(self) -> str:
        """What stands here, for a message."""
        return repr(self.text[self.at : self.at + 30])

    def doubt(self) -> str:
        """What else may be wrong: in some encodings the second byte of a letter is a backslash or a
        bracket.
        """
        return f"; or, since it holds bytes that are no UTF-8, {OTHERWISE}" if self._foreign else ""

    def skip(self) -> str:
        """Go on to the next letter that is not blank, and give it; nothing at the end of the file."""
        while True:
            blank = BLANK.match(self.text, self.at)
            self.at = blank.end() if blank else self.at
            if self.at < len(self.text) or not self._more():
                return self.text[self.at : self.at + 1]

    def rest_of_line(self) -> str:
        """Go on to the next line; what lay before it, without blanks at its end."""
        while (end := self.text.find("\n", self.at)) < 0 and self._more():
            pass
        end = end if end >= 0 else len(self.text)
        rest, self.at = self.text[self.at : end].rstrip(), end
        return rest

    def item(self) -> tuple[Any, int]:
        """Go on behind the value that begins here; the value, or why it is none, and its length. Raises
        Ended and JSONDecodeError.
        """
        while True:
            value: Any
            try:
                value, end = decode_json(self.text, self.at)
            except JSONDecodeError as error:
                if self._cut_off(error):
                    if self._more():
                        continue
                    raise Ended from error
                raise
            except (RepeatedKey, RecursionError, ValueError) as error:
                value, end = Unreadable(reason=f"in line {self.here()}: {why_unreadable(error)}"), self._end()
            else:
                if end + 2 >= len(self.text) and self._more():  # a number may go on, as 1 does in 1e+5
                    continue
            if self._foreign and (letter := re.search("[\udc80-\udcff]", self.text[self.at : end])):
                line = self.here() + self.text.count("\n", self.at, self.at + letter.start())
                value = Unreadable(
                    reason=f"in line {line}: no valid UTF-8 (byte 0x{ord(letter[0]) & 0xFF:02x}); {OTHERWISE}"
                )
            size, self.at = end - self.at, end
            return value, size

    def _cut_off(self, error: JSONDecodeError) -> bool:
        """Whether the decoder only missed what comes behind the window."""
        rest = self.text[error.pos :]
        if error.msg.startswith("Unterminated string"):
            return True
        if not self._ended:
            return len(rest) <= EDGE
        rest = rest.strip()
        return any(word.startswith(rest) for word in WORDS) or (
            error.msg.startswith("Invalid \\") and '"' not in rest
        )

    def _end(self) -> int:
        """Where the value ends that begins here and can't be decoded; its brackets are counted. Raises
        Ended.
        """
        while True:
            depth, at = 0, self.at
            if self.text[at] not in '"[{':
                plain = PLAIN.match(self.text, at)
                at = plain.end() if plain else at
                if at < len(self.text) or not self._more():
                    return at
                continue
            while (sign := SIGN.search(self.text, at)) and sign[0] != '"':
                at = sign.end()
                depth += (sign[0] in "[{") - (sign[0] in "]}")
                if depth == 0:
                    return at
            if not self._more():
                raise Ended

    def _more(self) -> bool:
        """Let go of what is done with and read as much as there is left, at least; False at the end of the
        file.
        """
        if self._ended:
            return False
        self._line = self.here()
        rest = self.text[self.at :]
        if len(rest) > row_limit():
            raise TooLong(f"what begins in line {self._line}")
        raw = self._stream.read(max(STEP, len(rest)))
        self._ended = not raw
        self.text, self.at = rest + self._decoder.decode(raw, final=not raw), 0
        try:
            self.text.encode()
        except UnicodeEncodeError:
            self._foreign = True
        else:
            self._foreign = False
        return True
