"""Plain text: `{"text": "…"}` is a document for continued pre-training. A blank one gives nothing to train
on.
"""

from collections.abc import Mapping
from typing import Any

from tuner.data.conversation import Text
from tuner.data.formats.checks import required, text_of
from tuner.data.formats.column_names import is_pair
from tuner.data.formats.format import Format


def plain(row: Mapping[str, Any]) -> tuple[Text, ...]:
    """One document, or none. Raises RowError."""
    found = text_of(required(row, "text"), "text")
    return (Text(text=found),) if found and not found.isspace() else ()


FORMAT = Format(
    name="text",
    version=1,
    columns=("text",),
    keys=("text",),
    fits=lambda row: "text" in row and not is_pair(row),
    read=lambda row, _: plain(row),
    beside=lambda *_: frozenset(),
)
