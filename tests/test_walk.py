"""docs/walk.md says where things happen, and is right."""

import ast
import re

import pytest

from tests.conftest import REPO

NAMED = sorted(
    set(re.findall(r"`([\w/]+\.py):([\w.]+)`", (REPO / "docs/walk.md").read_text(encoding="utf-8")))
)
ROW = re.findall(
    r"`([\w/]+\.py):", (REPO / "docs/walk.md").read_text(encoding="utf-8").split("## One value")[0]
)


@pytest.mark.parametrize(("file", "name"), NAMED, ids=lambda one: one)
def test_each_function_is_where_the_walk_says(file: str, name: str) -> None:
    body: list[ast.stmt] = ast.parse((REPO / "tuner" / file).read_text(encoding="utf-8")).body
    for part in name.split("."):
        found = [
            node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == part
        ]
        assert found, f"{file} has no {name}"
        body = found[-1].body


def test_the_way_of_a_row_stays_short() -> None:
    assert len(set(ROW)) <= 45
