"""fetch_data: find the files of the data set. Files of your own are referenced by content, never copied;
those of a hub are downloaded.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tuner.config.schema import HUBS
from tuner.config.view import View
from tuner.data.files import data_paths
from tuner.data.files.row_files import file_note
from tuner.data.formats.shape import RowShape
from tuner.data.sources import (
    check_columns,
    name_in_dataset,
    shape_of,
    source_of_file,
    source_prefix,
    sources_of,
)
from tuner.data.survey.scan import scan_source
from tuner.errors import ConfigError, DataError
from tuner.hub import lockfile
from tuner.hub.lockfile import Pin
from tuner.pipeline.stage import Context, Remote, Stage
from tuner.stages.first_row import require_trainable_row


def local_files(view: View) -> dict[str, Path]:
    """Name → file, of those that lie here, as the config says."""
    data, found = view.data, dict[str, Path]()
    for number, part in enumerate(sources_of(view)):
        if part.source in HUBS:
            continue
        where = f"data.of ({part.label})" if data.parts else "data.path"
        located = _located(part.path, part.package if part.source == "package" else None, where)
        found |= {
            name_in_dataset(name, number if data.parts else None): file for name, file in located.items()
        }
    if data.held_out_path is not None:
        apart = _located(data.held_out_path, None, "data.held_out_path", apart=True)
        trained = {file.resolve() for file in found.values()}
        if both := [str(file) for file in apart.values() if file.resolve() in trained]:
            raise DataError(
                f"data.held_out_path names {', '.join(both)}, which is trained on too: what is measured must "
                "not be. Name another file."
            )
        found |= {f"held_out-{name}": file for name, file in apart.items()}
    for name, file in found.items():
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{file} has a name that is no UTF-8. Rename it.") from error
    return found


def own_files(view: View) -> list[Path]:
    """Of those, what no package brought."""
    packaged = [
        file
        for part in sources_of(view)
        if part.source == "package"
        for file in _located(part.path, part.package, "data.path").values()
    ]
    return [file for file in local_files(view).values() if file not in packaged]


def _located(
    paths: str | Sequence[str], package: str | None, where: str, *, apart: bool = False
) -> dict[str, Path]:
    try:
        return data_paths.locate(_all(paths), package, apart=apart)
    except DataError as error:
        raise DataError(str(error).replace("data.path:", f"{where}:", 1)) from error


def _all(paths: str | Sequence[str]) -> Sequence[str]:
    return [paths] if isinstance(paths, str) else paths


def notes(view: View) -> list[str]:
    """What is to be said of the files that lie here: what of a directory was taken and left, and what a
    file holds beside its rows.
    """
    data, lines = view.data, list[str]()
    apart = data.held_out_path is not None
    for part in sources_of(view):
        if part.source not in HUBS:
            package = part.package if part.source == "package" else None
            lines += data_paths.describe_files(_all(part.path), package, held_out=apart)
            lines += _beside(data_paths.locate(_all(part.path), package).values(), part)
    if apart:
        lines += data_paths.describe_files(_all(data.held_out_path), apart=True)
        lines += _beside(
            data_paths.locate(_all(data.held_out_path), apart=True).values(), sources_of(view)[0]
        )
    return lines


def _beside(found: Iterable[Path], part: View) -> list[str]:
    letters = shape_of(part).letters
    return [f"{file.name}: {said}" for file in found if (said := file_note(file, part.encoding, letters))]


def pin_name(part: View) -> str:
    """What the lock calls a hub's data set."""
    return lockfile.entry_name("data", part.source, part.repo, part.revision, patterns(part) or ())


def patterns(part: View) -> tuple[str, ...] | None:
    """Of the files wanted of a hub's data set."""
    return (part.files,) if isinstance(part.files, str) else part.files


def find_pins(view: View) -> dict[str, Pin | None]:
    """The hubs' data sets in the lock."""
    names = [pin_name(part) for part in sources_of(view) if part.source in HUBS]
    return {name: lockfile.find_pin(Path(view.lock), name) for name in names}


