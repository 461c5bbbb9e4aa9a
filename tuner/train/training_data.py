"""The packs that a run trains on, those that it measures, and the lines that their documents come from."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tuner.data.packs import Pack, Packs
from tuner.errors import DataError
from tuner.train.monitor.anomalies import refuse_nothing_trained

MEASURED = 64
"""held-out packs at most that are measured while training; evaluation takes them all"""


def open_packs(tokens: Path) -> Packs:
    """The training set. Raises DataError when there is nothing in it that could be trained."""
    packs = Packs.open(tokens / "train.arrow")
    if not len(packs):
        raise DataError(
            "There is nothing to train on: the tokenized training set is empty. The rows' fate is in "
            "ledger.json in the run's tokenize directory"
        )
    refuse_nothing_trained(packs)
    return packs


def packs_to_measure(tokens: Path) -> list[Pack]:
    """The packs that are measured while training, the same however often: algo.early_stop and
    convert.step=best decide by them.

    The first of the file are a fair draw of all: tuner.data.tokenize.packing has put them into an order drawn
    from data.seed, whatever is in them.
    """
    packs = Packs.open(tokens / "held_out.arrow")
    return [packs[i] for i in range(min(len(packs), MEASURED))]


def source_lines(ledger: Path) -> Callable[[Pack], list[str]]:
    """A function from a pack to the `file:line` of its documents."""

    @cache
    def sources() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(ledger.read_text(encoding="utf-8"))["sources"]
        return found

    def where(pack: Pack) -> list[str]:
        return [
            f"{sources()[file]['file']}:{line}" for file, line in zip(pack.files, pack.lines, strict=True)
        ]

    return where
