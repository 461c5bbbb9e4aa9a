"""The space that a tokenizer may write before a text (SentencePiece's dummy prefix). Whether it does so
depends on where the text stands:

    first     before the first text of a whole string, when no token stands before it
    later     before every text that follows a special token
    inner     nowhere: for a text that goes on in the middle of another, such as an answer behind `ASSISTANT:`

Each is a tokenizer.json of its own; as it is published, it is `first`.
"""

import json
from collections.abc import Callable
from typing import Any

Step = dict[str, Any]
"""one of the normalizer or the pre-tokenizer"""

START = r"\A"
"""with this begins the pattern of a step that changes only the start of a text"""


def later(text: str) -> str:
    """The tokenizer.json for `later`; the same object where there is no difference."""
    data = json.loads(text)
    return (
        _changed(data, _not_later)
        if any(step.get("prepend_scheme") == "first" for step in _steps(data))
        else text
    )


def inner(text: str) -> str:
    """The tokenizer.json for `inner`; the same object where there is no difference."""
    data = json.loads(text)
    return _changed(data, _never) if any(map(_prefixes, _steps(data))) else text


def _steps(data: Any) -> list[Step]:
    """All steps of the normalizer and the pre-tokenizer, also those in a sequence."""
    found: list[Step] = []
    todo = [data.get("normalizer"), data.get("pre_tokenizer")]
    while todo:
        step = todo.pop()
        if step:
            found.append(step)
            todo += [*step.get("normalizers", ()), *step.get("pretokenizers", ())]
    return found


def _prefixes(step: Step) -> bool:
    """Whether it writes a space before a text, or takes those there away."""
    kind: str = step["type"]
    if kind == "Metaspace":
        return bool(
            step.get("prepend_scheme", "always" if step.get("add_prefix_space") else "never") != "never"
        )
    return kind == "Prepend" or (kind == "ByteLevel" and bool(step["add_prefix_space"])) or _starts(step)


def _starts(step: Step) -> bool:
    return step["type"] == "Replace" and str(step["pattern"].get("Regex", "")).startswith(START)


def _not_later(step: Step) -> None:
    if step.get("prepend_scheme") == "first":
        step["prepend_scheme"] = "never"


def _never(step: Step) -> None:
    if step["type"] == "Prepend":
        step["prepend"] = ""
    elif step["type"] == "Metaspace":
        step["prepend_scheme"] = "never"
        step.pop("add_prefix_space", None)
    elif step["type"] == "ByteLevel":
        step["add_prefix_space"] = False
    elif _starts(step):
        # nothing is put in; spaces that go at the start of a text are one in the middle
        step["content"] = "" if step["content"] else " "


def _changed(data: Any, change: Callable[[Step], None]) -> str:
    for step in _steps(data):
        change(step)
    return json.dumps(data, ensure_ascii=False)
