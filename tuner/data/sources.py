"""The sources of a data set, as the config says them: which there are, how their rows are read, and whose a
file is by its name.

`p01-…` is of the second source of a mixture, `held_out-…` of those kept out of training, any other of the
only source.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from tuner.config.view import View
from tuner.data.formats import table
from tuner.data.formats.shape import RowShape
from tuner.errors import ConfigError, did_you_mean

NUMBERED = re.compile(r"\d{4}-")
"""what names begin with where there are several files (tuner.data.files.data_paths.locate)"""
OWNED = re.compile(r"p(\d{2,})-|held_out-")


def sources_of(view: View) -> tuple[View, ...]:
    """The sources: those of a mixture, or the only one."""
    data = view.data
    return tuple(data.parts) or (data,)


def source_of_file(name: str) -> tuple[int, bool]:
    """Which source a file is of, and whether all its rows are held out; those are read as the first source's
    are.

    >>> [source_of_file(name) for name in ("chats.jsonl", "0001-b.jsonl", "p02-a.jsonl", "held_out-a.jsonl")]
    [(0, False), (0, False), (2, False), (0, True)]
    """
    found = OWNED.match(name)
    return (int(found[1] or 0), found[1] is None) if found else (0, False)


def shape_of(part: View) -> RowShape:
    """How the rows of a source are read."""
    words = {role: (word,) if isinstance(word, str) else tuple(word) for role, word in part.roles.items()}
    return RowShape(format=part.format, columns=part.columns, roles=words, paths=part.paths, split=part.split)


def name_in_dataset(name: str, number: int | None) -> str:
    """What a file is called among those of all sources; `number` is its source's in a mixture."""
    if number is not None:
        return f"{source_prefix(number)}{name}"
    return f"0000-{name}" if OWNED.match(name) else name  # a file may well be called p01-x.jsonl


def source_prefix(number: int) -> str:
    """What names of a mixture's source begin with."""
    return f"p{number:02d}-"


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """What a person calls files: their names without what holds their order and source. Those that are then
    alike are counted.

    >>> plain_names(["0000-b.jsonl", "0001-a.jsonl", "held_out-a.jsonl"])
    {'0000-b.jsonl': 'b.jsonl', '0001-a.jsonl': 'a.jsonl (1)', 'held_out-a.jsonl': 'a.jsonl (2)'}
    >>> plain_names(["0001-b.jsonl"]), plain_names(["0000-p01-x.jsonl"])
    ({'0001-b.jsonl': '0001-b.jsonl'}, {'0000-p01-x.jsonl': 'p01-x.jsonl'})
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        owner = OWNED.match(name)
        groups.setdefault(owner[0] if owner else "", []).append(name)
    plain = {}
    for prefix, group in groups.items():
        for name in group:
            rest = name.removeprefix(prefix)
            numbered = NUMBERED.match(rest) and (len(group) > 1 or OWNED.match(rest[5:]))
            plain[name] = rest[5:] if numbered else rest
    return told_apart(plain)


def told_apart(shown: Mapping[str, str]) -> dict[str, str]:
    """Names to show, with a number behind those that are alike."""
    times, seen = Counter(shown.values()), Counter[str]()
    found = {}
    for name, text in shown.items():
        seen[text] += 1
        found[name] = f"{text} ({seen[text]})" if times[text] > 1 else text
    return found


def check_columns(view: View) -> None:
    """Raises ConfigError for a column that the format of its source doesn't have."""
    for part in sources_of(view):
        known = table.COLUMNS.get(part.format, set().union(*table.COLUMNS.values()))
        if unknown := next((column for column in part.columns if column not in known), None):
            theirs = part.columns[unknown]
            if theirs in known:
                raise ConfigError(
                    f"data.columns.{unknown}={theirs}: the format's name comes first, and then what the rows "
                    f"call it: data.columns.{theirs}={unknown}"
                )
            raise ConfigError(
                f"data.columns.{unknown}: the format {part.format} reads no such "
                f"column.{did_you_mean(unknown, known)} It reads {', '.join(sorted(known))}."
            )
