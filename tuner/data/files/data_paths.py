"""Where rows come from: local files, or files that an installed package carries.

A directory that `datasets` saved stands for its files, any other for those of its training split.
"""

import difflib
import glob
import importlib.util
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tuner.data.files import directory, splits
from tuner.data.files.folder_kind import short_list
from tuner.data.files.row_files import ENDINGS, is_readable
from tuner.errors import ConfigError, DataError
from tuner.files import decode_json

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
SHOWN = 3
"""files that an error names"""


def said_once(found: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each (place, why), where a reason that a line above gives is not given again.

    >>> said_once([("a.jsonl:1", "no answer"), ("a.jsonl:2", "no answer"), ("a.jsonl:9", "")])
    ['a.jsonl:1: no answer', 'a.jsonl:2: the same', 'a.jsonl:9']
    """
    lines, before = [], ""
    for place, why in found:
        lines.append(f"{place}: {'the same' if why == before else why}" if why else place)
        before = why
    return lines


def locate(paths: Sequence[str], package: str | None = None, *, apart: bool = False) -> dict[str, Path]:
    """Name → file, for each of `paths` in turn: a file, or a pattern (`*`, `?`, `[…]`, `**`) whose matches
    come in the order of their names, or a directory: one that `datasets` saved gives its shards in the order
    that it says, any other the files of its training split (`directory`).

    apart   the files are held out: a directory gives those of its validation or test split

    `~` is the home directory; a relative path starts at the current directory, or inside `package` where one
    is given. A name is the file's own, numbered where there are several, so that their order stays with them.
    Raises DataError, naming what lies near, when a file is missing.
    """
    folder = Path.cwd() if package is None else _package(package)
    files = [
        file
        for path in paths
        for found in _match(folder, path)
        for file in (_inside(found, apart) if found.is_dir() else [found])
    ]
    if len(files) == 1:
        return {files[0].name: files[0]}
    return {f"{number:04d}-{file.name}": file for number, file in enumerate(files)}


def describe_files(
    paths: Sequence[str], package: str | None = None, *, apart: bool = False, held_out: bool = False
) -> list[str]:
    """What was taken of directories and what was left, and what a pattern takes that its name calls another
    split; in words.

    held_out   whether rows of their own are held out
    Raises what `locate` raises.
    """
    folder, lines = Path.cwd() if package is None else _package(package), []
    for path in paths:
        found = _match(folder, path)
        lines += [
            directory.training_files(file).describe(held_out)
            for file in found
            if not apart and file.is_dir() and not _is_saved(file)
        ]
        lines += [
            directory.held_out_files(file).describe(True)
            for file in found
            if apart and file.is_dir() and not _is_saved(file)
        ]
        others = [file.name for file in found if splits.split_of(file.name) in ("test", "validation")]
        if not apart and others and len(others) < len(found):
            lines.append(
                f"{path} also matches {short_list(others)}, by the name not for training; to leave "
                "that out, name the others alone"
            )
    return lines


def file_names(files: Sequence[Path]) -> str:
    """The files of a data set in an error: the first few of many."""
    more = f" and {len(files) - SHOWN:,} more files" if len(files) > SHOWN + 1 else ""
    return ", ".join(map(str, files[:SHOWN] if more else files)) + more


def no_answers(read: int) -> str:
    """What is wrong with a data set in which nothing is trained, after so many rows."""
    found = (
        f"{read:,} row{'s' if read > 1 else ''}, and no assistant turn with text in any of them"
        if read
        else "no rows"
    )
    return f"found {found}. At least one conversation with an answer is needed to train on."


def _match(folder: Path, path: str) -> list[Path]:
    if ADDRESS.match(path):
        raise DataError(
            f"data.path: {path!r} is an address, and rows are read from files on the disk. {_instead(path)}"
        )
    file = folder / Path(path).expanduser()
    if file.exists():  # first, since a file may well be called "2026[1].jsonl"
        return [file]
    # Path.glob takes no absolute pattern
    named = glob.glob(str(file), recursive=True) if glob.has_magic(path) else []  # noqa: PTH207
    found = sorted(Path(name) for name in named)
    if not found:
        raise DataError(f"data.path: no file {path!r} in {folder}. {_nearest(file)}")
    around = {above for one in found for above in one.parents}
    return [one for one in found if one not in around]  # `**` matches a directory and what is in it


def _instead(address: str) -> str:
    """What to do where an address was given for a file."""
    bare = re.split("[?#]", address)[0]
    if found := re.search(
        r"(?:huggingface\.co|hf-mirror\.com)/datasets/([\w.-]+/[\w.-]+)(?:/(?:blob|resolve)/([\w.-]+)/(.+))?",
        bare,
    ):
        repo, revision, file = found.groups()
        return _of_a_hub("data=hub", repo, revision, file)
    if found := re.match(r"hf://datasets/([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?(?:/(.+))?\Z", bare):
        return _of_a_hub("data=hub", *found.groups())
    if found := re.search(r"modelscope\.c[no]m?/datasets/([\w.-]+/[\w.-]+)", bare):
        return _of_a_hub("data=hub data.source=modelscope", found[1], None, None)
    name = bare.rstrip("/").rpartition("/")[2] or "FILE"
    fetch = (
        f"curl -L -o {name} '{address}'"
        if address.lower().startswith("http")
        else "with the tool of that store"
    )
    return (
        f"Download it first ({fetch}), then data.path={name}. A data set of a hub is named: data=hub "
        "data.repo=ORG/NAME."
    )


def _of_a_hub(words: str, repo: str, revision: str | None, file: str | None) -> str:
    more = (f" data.revision={revision}" if revision and revision != "main" else "") + (
        f" 'data.files={file}'" if file else ""
    )
    return f"It is a data set of a hub, which is named: {words} data.repo={repo}{more}"


def _is_saved(folder: Path) -> bool:
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _inside(folder: Path, apart: bool) -> list[Path]:
    if _is_saved(folder):
        return _shards(folder)
    return [
        folder / path
        for path in (directory.held_out_files(folder) if apart else directory.training_files(folder)).files
    ]


def _shards(folder: Path) -> list[Path]:
    """The files of a directory that was written by save_to_disk of `datasets`."""
    state, inside = folder / "state.json", folder / "dataset_dict.json"
    if inside.is_file():
        held = [str(name) for name in _said(inside, "splits")]
        training = next((name for name in held if splits.split_of(name) == "train"), None)
        hint = (
            f"Name the one to train on, as in data.path={folder / training}."
            if training
            else "None of them is for training by its name; name one."
        )
        raise DataError(f"{folder} holds the splits {', '.join(held)} of a data set. {hint}")
    names = [
        shard.get("filename") if isinstance(shard, dict) else None for shard in _said(state, "_data_files")
    ]
    shards = [folder / name for name in names if isinstance(name, str) and Path(name).name == name]
    if len(shards) < len(names):
        raise DataError(
            f"{state}: a file under `_data_files` has no name of its own in {folder}. Save the data set "
            "again."
        )
    if lost := [shard.name for shard in shards if not shard.is_file()]:
        raise DataError(
            f"{state} names {lost[0]}, which is not in {folder}. Copy or save the data set again."
        )
    return shards


def _said(file: Path, key: str) -> list[object]:
    """The list under `key`, which is not empty."""
    try:
        value = decode_json(file.read_bytes())
        names = value[key]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{file} can't be read: an object with the list `{key}` was expected, as `datasets` writes it."
        ) from error
    if not isinstance(names, list) or not names:
        raise DataError(f"{file}: `{key}` is no list of names, as `datasets` writes it.")
    return names


def _nearest(file: Path) -> str:
    if not file.parent.is_dir():
        return f"There is no directory {file.parent} either."
    names = sorted(entry.name for entry in file.parent.iterdir() if entry.is_file())
    near = difflib.get_close_matches(file.name, names, n=3, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    data = [name for name in names if is_readable(name)]
    if data:
        return f"{file.parent} holds {', '.join(data[:5])}{' …' if len(data) > 5 else ''}."
    return f"{file.parent} holds no data file ({', '.join(ENDINGS)}, also with .gz or .zst)."


def _package(name: str) -> Path:
    """The directory of an installed package, which is not imported: importing would run its code."""
    root, *inner = name.split(".")
    try:
        spec = importlib.util.find_spec(root)
    except ValueError:  # a module without spec, such as __main__
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"data.package: no package {name!r} is installed here. Install it, or use data=local "
            "data.path=FILE."
        )
    return Path(next(iter(spec.submodule_search_locations))).joinpath(*inner)
