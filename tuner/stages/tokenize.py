"""tokenize: rows → documents → packs, and a ledger of every row's fate."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuner.config.build import build_config
from tuner.config.schema import Config
from tuner.config.view import View
from tuner.data.formats import table
from tuner.data.sources import check_columns, sources_of
from tuner.data.tokenize import packing
from tuner.errors import DataError
from tuner.models.checkpoint.files import TOKENIZERS
from tuner.pipeline.sizes import MANIFEST, DiskNeed, Quantities
from tuner.pipeline.stage import Context, Stage

CHAT, PACKS, PREPARE = 4, 1, 3
"""versions of tuner.data.chat.template, tuner.data.packs and tuner.data.tokenize.documents, whose imports
are too heavy for a plan; a test holds them equal
"""

PACKED, FRAMES = 4.6, 4200
"""bytes of a token in tuner.data.packs (its id, its bit of the loss mask, its share of a short document's
numbers); of both files' schema and footer
"""


def versions(view: View) -> dict[str, int]:
    """The pieces that this config uses."""
    formats = {
        name: version
        for part in sources_of(view)
        for name, version in table.format_versions(part.format).items()
    }
    return {**formats, "chat": CHAT, "packing": packing.VERSION, "packs": PACKS, "prepare": PREPARE}


def check(view: View) -> None:
    """A local model directory has a tokenizer, and the columns are those of the format."""
    check_columns(view)
    model = view.model
    place = model.dir if model.source == "run" else model.path if model.source == "path" else None
    directory = Path(place).expanduser() if place else None
    if directory and directory.is_dir() and not any((directory / name).is_file() for name in TOKENIZERS):
        raise DataError(
            f"{directory} has no tokenizer.json, which turns text into tokens, nor "
            f"{' or '.join(TOKENIZERS[1:])}. Copy it from the model's publisher into that directory, or "
            "stop before with until=fetch."
        )


def run(context: Context) -> dict[str, Any]:
    """Write train.arrow, held_out.arrow and ledger.json."""
    from tuner.data.conversation import DocumentRole
    from tuner.data.packs import write_packs
    from tuner.data.tokenize import dataset, ledger
    from tuner.data.tokenize.cuts import Cuts
    from tuner.data.tokenize.held_out import hold_out
    from tuner.data.tokenize.settings import listed_files, settings_of
    from tuner.data.tokenize.spool import Spool

    data, length = context.config.data, context.config.data.length
    settings = settings_of(context.config, context.inputs["fetch_model"].dir)
    check_vocabulary(settings)
    fetched = context.inputs["fetch_data"]
    listed = listed_files(context.config, fetched.files, fetched.facts)
    settings = dataset.survey_sources(settings, listed)
    for line in dataset.source_notes(settings, listed):
        context.say(f"  {line}")
    documents, cuts = Spool(context.out / ".documents"), Cuts()
    try:
        sources = dataset.read_dataset(
            settings,
            listed,
            documents,
            cuts,
            takes=[part.take for part in sources_of(context.config)],
            seed=data.seed,
            skip=data.bad_rows == "skip",
            workers=context.config.machine.workers,
            say=context.say,
        )
        dataset.drop_duplicates(documents, sources, drop=data.duplicates == "drop")
        dataset.refuse_dropped(sources, data.max_dropped)
        dataset.count_tokens(documents, sources)
        apart = hold_out(documents, [file.apart for file in listed], sources, data.held_out, data.seed)
        facts = {}
        for name, which in (("train", ~apart.documents), ("held_out", apart.documents)):
            members = which.nonzero()[0]
            follows = (documents.roles[members] == DocumentRole.REJECTED).tolist()
            packs = packing.pack_pairs(documents.lengths[members].tolist(), follows, length, data.seed)
            write_packs(context.out / f"{name}.arrow", (documents.pack(members[pack]) for pack in packs))
            tokens, trained = int(documents.lengths[members].sum()), int(documents.trained[members].sum())
            facts[name] = ledger.summary(len(packs), tokens, len(members), trained, length)
        facts["held_out"] |= apart.entry()
    finally:
        documents.close()
    usable = sum(source.usable for source in sources)
    ledger.write_ledger(
        context.out / "ledger.json",
        sources,
        length=length,
        cut={"rows": cuts.rows, "of_rows": usable, "with_calls": cuts.calls},
        **facts,
    )
    advice = cuts.advice(length, usable, longest(context.config, settings.model))
    for line in [
        *ledger.ledger_table(sources, dataset.reading_hints(settings, listed)),
        _told(facts["train"], length),
        *apart.told(),
        *([advice] if advice else []),
    ]:
        context.say(f"  {line}")
    wanted, trained = data.min_trained_tokens, facts["train"]["trained_tokens"]
    if wanted is not None and trained < wanted:
        raise DataError(
            f"{trained:,} tokens are trained, fewer than data.min_trained_tokens={wanted:,}. Look at the "
            "rows, or lower it."
        )
    return {
        "packs": facts["train"]["packs"],
        "tokens": facts["train"]["tokens"],
        "trained_tokens": trained,
        "held_out_tokens": facts["held_out"]["tokens"],
        "measured_tokens": apart.tokens,
        "efficiency": facts["train"]["efficiency"],
        "cut": advice,
    }


def longest(view: View, model: Path) -> int | None:
    """The longest sequence that the model was made for, in tokens; None where nothing says so."""
    from tuner.files import read_json

    told = read_json(model / "config.json") or {}
    found = (
        view.model.context
        or told.get("max_position_embeddings")
        or (told.get("text_config") or {}).get("max_position_embeddings")
    )
    return found if isinstance(found, int) and found > 0 else None


def check_vocabulary(settings: Any) -> None:
    """Before any row is read: each special token of the template is one id, and no id that a document can
    hold is beyond the embedding.
    """
    from tuner.data.chat.special_tokens import check_embedding_rows
    from tuner.data.chat.template import compile_template
    from tuner.data.tokenizer.load import load_vocabulary
    from tuner.models.checkpoint.headers import embedding_rows

    template = compile_template(settings.chat, load_vocabulary(settings.model))
    if (rows := embedding_rows(settings.model)) is not None:
        check_embedding_rows(template, settings.chat, rows)


def _told(train: dict[str, Any], length: int) -> str:
    share = f"{train['efficiency']:.1%} full" if train["packs"] else "none"
    return (
        f"{train['documents']:,} documents, {train['tokens']:,} tokens ({train['trained_tokens']:,} trained) "
        f"in {train['packs']:,} packs of {length:,} ({share})"
    )


def recall(config: Config, origin: Mapping[str, Any]) -> Config:
    """The chat template of an artifact, where the config leaves it open."""
    if not config.model.chat.auto:
        return config
    said = {
        path.removeprefix("model.chat."): value
        for path, value in origin["inputs"].items()
        if path.startswith("model.chat.")
    }
    return replace(
        config,
        model=replace(config.model, chat=build_config({"model": {"chat": said}}, whole=False).model.chat),
    )


def size(_view: View, known: Quantities) -> DiskNeed:
    """Of both files of packs; the documents lie beside them until they are packed."""
    packs = int(known.tokens * PACKED) + FRAMES + MANIFEST
    return DiskNeed(peak=2 * packs, stays=packs)


STAGE = Stage(
    name="tokenize",
    version=4,
    run=run,
    child=True,
    upstream=("fetch_data", "fetch_model"),
    versions=versions,
    check=check,
    recall=recall,
    size=size,
    must_have=lambda *_: ("train.arrow", "held_out.arrow", "ledger.json"),
)
