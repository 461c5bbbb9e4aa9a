"""What an artifact says of itself, as far as it must hold before anything else of it is believed."""

from pathlib import Path
from typing import Any

from tuner.files import read_json

MANIFEST = "manifest.json"
PARTS = {
    "stage": str,
    "fingerprint": str,
    "content": str,
    "origin": dict,
    "upstream": dict,
    "references": dict,
    "facts": dict,
    "files": dict,
}
"""what a manifest consists of, at least"""
ENTRY = {"sha256": str, "size": int, "times": list}
"""what it says of a file"""


def facts_of(artifact: Path) -> dict[str, Any]:
    """What an artifact's manifest tells of how it was made; nothing where there is none."""
    found: dict[str, Any] = (read_json(artifact / MANIFEST) or {}).get("facts", {})
    return found


def is_manifest(value: Any) -> bool:
    """Whether a value has all the parts of a manifest, each of its type."""
    return (
        isinstance(value, dict)
        and all(isinstance(value.get(name), kind) for name, kind in PARTS.items())
        and all(
            isinstance(entry, dict) and all(isinstance(entry.get(name), kind) for name, kind in ENTRY.items())
            for entry in value["files"].values()
        )
    )