def look_up(view: View, say: Callable[[str], None]) -> None:
    """Ask the hubs what the revisions are and which files are wanted, and write it into the lock."""
    from tuner.data import fetch

    known = find_pins(view)
    for part in sources_of(view):
        if part.source not in HUBS or known[name := pin_name(part)] is not None:
            continue
        found = fetch.pin_files(fetch.hub_of(part.source), part.repo, part.revision, patterns(part))
        known[name] = pin = lockfile.add_pin(Path(view.lock), name, found)
        say(lockfile.lookup_message(view.lock, name, pin))


def check(view: View) -> None:
    """The files that lie here are there, and the columns are those of the format."""
    check_columns(view)
    local_files(view)


def run(context: Context) -> dict[str, Any]:
    """Bring what lies at a hub, and read until a row of each source can be trained on; what is wrong
    further on, tokenize finds.
    """
    view, found = context.config, local_files(context.config)
    brought = [
        _bring(part, source_prefix(number) if view.data.parts else "", context)
        for number, part in enumerate(sources_of(view))
        if part.source in HUBS
    ]
    own = [name for facts in brought for name in facts["files"]]
    if brought:
        from tuner.hub import download

        download.remove_leftovers(context.out, own)
    found |= {name: context.out / name for name in own}
    described = sources_of(view)
    shapes: dict[int, RowShape] = {}
    for number, apart in sorted({source_of_file(name) for name in found}):
        part = described[number]
        if number not in shapes:
            whole = [
                (file, part.encoding)
                for name, file in sorted(found.items())
                if source_of_file(name)[0] == number
            ]
            shapes[number] = scan_source(whole, shape_of(part))
        shape, mine = (
            shapes[number],
            [file for name, file in sorted(found.items()) if source_of_file(name) == (number, apart)],
        )
        require_trainable_row(
            mine, part.encoding, shape.whole if apart else shape, mixed=bool(view.data.parts)
        )
    for line in notes(view):
        context.say(f"  {line}")
    facts = {"files": len(found), "bytes": sum(file.stat().st_size for file in found.values())}
    return facts | ({"hub": brought} if brought else {})


def _bring(part: View, prefix: str, context: Context) -> dict[str, Any]:
    from tuner.data import fetch

    name = pin_name(part)
    pin = lockfile.find_pin(Path(context.config.lock), name)
    if pin is None:
        raise ConfigError(
            f"{context.config.lock} has lost its entry {name!r} since this run was planned. Run the same "
            "command again."
        )
    return fetch.download_files(
        fetch.hub_of(part.source), part.repo, pin, context.out, context.say, prefix=prefix
    )


def progress(partial: Path) -> str | None:
    """How much an interrupted download left."""
    if not partial.is_dir():
        return None
    from tuner.hub import download  # and with it the modules of the network, which a plan can do without

    return download.describe_progress(partial)


def versions(view: View) -> dict[str, int]:
    """The hub that each source comes from: two hubs may have different sets of one name."""
    return {
        f"{part.source}.{number}": 1 for number, part in enumerate(sources_of(view)) if part.source in HUBS
    }


def cost(view: View, partial: Path) -> tuple[int, int]:
    """Bytes still to download, as far as the hubs tell sizes, and bytes that are here already."""
    wanted = sum(file.size or 0 for pin in find_pins(view).values() if pin for file in pin.files.values())
    here = (
        sum(path.stat().st_size for path in partial.rglob("*") if path.is_file()) if partial.is_dir() else 0
    )
    return max(0, wanted - here), min(wanted, here)


def must_have(_view: View, _out: Path, facts: Mapping[str, Any]) -> Iterator[str]:
    for brought in facts.get("hub", ()):
        yield from brought["files"]


STAGE = Stage(
    name="fetch_data",
    until="fetch",
    version=1,
    run=run,
    child=True,
    versions=versions,
    sources=local_files,
    own_files=own_files,
    remote=Remote(
        fetches=lambda view: any(part.source in HUBS for part in sources_of(view)),
        pins=find_pins,
        look_up=look_up,
        cost=cost,
    ),
    check=check,
    references=lambda _: True,
    progress=progress,
    by_content=True,
    must_have=must_have,
)
