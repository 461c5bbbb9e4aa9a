"""What a directory holds that was named as data or as a model and is not that: in words, with those that use
it.
"""

import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tuner.data.files.row_files import is_readable
from tuner.data.files.splits import ASIDE
from tuner.files import decode_json

WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth")
DEEP = 4
"""directories below one another that are looked into"""
MOST = 5_000
"""entries that are looked at"""
SHOWN = 8
ROOT = "outputs"
"""where runs lie unless it is said"""


def describe_folder(folder: Path) -> str:
    """What a directory is, as a sentence or two."""
    return (
        _of_tuner(folder)
        or _adapter(folder)
        or _model(folder)
        or _models_inside(folder)
        or _rows(folder)
        or _contents(folder)
    )


def is_root(folder: Path) -> bool:
    """Whether runs and their store lie in it."""
    return (folder / "runs").is_dir() and (folder / "store").is_dir()


def holds_weights(names: Iterable[str]) -> bool:
    """Whether files of these names are a model's, and the JSON beside them its settings."""
    return any(name.endswith((".safetensors", ".gguf", "pytorch_model.bin")) for name in names)


def short_list(paths: Sequence[str]) -> str:
    """Some of many."""
    return ", ".join(paths[:SHOWN]) + (f" and {len(paths) - SHOWN:,} more" if len(paths) > SHOWN else "")


def _of_tuner(folder: Path) -> str:
    """A root, a run, or what a link in a run points to."""
    if is_root(folder):
        return f"It is where tuner keeps its runs: python -m tuner status {_word('root', folder)} lists them."
    for run in (folder, folder.parent):
        if (run / "config.yaml").is_file() and run.parent.name == "runs" and is_root(run.parent.parent):
            root = run.parent.parent
            elsewhere = "" if str(root) == ROOT else f" {_word('root', root)}"
            part = "" if run == folder else f"the {folder.name} of "
            return (
                f"It is {part}the run {run.name}, from which another starts: model=run "
                f"{_word('model.run', run.name)}{elsewhere}"
            )
    return ""


def _adapter(folder: Path) -> str:
    file = folder / "adapter_config.json"
    if not file.is_file():
        return ""
    try:
        base = str(decode_json(file.read_bytes())["base_model_name_or_path"])
    except (OSError, ValueError, TypeError, KeyError):
        base = ""
    named = f", {base}," if base else ""
    return f"It is a PEFT adapter, not a whole model: merge it into its base{named} first."


def _model(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    if "model_index.json" in names:
        return "It is a pipeline of diffusers, which makes images."
    found = [name for name in names if name.endswith(WEIGHTS)]
    if "config.json" in names and found:
        return f"It is a model directory: model=local {_word('model.path', folder)}"
    if ggufs := [name for name in found if name.endswith(".gguf")]:
        kind = "a GGUF file, which" if len(ggufs) == 1 else f"{len(ggufs)} GGUF files, each of which"
        return f"It holds {kind} is a model: model=local {_word('model.path', folder / ggufs[0])}"
    return f"It holds weights ({short_list(found)}) and no config.json." if found else ""


def _models_inside(folder: Path) -> str:
    found = [place for place, names in _walk(folder) if "config.json" in names and holds_weights(names)]
    if not found:
        return ""
    many = "A model lies" if len(found) == 1 else f"{len(found)} models lie"
    return f"{many} further inside: model=local {_word('model.path', found[0])}"


def _rows(folder: Path) -> str:
    found = [
        (Path(place) / name).relative_to(folder).as_posix()
        for place, names in _walk(folder)
        for name in names
        if is_readable(name) and not ASIDE.search(name)
    ]
    return f"It holds rows ({short_list(found)}): data=local {_word('data.path', folder)}" if found else ""


def _contents(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return f"It holds {short_list(names)}." if names else "It is empty."


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each directory below with the names of its files, as far as one looks."""
    seen = 0
    for place, folders, names in os.walk(folder):
        depth = len(Path(place).relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if depth < DEEP else []
        yield Path(place), sorted(names)
        seen += len(folders) + len(names)
        if seen > MOST:
            return


def _word(field: str, value: object) -> str:
    return shlex.quote(f"{field}={value}")
