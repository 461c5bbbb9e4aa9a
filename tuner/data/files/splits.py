"""Which files of a repository are its training rows: those asked for, those its card names, or those whose
names say so.

    data.files=data/train-*.parquet → the card's `configs:` → names with `train` in them → all, where no name
    tells splits apart

A hub's loading scripts (`.py`) are never run, and a pickle is never opened: what can be read is told by the
ending.
"""

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import yaml

from tuner.data.files.row_files import PACKED, is_readable
from tuner.errors import DataError

if TYPE_CHECKING:
    from tuner.hub.listing import Listing

CARD = "README.md"
WORDS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("validation", "valid", "dev", "val", "heldout", "holdout"),
}
"""split → how names say it"""
ASIDE = re.compile(
    r"(^|/)(dataset_infos?|dataset_dict|state|config|configuration|metadata|package|index|tokenizer\w*|\w*\.index)\.json$"
    r"|(^|/)(README|LICENSE|NOTICE|CITATION|requirements|citation|license|readme)[^/]*\.txt$|(^|/)\."
)
"""files beside the rows"""
CONVERTED = re.compile(r"(?P<config>[^/]+)/(partial-)?(?P<split>[^/]+)/\d+\.parquet")
"""how the hub names the files of refs/convert/parquet"""
HELD_OUT = re.compile(r"(held|hold)[ _-]?out")
SHOWN = 8


def wanted_files(
    listing: "Listing", patterns: Sequence[str] | None, headers: Mapping[str, str], hub: str
) -> list[str]:
    """The files of a data set's training rows, in their order. The card is only asked for where there are no
    patterns.

    hub      in words, for errors
    Raises what `choose_files` and `read_small_file` raise.
    """
    # and with it the modules of the network, which a plan can do without
    from tuner.hub.download import SMALL, read_small_file

    cards = [remote for remote in listing.files if remote.path == CARD and (remote.size or 0) <= SMALL]
    card = read_small_file(cards[0], headers).decode(errors="replace") if cards and not patterns else None
    return choose_files([remote.path for remote in listing.files], patterns, card, f"{listing.repo} on {hub}")


def choose_files(
    paths: Sequence[str],
    patterns: Sequence[str] | None,
    card: str | None,
    what: str,
    *,
    field: str = "data.files='",
    strict: bool = False,
) -> list[str]:
    """The paths wanted, in the order of the patterns, and of the names within one.

    paths      of all files
    patterns   `*`, `?` and `[…]`; a `*` goes over `/` too, and a pattern that ends in `/` is all below
    card       the text of README.md
    what       the repository's name, for errors
    field      how a file of it is named on the command line: what stands before its path
    strict     refuse files of another split than training, also where there are no others
    Raises DataError, with what there is, when nothing fits.
    """
    if patterns:
        return _matched(paths, patterns, what)
    data = [path for path in sorted(paths) if is_readable(path) and not ASIDE.search(path)]
    if not data:
        raise _nothing(paths, what)
    return _of_card(data, card, what, field, strict) or one_kind(
        _of_names(data, what, field, strict), what, field
    )


def _matched(paths: Sequence[str], patterns: Sequence[str], what: str) -> list[str]:
    found: dict[str, None] = {}
    for pattern in patterns:
        all_of = [
            path
            for path in sorted(paths)
            if fnmatchcase(path, pattern + "*" if pattern.endswith("/") else pattern)
        ]
        data = [path for path in all_of if is_readable(path)]
        if not data:
            near = difflib.get_close_matches(
                pattern, [path for path in paths if is_readable(path)], n=3, cutoff=0.5
            )
            why = f"matches {_listed(all_of)}, which can't be read as rows" if all_of else "matches no file"
            hint = (
                f"Did you mean {' or '.join(near)}?"
                if near and not all_of
                else f"It holds {_listed(sorted(paths))}."
            )
            raise DataError(f"data.files: {pattern!r} {why} of {what}. {hint}")
        found |= dict.fromkeys(data)
    return list(found)


def _of_card(data: Sequence[str], card: str | None, what: str, field: str, strict: bool) -> list[str]:
    """The files of the training split of the default configuration, or the first; none where the card says
    nothing of files.
    """
    said = _header(card).get("configs")
    configs = [config for config in (said if isinstance(said, list) else []) if isinstance(config, Mapping)]
    if not configs:
        return []
    config = next((c for c in configs if c.get("default") or c.get("config_name") == "default"), configs[0])
    folder = str(config.get("data_dir") or "").strip("/.")
    inside = [path for path in data if path.startswith(f"{folder}/")] if folder else list(data)
    splits = _splits(config.get("data_files"))
    if not splits:
        return one_kind(_of_names(inside, what, field, strict), what, field) if folder and inside else []
    if "train" not in splits and (
        len(splits) > 1 or (strict and split_of(next(iter(splits))) not in (None, "train"))
    ):
        named = [
            _full(folder, pattern)
            for split in sorted(splits, key=lambda split: "train" not in split)
            for pattern in splits[split]
        ]
        there = [pattern for pattern in named if any(fnmatchcase(path, pattern) for path in data)]
        raise DataError(
            f"{what} has no split `train`: its card names {', '.join(splits)}. Say which files: "
            f"{_example(there or data, field)}."
        )
    patterns = splits.get("train") or next(iter(splits.values()))
    found: dict[str, None] = {}
    for pattern in patterns:
        full = _glob(_full(folder, pattern))
        found |= dict.fromkeys(path for path in inside if full.fullmatch(path))
    if not found:
        raise DataError(
            f"{what}: its card names {_listed(patterns)} for training, and no such file can be read as rows. "
            f"It holds {_listed(data)}."
        )
    return list(found)


