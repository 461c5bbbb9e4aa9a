"""tokenize: rows → conversations → ids and loss mask → packs, and a ledger of every row's fate."""

import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tuner.data import formats, packing
from tuner.data.conversation import Conversation, fill, with_system
from tuner.errors import DataError
from tuner.stage import Context, Stage, View

BATCH = 2000
"""conversations that the tokenizer's threads get at once"""
CHAT, PACKS = 1, 1
"""versions of tuner.data.chat and tuner.data.tokens, whose imports are too heavy for a plan; a test holds them equal"""


def versions(view: View) -> dict[str, int]:
    """The pieces that this config uses."""
    return {**formats.versions(view.data.format), "chat": CHAT, "packing": packing.VERSION, "packs": PACKS}


def check(view: View) -> None:
    """A local model directory has a tokenizer."""
    model = view.model
    place = model.dir if model.source == "run" else model.path if model.source == "path" else None
    directory = Path(place).expanduser() if place else None
    if directory and directory.is_dir() and not (directory / "tokenizer.json").is_file():
        raise DataError(
            f"{directory} has no tokenizer.json, which turns text into tokens. "
            "Copy it from the model's publisher into that directory, or stop before with until=fetch."
        )


def run(context: Context) -> dict[str, Any]:
    """Write train.arrow, held_out.arrow and ledger.json."""
    from tuner.data import ledger
    from tuner.data.chat import compile_template, load_tokenizer
    from tuner.data.tokens import write_packs

    data = context.config.data
    files = dict(sorted(context.inputs["fetch_data"].files.items()))
    template = compile_template(context.config.model.chat, load_tokenizer(context.inputs["fetch_model"].dir))
    sources = [ledger.Source(file=name) for name in files]
    documents = []
    overlong: list[str] = []
    for batch in _batches(_counted(_prepared(files, data), context.say)):
        for conversation, encoded in zip(batch, template.encode(batch), strict=True):
            source, line, tokens = sources[conversation.file], conversation.line, len(encoded.ids)
            source.rows += 1
            trained = encoded.trained[: data.length]
            if not conversation.trains:
                source.drop(line, "no assistant turn with text is trained")
            elif tokens > data.length and data.overlong == "error":
                overlong.append(f"{list(files.values())[conversation.file]}:{line}: {tokens} tokens")
                source.drop(line, "longer than data.length")
            elif tokens > data.length and data.overlong == "drop":
                source.drop(line, "longer than data.length")
            elif not trained.any():
                source.drop(line, "no trained token within data.length")
            else:
                source.kept += 1
                source.truncated += tokens > data.length
                documents.append(ledger.Document(ids=encoded.ids[: data.length], trained=trained, file=conversation.file, line=line))
    if overlong:
        raise DataError(
            f"{len(overlong)} conversations are longer than data.length={data.length} tokens, and data.overlong=error refuses them:\n  "
            + "\n  ".join(overlong[: ledger.FIRST])
            + "\nRaise data.length, or use data.overlong=truncate or drop."
        )
    if not documents:
        raise _nothing_left(files, sources)

    kept_out = set(packing.held_out(len(documents), data.held_out, data.seed))
    facts = {}
    for name in ("train", "held_out"):
        part = [document for i, document in enumerate(documents) if (i in kept_out) == (name == "held_out")]
        packs = packing.pack([len(document.ids) for document in part], data.length, data.seed)
        write_packs(context.out / f"{name}.arrow", (_pack([part[i] for i in members]) for members in packs))
        facts[name] = ledger.summary(packs, part, data.length)
    for i in kept_out:
        sources[documents[i].file].held_out += 1
    ledger.write(context.out / "ledger.json", sources, length=data.length, **facts)
    train, held_out = facts["train"], facts["held_out"]
    context.say(_told(train, held_out, sources, data.length))
    return {
        "packs": train["packs"],
        "tokens": train["tokens"],
        "trained_tokens": train["trained_tokens"],
        "held_out_tokens": held_out["tokens"],
        "efficiency": train["efficiency"],
    }


def _prepared(files: dict[str, Path], data: View) -> Iterator[Conversation]:
    places = list(files.values())
    for conversation in formats.read(files, data.format):
        try:
            yield with_system(fill(conversation, data.fill), data.system)
        except DataError as error:
            raise DataError(f"{places[conversation.file]}:{conversation.line}: {error}") from None


def _batches(conversations: Iterable[Conversation]) -> Iterator[list[Conversation]]:
    rest = iter(conversations)
    while batch := list(islice(rest, BATCH)):
        yield batch


def _counted(conversations: Iterable[Conversation], say: Callable[[str], None]) -> Iterator[Conversation]:
    """The same, with a progress bar on a terminal and a line now and then elsewhere."""
    if not sys.stderr.isatty():
        for count, conversation in enumerate(conversations, start=1):
            yield conversation
            if count % (25 * BATCH) == 0:
                say(f"{count:,} rows")
        return
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("tokenize {task.completed:,.0f} rows"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield from bar.track(conversations, total=0)


def _pack(members: list[Any]) -> Any:
    import numpy as np

    from tuner.data.tokens import Pack

    return Pack(
        ids=np.concatenate([document.ids for document in members]),
        trained=np.concatenate([document.trained for document in members]),
        lengths=np.array([len(document.ids) for document in members], dtype=np.int32),
        files=np.array([document.file for document in members], dtype=np.int32),
        lines=np.array([document.line for document in members], dtype=np.int32),
    )


def _nothing_left(files: dict[str, Path], sources: list[Any]) -> DataError:
    rows = sum(source.rows for source in sources)
    reasons = sorted({reason for source in sources for reason in source.dropped})
    if not rows or reasons == ["no assistant turn with text is trained"]:
        return formats.empty(files, rows)
    return DataError(f"all {rows} rows were left out ({'; '.join(reasons)}). Raise data.length, or look at the rows.")


def _told(train: dict[str, Any], held_out: dict[str, Any], sources: list[Any], length: int) -> str:
    told = [
        f"{train['documents']:,} conversations, {train['tokens']:,} tokens ({train['trained_tokens']:,} trained) "
        f"in {train['packs']:,} packs of {length:,} ({train['efficiency']:.0%} full)",
        f"{held_out['documents']:,} held out",
    ]
    if truncated := sum(source.truncated for source in sources):
        told.append(f"{truncated:,} truncated")
    if dropped := sum(source.rows - source.kept for source in sources):
        told.append(f"{dropped:,} dropped, see ledger.json")
    return "; ".join(told)


STAGE = Stage(
    name="tokenize",
    version=1,
    run=run,
    upstream=("fetch_data", "fetch_model"),
    versions=versions,
    check=check,
)
