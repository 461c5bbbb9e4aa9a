"""What decides the documents of a config, and the files that they are made of, as the tokenizing workers
are told.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from tuner.config.schema import Chat
from tuner.config.view import View
from tuner.data.sources import plain_names, shape_of, source_of_file, sources_of, told_apart
from tuner.data.tokenize.data_file import DataFile
from tuner.data.tokenize.job import SourceSettings, TokenizeSettings


def settings_of(view: View, model: Path) -> TokenizeSettings:
    """All that decides the documents of this config, with the tokenizer in the directory `model`."""
    data = view.data
    return TokenizeSettings(
        model=model,
        chat=Chat(**{f.name: getattr(view.model.chat, f.name) for f in fields(Chat)}),
        sources=tuple(
            SourceSettings(
                shape=shape_of(part),
                fill=part.fill,
                system=part.system if part.system is not None else data.system,
                leave=(*_words(part.leave), *_words(data.leave)),
                strict="error" in (part.unread, data.unread),
            )
            for part in sources_of(view)
        ),
        length=data.length,
        overlong=data.overlong,
        loss=data.loss,
        reasoning=data.reasoning,
    )


def _words(value: str | Sequence[str]) -> Sequence[str]:
    return (value,) if isinstance(value, str) else value


def listed_files(view: View, files: Mapping[str, Path], facts: Mapping[str, Any]) -> list[DataFile]:
    """The files of a data set in their order, called as a person knows them, with what is said of their
    source. `facts` are fetch_data's.
    """
    described, result = sources_of(view), list[DataFile]()
    brought = {name: path for hub in facts.get("hub", ()) for name, path in hub["files"].items()}
    plain = plain_names(sorted(files.keys() - brought.keys()))
    shown = told_apart({name: brought.get(name) or plain[name] for name in sorted(files)})
    for name, path in sorted(files.items()):
        source, apart = source_of_file(name)
        part = described[source]
        result.append(
            DataFile(
                name=shown[name],
                path=path,
                source=source,
                label=part.label,
                apart=apart,
                encoding=part.encoding,
            )
        )
    return result
