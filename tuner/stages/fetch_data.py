"""fetch_data: find the files of the data set. They are referenced by content, never copied."""

from pathlib import Path
from typing import Any

from tuner.data import formats, sources
from tuner.stage import Context, Stage, View


def files(view: View) -> dict[str, Path]:
    """Name → file, as the config says."""
    data = view.data
    path = data.path
    return sources.locate([path] if isinstance(path, str) else path, data.package if data.source == "package" else None)


def check(view: View) -> None:
    """The files are there."""
    files(view)


def run(context: Context) -> dict[str, Any]:
    """Read until the first row that can be trained on was found; what is wrong further on, tokenize finds."""
    found = files(context.config)
    rows = 0
    for rows, conversation in enumerate(formats.read(found, context.config.data.format), start=1):  # noqa: B007 (counts them for the error)
        if conversation.trains:
            break
    else:
        raise formats.empty(found, rows)
    return {"files": len(found), "bytes": sum(file.stat().st_size for file in found.values())}


STAGE = Stage(
    name="fetch_data",
    version=1,
    run=run,
    sources=files,
    check=check,
    references=lambda _: True,
    by_content=True,
)
