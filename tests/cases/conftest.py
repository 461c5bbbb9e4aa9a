"""The shared cases, as somebody has them, and what `preview` says of them."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import SHARED, Done, Tuner

CASES = SHARED / "cases"
Preview = Callable[..., Done]

shared = pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not here")


@pytest.fixture
def preview(tuner: Tuner, tiny_model: Path) -> Preview:
    """`preview` on the tiny model."""

    def call(*words: str, code: int = 0) -> Done:
        return tuner(
            "preview",
            "model=local",
            f"model.path={tiny_model}",
            "machine=cpu",
            "data=local",
            *words,
            code=code,
        )

    return call


def brought(name: str, to: Path) -> Path:
    """A copy of a case's files in a directory."""
    shutil.copytree(CASES / name, to, dirs_exist_ok=True)
    return to


def trained(shown: Done) -> list[str]:
    """What stands between the brackets of `preview`."""
    return re.findall(r"⟦(.*?)⟧", shown.out, re.DOTALL)