def _full(folder: str, pattern: str) -> str:
    return f"{folder}/{pattern}" if folder else re.sub(r"^(\./)+", "", pattern)


def _glob(pattern: str) -> re.Pattern[str]:
    """A card's pattern, in which only `**` goes over `/`; a directory stands for all that is below."""
    signs = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    text = "".join(
        signs.get(piece, re.escape(piece)) for piece in re.split(r"(\*\*/|\*\*|\*|\?)", pattern.rstrip("/"))
    )
    return re.compile(f"{text}(?:/.*)?")


def _header(card: str | None) -> dict[str, Any]:
    """The YAML in front of a card's text; an empty one where it can't be read: a card is a help, and
    nothing that has to be right.
    """
    found = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(\n|\Z)", (card or "").replace("\r\n", "\n"), re.DOTALL)
    try:
        values = yaml.safe_load(found[1]) if found else {}
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _splits(value: Any) -> dict[str, list[str]]:
    """Split → patterns, from any form of `data_files`; a bare pattern is the training split."""
    if isinstance(value, str):
        return {"train": [value]}
    if isinstance(value, Mapping):
        return {str(split): _texts(files) for split, files in value.items()}
    splits: dict[str, list[str]] = {}
    for entry in value if isinstance(value, list) else []:
        split, files = (
            (entry.get("split", "train"), entry.get("path"))
            if isinstance(entry, Mapping)
            else ("train", entry)
        )
        splits.setdefault(str(split), []).extend(_texts(files))
    return splits


def _texts(value: Any) -> list[str]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]


def _of_names(data: Sequence[str], what: str, field: str, strict: bool) -> list[str]:
    if all(CONVERTED.fullmatch(path) for path in data):
        configs = sorted(
            {path.partition("/")[0] for path in data}, key=lambda name: (name != "default", name)
        )
        data = [path for path in data if path.startswith(f"{configs[0]}/")]
    of = {path: split_of(path) for path in data}
    if train := [path for path in data if of[path] == "train"]:
        return train
    if loose := [path for path in data if of[path] is None]:
        return loose
    if len(set(of.values())) == 1 and not strict:
        return list(data)
    raise DataError(
        f"{what} has no training split; it holds {_listed(data)}. Say which files: {_example(data, field)}."
    )


def split_of(path: str) -> str | None:
    """The split that a path names: in the file's name, else in the nearest directory.

    >>> (split_of("data/train-00000-of-00001.parquet"), split_of("test/train.csv"),
    ...  split_of("validation/a.jsonl"), split_of("a.jsonl"))
    ('train', 'train', 'validation', None)
    """
    for part in reversed(path.split("/")):
        words = re.split(r"[ ._\-0-9]+", HELD_OUT.sub("heldout", part.lower()))
        for split, known in WORDS.items():
            if any(word in known for word in words):
                return split
    return None


def names_split(value: Any, wanted: str) -> bool:
    """Whether a value of a row says that it is of the split `wanted`.

    >>> names_split("Dev", "validation"), names_split("train_sft", "train"), names_split(None, "train")
    (True, True, False)
    """
    return isinstance(value, str) and (
        value.casefold() == wanted.casefold() or split_of(value) == wanted.casefold()
    )


def one_kind(paths: list[str], what: str, field: str) -> list[str]:
    """Of the same rows in several kinds of files, the kind with the most files; a plain text beside others
    describes them.
    """
    kinds = {path: _kind(path) for path in paths}
    counts = Counter(kinds.values())
    if len(counts) > 1:
        counts.pop(".txt", None)
    (kind, most), *others = counts.most_common()
    if others and others[0][1] == most:
        raise DataError(
            f"{what} holds files of several kinds, {_listed(paths)}, and they may be the same rows. Say "
            f"which: {_example([paths[0]], field)}."
        )
    return [path for path in paths if kinds[path] == kind]


def _kind(path: str) -> str:
    name = path.lower()
    for ending in PACKED:
        name = name.removesuffix(ending)
    return f".{name.rsplit('.', 1)[-1]}"


def _nothing(paths: Sequence[str], what: str) -> DataError:
    scripts = [path for path in paths if path.endswith(".py")]
    if scripts and "ModelScope" in what:
        return DataError(
            f"{what} has no files of rows, but a script that would make them ({', '.join(scripts[:3])}), and "
            "code from a hub is never run here."
        )
    if scripts:
        return DataError(
            f"{what} has no files of rows, but a script that would make them ({', '.join(scripts[:3])}), and "
            "code from a hub is never run here. Hugging Face keeps a copy of many such sets as Parquet: "
            "try data.revision=refs/convert/parquet."
        )
    return DataError(
        f"{what} has no file that can be read as rows (JSONL, JSON, CSV, Parquet, Arrow, text); it holds "
        f"{_listed(sorted(paths))}."
    )


def _listed(paths: Sequence[str]) -> str:
    return (
        ", ".join(paths[:SHOWN]) + (f" and {len(paths) - SHOWN:,} more" if len(paths) > SHOWN else "")
        if paths
        else "no files at all"
    )


def _example(paths: Sequence[str], field: str) -> str:
    return f"{field}{paths[0]}'" if paths else "data.files=PATTERN"
