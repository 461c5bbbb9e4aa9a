"""All row formats. What is told of them elsewhere, such as the names in errors and the versions in
fingerprints, is taken from here.

How to add one:

1. a module beside this one that ends in its FORMAT; it reads a row by what `checks` and `turns` check
2. its place in FORMATS: formats are tried in this order, so those that ask for more of a row come first
3. its name in `data.format` (tuner/config), its line in docs/data.md, and a row of it in
   tests/data/formats/test_formats.py; tests hold the three to this list
"""

from collections.abc import Mapping

from tuner.data.formats import (
    alpaca,
    guanaco,
    label,
    messages,
    oasst,
    preference,
    prompt,
    sharegpt,
    templated,
    text,
    xtuner,
)
from tuner.data.formats.format import Format

FORMATS: tuple[Format, ...] = (
    preference.FORMAT,
    messages.FORMAT,
    sharegpt.FORMAT,
    alpaca.FORMAT,
    prompt.FORMAT,
    oasst.FORMAT,
    guanaco.FORMAT,
    text.FORMAT,
    xtuner.FORMAT,
    label.FORMAT,
    templated.FORMAT,
    templated.CONTINUED,
)
BY_NAME: Mapping[str, Format] = {format.name: format for format in FORMATS}

VERSIONS = {format.name: format.version for format in FORMATS if format.version is not None} | {
    "chosen": preference.CHOSEN
}
"""what data.format can name beside `auto` → its version"""
COLUMNS: Mapping[str, tuple[str, ...]] = {
    format.name: format.columns for format in FORMATS if format.version is not None
} | {
    "chosen": tuple(
        dict.fromkeys((*preference.FORMAT.columns, *label.FORMAT.columns, "conversation", "text"))
    )
}
"""the same → what is read of a row, and `data.columns` can say the place of"""


def format_versions(format: str) -> dict[str, int]:
    """The versions that reading as `format` depends on; `auto` and `chosen` may meet them all."""
    return {
        f"format.{known}": version
        for known, version in VERSIONS.items()
        if format in (known, "auto", "chosen")
    }
