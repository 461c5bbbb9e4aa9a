"""fetch_model: the base model, in the layout of a class that transformers has.

A Hugging Face directory that is in it already is referenced as it is. What a hub has is downloaded; GGUF,
pickles, weights in FP8 or MXFP4 and the layouts of families without a class are rewritten, and new tokens get
their rows: each from one directory to the next, and the last one is the artifact.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from tuner.config.schema import HUBS, Config
from tuner.config.view import View
from tuner.data.chat import choice
from tuner.errors import ConfigError, DataError, did_you_mean
from tuner.hardware.limits import reading
from tuner.hardware.mistakes import fault_of
from tuner.models import locate
from tuner.models.checkpoint import files, quantised
from tuner.models.checkpoint.config_limits import check_config
from tuner.models.checkpoint.links import links_out, refuse_astray
from tuner.models.layouts import detection
from tuner.pipeline.sizes import DiskNeed, Quantities
from tuner.pipeline.stage import Context, Remote, Settled, Stage
from tuner.report.byte_size import readable_bytes
from tuner.stages.rewrite_model import clear_leftovers, rewrite_files

GGUF, PICKLE, NEW_TOKENS = 1, 1, 1
"""bumped when the same files would be rewritten as other bytes"""
HUB = ".hub"
"""where a hub's files lie that are still to be rewritten"""


def look_up(view: View, say: Callable[[str], None]) -> None:
    """Ask the hub what the revision is, and write it into the lock."""
    from tuner.models import fetch

    model, name = view.model, locate.lock_key(view)
    fetch.lock_model(
        model.source,
        locate.repository_name(view),
        model.revision,
        lock=Path(view.lock),
        name=name,
        layout=model.layout,
        file=model.file,
        say=say,
    )


def versions(view: View) -> dict[str, int]:
    """The rewritings that this model goes through, in their order."""
    found, kinds, wanted = (
        {},
        {name.rpartition(".")[2] for name in locate.file_names(view)},
        locate.layout_of(view),
    )
    if "gguf" in kinds:
        found["gguf"] = GGUF
    if kinds & {"bin", "pth", "pt"}:
        found["pickle"] = PICKLE
    if (method := locate.quantisation_method(view)) is not None:
        found[f"dequantize.{method}"] = quantised.VERSIONS[method]
    if wanted != detection.NATIVE:
        found[f"layout.{wanted}"] = detection.VERSIONS[wanted]
    if view.model.new_tokens:
        found["new_tokens"] = NEW_TOKENS
    return found


def references(view: View) -> bool:
    """Whether the files are the person's own, and are used as they are."""
    return view.model.source not in HUBS and not versions(view)


def check(view: View) -> None:
    """The files that lie here are there, and the layout has a name."""
    if view.model.layout not in ("auto", detection.NATIVE, *detection.VERSIONS):
        known = ("auto", detection.NATIVE, *detection.VERSIONS)
        raise ConfigError(
            f"model.layout={view.model.layout} is no layout.{did_you_mean(view.model.layout, known)} There "
            f"are {', '.join(known)}."
        )
    if view.model.new_tokens and locate.layout_of(view) in detection.WITHOUT_CLASS & detection.NORMALISED:
        raise ConfigError(
            "model.new_tokens adds rows to the output head, and a Baichuan2-13B's result is written in its "
            "own layout, whose head divides each row by its norm: they would be others there. Leave "
            "model.new_tokens out, or take another model."
        )
    locate.local_files(view)
    directory = _tokenizer(view)
    if directory and view.model.links == "inside":
        refuse_astray(directory)
    versions(view)


def settle(config: Config, made: Path | None) -> Settled:
    """The chat template that model/chat=auto stands for. Raises ConfigError where the tokenizer goes with
    none.
    """
    chat, view = config.model.chat, View(config, "fetch_model")
    if not chat.auto:
        return Settled(config=config)
    pin = locate.locked_pins(view).get(locate.lock_key(view)) if view.model.source in HUBS else None
    if pin and pin.template:
        found = choice.TemplateChoice(option=pin.template, why=f"as {view.lock} says of its tokenizer")
    elif (directory := made or _tokenizer(view)) is not None and (made or choice.is_plain(directory)):
        if not any((directory / name).is_file() for name in files.TOKENIZERS):
            return Settled(config=config)  # tokenize says that there is none
        found = choice.choose_template(directory, view.model.new_tokens)
    else:
        return Settled(
            config=config,
            told=(
                f"chat template: the {'tokenizer' if view.model.source in HUBS else 'file'}'s own, once "
                "fetched"
            ),
        )
    return Settled(
        config=replace(config, model=replace(config.model, chat=found.chat(chat.default_system))),
        told=found.words,
    )


def _tokenizer(view: View) -> Path | None:
    """The directory of a tokenizer that lies here."""
    directory = locate.model_path(view) if view.model.source not in HUBS else None
    return directory if directory and directory.is_dir() else None


def progress(partial: Path) -> str | None:
    """How much an interrupted download left."""
    if not partial.is_dir():
        return None
    from tuner.hub import download  # and with it the modules of the network, which a plan can do without

    return download.describe_progress(partial / HUB) or download.describe_progress(partial)


def cost(view: View, partial: Path) -> tuple[int, int]:
    """Bytes still to download, and bytes that are here already."""
    if (pin := locate.locked_pins(view).get(locate.lock_key(view))) is None:
        return 0, 0
    from tuner.models import fetch

    return fetch.download_cost(
        view.model.source, locate.repository_name(view), pin, partial / HUB if versions(view) else partial
    )


