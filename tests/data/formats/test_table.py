"""A row format is one entry of one table: what is told of formats elsewhere is the same."""

import re
from typing import get_args, get_type_hints

import pytest

from tests.conftest import REPO
from tuner.config.schema.data import DataSource
from tuner.data.formats.format import Format
from tuner.data.formats.table import COLUMNS, FORMATS, VERSIONS


def test_each_name_stands_once() -> None:
    assert len({format.name for format in FORMATS}) == len(FORMATS)


def test_the_config_names_the_formats_of_the_table() -> None:
    assert set(get_args(get_type_hints(DataSource)["format"])) == {"auto", *VERSIONS}


def test_the_documentation_lists_the_formats_of_the_table() -> None:
    page = (REPO / "docs" / "data.md").read_text(encoding="utf-8")
    listed = [
        name
        for cell in re.findall(r"^\| (`[^|]+`) \|", page, re.MULTILINE)
        for name in re.findall(r"\w+", cell)
    ]
    assert VERSIONS.keys() <= set(listed)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_what_a_format_cannot_do_without_it_reads(format: Format) -> None:
    assert set(format.keys) <= set(format.columns)


def test_chosen_reads_what_any_comparison_holds() -> None:
    assert set(COLUMNS["chosen"]) >= {*COLUMNS["preference"], *COLUMNS["label"]}
