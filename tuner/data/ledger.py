"""The ledger: what became of every row, by source and line, and what the packs hold."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FIRST = 10
"""lines that are named for each reason"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A conversation that was kept, as tokens."""

    ids: NDArray[np.int32]
    """[T], at most data.length"""
    trained: NDArray[np.bool_]
    """[T]"""
    file: int
    """index into the ledger's sources"""
    line: int
    """line or item number, from 1"""


@dataclass(kw_only=True, slots=True)
class Source:
    """The counts of one file while it is read."""

    file: str
    """its name, without its place"""
    rows: int = 0
    kept: int = 0
    truncated: int = 0
    """of the kept"""
    held_out: int = 0
    """of the kept"""
    dropped: dict[str, dict[str, Any]] = field(default_factory=dict)
    """by reason: how many rows, and the first few lines"""

    def drop(self, line: int, reason: str) -> None:
        """Count a row that is left out."""
        entry = self.dropped.setdefault(reason, {"rows": 0, "first": []})
        entry["rows"] += 1
        if len(entry["first"]) < FIRST:
            entry["first"].append(line)


def summary(packs: Sequence[Sequence[int]], documents: Sequence[Document], length: int) -> dict[str, Any]:
    """What a file of packs holds. `efficiency` is the share of the packs' places that hold a token; null where there is no pack."""
    tokens = sum(len(document.ids) for document in documents)
    return {
        "packs": len(packs),
        "documents": len(documents),
        "tokens": tokens,
        "trained_tokens": sum(int(document.trained.sum()) for document in documents),
        "efficiency": round(tokens / (len(packs) * length), 4) if packs else None,
    }


def write(path: Path, sources: Iterable[Source], *, length: int, train: dict[str, Any], held_out: dict[str, Any]) -> None:
    """Write ledger.json. Every row must be accounted for: a row that is neither kept nor dropped is a bug of ours."""
    entries = []
    for source in sources:
        dropped = sum(entry["rows"] for entry in source.dropped.values())
        assert source.rows == source.kept + dropped, f"{source.file}: {source.rows} rows, {source.kept} kept, {dropped} dropped"
        entries.append({name: getattr(source, name) for name in ("file", "rows", "kept", "truncated", "held_out", "dropped")})
    ledger = {"length": length, "sources": entries, "train": train, "held_out": held_out}
    path.write_text(json.dumps(ledger, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
