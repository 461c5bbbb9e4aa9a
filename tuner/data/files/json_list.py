"""A JSON list, item by item: one of any size is read with the memory of its largest item (`window`).

Where an item ends says the JSON decoder, so a list whose syntax is broken can't be cut behind the break: that
is an error of the whole file. Items that are well-formed and still no rows are passed over one by one.
"""

from collections.abc import Generator, Iterator
from json.decoder import JSONDecodeError
from pathlib import Path
from typing import IO, Any

from tuner.data.files.chunk import Unreadable
from tuner.data.files.json_window import Ended, Window
from tuner.errors import DataError


def is_list(stream: IO[bytes]) -> bool:
    """Whether a text is one JSON list, and not a value a line.

    A line that is a list of turns is a row (the bare form of OpenAI's messages, or of ShareGPT's); a list of
    anything else is the data set.
    """
    window = Window(stream)
    if window.skip() != "[":
        return False
    window.at += 1
    line = window.here()
    first = None
    if window.skip() != "]":
        try:
            first, _ = window.item()
        except (Ended, JSONDecodeError):
            first = Unreadable(reason="")
    unclear = first is None or isinstance(first, Unreadable)
    if (
        not (is_turn(first) or unclear)
        or window.here() > line
        or not window.rest_of_line().rstrip(", \t").endswith("]")
    ):
        return True
    return unclear and window.skip() != "["


def is_turn(value: Any) -> bool:
    """Whether a value is a turn of a conversation, as far as its keys say so."""
    return isinstance(value, dict) and (
        value.keys() >= {"role", "content"} or value.keys() >= {"from", "value"}
    )


def first_item(stream: IO[bytes]) -> Any:
    """The first item of the JSON list that a text begins with; None where it begins with none, or the item
    can't be read.
    """
    window = Window(stream)
    if window.skip() != "[":
        return None
    window.at += 1
    try:
        return None if window.skip() in ("]", "") else window.item()[0]
    except (Ended, JSONDecodeError):
        return None


def first_sign(stream: IO[bytes]) -> str:
    """The first letter of a text that is not blank."""
    return Window(stream).skip()


def first_value(stream: IO[bytes]) -> tuple[Any, int]:
    """The value that a text begins with, and its length in characters. Raises Ended and JSONDecodeError."""
    window = Window(stream)
    window.skip()
    return window.item()


def items(stream: IO[bytes], file: Path) -> Iterator[tuple[Any, int]]:
    """Each item of the list in `stream`, or the Unreadable in its place; and its length in characters.

    A list that breaks off gives one Unreadable more. Raises DataError, naming the line, where the syntax is
    broken.
    """
    window = Window(stream)
    window.skip()
    if not (yield from items_inside(window, file)):
        return
    if window.skip():
        raise DataError(
            f"{file}:{window.here()}: text after the end of the JSON list ({window.excerpt()}), where the "
            "file should end. Make one list of it, or write one row a line (JSONL)."
        )


def items_inside(window: Window, file: Path) -> Generator[tuple[Any, int], None, bool]:
    """The items of the list that begins at the window's place, which goes on behind it; whether the list
    ends. Raises DataError.
    """
    window.at += 1
    sign = window.skip()
    number = 0
    while sign not in ("]", ""):
        number += 1
        try:
            yield window.item()
        except Ended:
            yield (
                Unreadable(
                    reason=(
                        f"the file ends inside this item, which begins in line {window.here()}; it was cut "
                        f"off{window.doubt()}"
                    )
                ),
                0,
            )
            return False
        except JSONDecodeError as error:
            window.at = error.pos
            raise DataError(_broken(file, window, number, error.msg)) from error
        sign = window.skip()
        if sign == ",":
            window.at += 1
            sign = window.skip().replace("]", "a comma and no item behind it")
        elif sign not in ("]", ""):
            raise DataError(_broken(file, window, number, "Expecting ',' or ']' behind it"))
    if sign == "":
        yield (
            Unreadable(
                reason=(
                    f"the file ends inside the list, in line {window.here()}, without its ]; it was cut off"
                )
            ),
            0,
        )
        return False
    window.at += 1
    return True


def _broken(file: Path, window: Window, number: int, found: str) -> str:
    return (
        f"{file}:{window.here()}: no valid JSON in item {number} of the list ({found}: {window.excerpt()}). "
        f"What follows can't be split into items; mend it, or write one row a line (JSONL){window.doubt()}."
    )