def size(view: View, known: Quantities) -> DiskNeed:
    """Of the files that are brought or rewritten; each rewriting goes once the next is written."""
    whole = known.weights(2) + known.beside
    if known.gguf:
        return DiskNeed(peak=whole + known.tokenizer, stays=whole)  # the tokenizer is written twice
    if references(view):
        return DiskNeed(peak=0, stays=0)
    copies = bool(versions(view)) + (view.model.source in HUBS)
    return DiskNeed(peak=whole * copies, stays=whole)


def run(ctx: Context) -> dict[str, Any]:
    """Bring the files, rewrite them where that is needed, and read every header, where a cut-off download
    shows.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported, so before transformers
    from tuner.data.tokenizer.load import load_vocabulary
    from tuner.data.tokenizer.save import save_vocabulary
    from tuner.models.checkpoint.config_files import read_json_object
    from tuner.models.checkpoint.safetensors import Checkpoint, main_dtype

    view, out = ctx.config, ctx.out
    if own := _tokenizer(view):
        for name, target in links_out(own):
            ctx.say(f"{name} is a link to {target}")
    todo = versions(view)
    found, commit = _bring(ctx, out / HUB if todo else out)
    locate.check_quantisation(next(iter(found.values())).parent, view, todo)
    scratch: list[Path] = [out / HUB]
    for number, name in enumerate(todo, start=1):
        target = out if number == len(todo) else out / f".{number}"
        clear_leftovers(target, keep=scratch)
        with fault_of(f"{name} of the model in {next(iter(found.values())).parent}"):
            rewrite_files(name, found, view, target, ctx.say)
        found = files.checkpoint_files(target)
        for done in scratch:
            shutil.rmtree(done, ignore_errors=True)
        scratch = [target]
    directory = next(iter(found.values())).parent
    locate.check_quantisation(directory, view, {})
    import_module("transformers.models.auto.configuration_auto")  # seconds that no file is to blame for
    with reading(str(directory)):
        config = native(directory)
        for name in ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json"):
            if (directory / name).is_file():
                read_json_object(directory / name)  # here, and not where a library reads it
    if any((directory / name).is_file() for name in files.TOKENIZERS):  # a checkpoint may come without
        vocabulary = load_vocabulary(
            directory
        )  # here, where limits hold; a plan loads what this has accepted
        if todo and "gguf" not in todo:
            save_vocabulary(vocabulary, directory, directory)
    with reading(f"the weights in {directory}"):
        specs = Checkpoint(weights := files.weight_files(directory)).specs.values()
    if not specs:
        raise DataError(f"{weights[0]} holds no tensor, where a model's weights should be. Get it again.")
    size = sum(spec.nbytes for spec in specs)
    facts = {
        "source": view.model.source if commit else "gguf" if "gguf" in todo else "directory",
        "architecture": str((config.get("architectures") or ["unknown"])[0]),
        "parameters": sum(spec.count for spec in specs),
        "dtype": main_dtype(specs),
        "bytes": size,
    }
    ctx.say(
        f"{facts['architecture']}, {facts['parameters']:,} parameters in {facts['dtype']}, "
        f"{readable_bytes(size)}"
    )
    return facts | ({"commit": commit} if commit else {}) | ({"rewritten": sorted(todo)} if todo else {})


def _bring(ctx: Context, out: Path) -> tuple[Mapping[str, Path], str | None]:
    """The model's files by name, and the commit of those that a hub has."""
    view = ctx.config
    if view.model.source not in HUBS:
        return locate.local_files(view), None
    from tuner.hub import download
    from tuner.models import fetch

    pin = locate.locked_pins(view)[locate.lock_key(view)]
    assert pin is not None, "the pipeline looks references up before a stage runs"
    fetch.download_model(view.model.source, locate.repository_name(view), pin, out, ctx.say)
    download.remove_leftovers(out, pin.files)
    return {name: out / name for name in pin.files}, pin.commit


def native(directory: Path) -> dict[str, Any]:
    """The model's config.json. Raises DataError when the installed transformers has no class of its own
    for the model's type, or absurd sizes.
    """
    from transformers import CONFIG_MAPPING, __version__

    path = directory / "config.json"
    config = files.read_config(path)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise DataError(
            f"{path} is no model's config: it should be a JSON object with a model_type. Get it again."
        )
    if kind not in CONFIG_MAPPING and kind != detection.ALIBI:
        own = ", and the model brings its own code, which is never run" if config.get("auto_map") else ""
        raise DataError(
            f"{path} says model_type {kind}, which transformers {__version__} does not know{own}. "
            "A newer transformers may know it; else use a model of a family that it has."
        )
    check_config(config)
    return config


def must_have(view: View, out: Path, _facts: Mapping[str, Any]) -> Iterator[str]:
    """Of what was brought as it is, all that the lock names; of what was rewritten, a model and its
    tokenizer.
    """
    if references(view):
        return
    todo = versions(view)
    pin = None if todo else locate.locked_pins(view).get(locate.lock_key(view))
    yield from pin.files if pin else files.checkpoint_files(out)
    if any(name.startswith("layout.") for name in todo):
        yield f"{detection.ORIGINAL}/{detection.LAYOUT_FILE}"


STAGE = Stage(
    name="fetch_model",
    until="fetch",
    version=1,
    run=run,
    versions=versions,
    sources=locate.local_files,
    own_files=lambda view: locate.local_files(view).values() if view.model.source == "path" else (),
    remote=Remote(
        fetches=lambda view: view.model.source in HUBS, pins=locate.locked_pins, look_up=look_up, cost=cost
    ),
    check=check,
    references=references,
    size=size,
    progress=progress,
    settle=settle,
    by_content=True,
    child=True,
    must_have=must_have,
)
