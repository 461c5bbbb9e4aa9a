"""What came of making a run again, as text."""

from collections.abc import Mapping
from typing import Any


def to_text(told: Mapping[str, Any]) -> str:
    """A line a stage, then what differs first and why that may be; of `Reproduction.to_json`.

    >>> stage = {"stage": "train", "state": "equal", "what": "6 steps", "changed": ["torch 2.12 → 2.13"]}
    >>> told = {"run": "a-12345678", "bits": True, "stages": [stage], "first": None, "root": None}
    >>> print(to_text(told))
    a-12345678, made again
      train        equal         6 steps
    not as recorded: torch 2.12 → 2.13
    all that was compared is the same, bit for bit
    """
    lines = [f"{told['run']}, made again"]
    for result in told["stages"]:
        what = "; ".join(result["differences"]) if result["state"] == "differs" else result["what"]
        lines.append(f"  {result['stage']:<12} {result['state']:<13} {what}".rstrip())
    changed = list(dict.fromkeys(words for result in told["stages"] for words in result["changed"]))
    if changed:
        lines.append(f"not as recorded: {', '.join(changed)}")
    if not told["bits"]:
        lines.append(
            f"bits were not asked (machine.deterministic=false, on a GPU): losses count as the same within "
            f"{told['band']:.0%}, or {told['band']:g} where that is more"
        )
    if first := told["first"]:
        lines.append(f"first difference: {first['stage']}: {'; '.join(first['differences'])}")
        lines.append(f"likely cause: {', '.join(first['causes'])}")
    else:
        lines.append(
            "all that was compared is the same, bit for bit" if told["bits"] else "all losses are within it"
        )
    if told["root"]:
        lines.append(f"kept in {told['root']}")
    return "\n".join(lines)
