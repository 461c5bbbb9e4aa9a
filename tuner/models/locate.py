"""Where a model's files lie, in which layout, and whether they are quantised: as the config, the lock and the
files themselves say.

Standard library only: a plan asks.
"""

from collections.abc import Mapping
from pathlib import Path

from tuner.config.schema import HUBS
from tuner.config.view import View
from tuner.errors import ConfigError
from tuner.hub import lockfile
from tuner.hub.lockfile import Pin
from tuner.models.checkpoint import files, quantised, unquantised
from tuner.models.checkpoint.quantised import Quantisation
from tuner.models.layouts import detection


def model_path(view: View) -> Path:
    """The directory or GGUF file that the config names, for a model that lies here."""
    model = view.model
    if model.source == "run":
        if not model.dir:
            raise ConfigError(
                f"model.run={model.run} was not looked up: a run's model is found by the command line, not "
                "by a stage."
            )
        return Path(model.dir)
    return (
        files.package_file(model.package, model.file, model.install)
        if model.source == "package"
        else files.locate_model(model.path)
    )


def local_files(view: View) -> dict[str, Path]:
    """The model's files that lie here, by name."""
    if view.model.source in HUBS:
        return {}
    found = model_path(view)
    return files.checkpoint_files(found) if found.is_dir() else {found.name: found}


def locked_pins(view: View) -> dict[str, Pin | None]:
    """The hub's repository in the lock."""
    if view.model.source not in HUBS:
        return {}
    name = lock_key(view)
    return {name: lockfile.find_pin(Path(view.lock), name)}


def lock_key(view: View) -> str:
    """What the lock calls the repository."""
    model = view.model
    return lockfile.entry_name(
        "model", model.source, repository_name(view), model.revision, (model.file,) if model.file else ()
    )


def repository_name(view: View) -> str:
    """The repository's name on the hub it comes from."""
    model = view.model
    return str(model.modelscope or model.repo) if model.source == "modelscope" else str(model.repo)


def layout_of(view: View) -> str:
    """How the checkpoint's tensors are laid out: as the config says, as the lock says, or as config.json
    does.
    """
    model = view.model
    if model.layout != "auto":
        return str(model.layout)
    if model.source in HUBS:
        pin = locked_pins(view)[lock_key(view)]
        return (pin.layout if pin else None) or detection.NATIVE
    config = model_path(view) / "config.json"
    return detection.detect_layout(files.read_config(config)) if config.is_file() else detection.NATIVE


def quantisation_method(view: View) -> str | None:
    """The method by which the checkpoint is quantised and which is undone when it is fetched; None for a
    plain one.

    Raises ConfigError, with the unquantised model, for any other method. What a hub has is known once the
    lock says it.
    """
    model = view.model
    if model.source in HUBS:
        pin = locked_pins(view)[lock_key(view)]
        return pin.quantised if pin else None
    directory = model_path(view)
    if not (directory / "config.json").is_file():
        return None
    found = quantised.of_directory(directory)
    if found is not None and not found.undone:
        raise _refused(found, view, directory)
    return found.method if found else None


def _refused(found: Quantisation, view: View, directory: Path) -> ConfigError:
    config, card = files.read_config(directory / "config.json"), unquantised.card_of(directory)
    hub = view.model.source in HUBS
    name = repository_name(view) if hub else directory.name
    more = " model.source=modelscope" if view.model.source == "modelscope" else ""
    return unquantised.refusal(
        found, name if hub else str(directory), name=name, config=config, card=card, more=more
    )


def refuse_quantised_name(view: View) -> None:
    """For a plan: what is not in the lock, but called as quantised repositories are. A run asks the hub,
    which knows better.
    """
    if view.model.source in HUBS and locked_pins(view)[lock_key(view)] is None:
        name = repository_name(view)
        if (found := unquantised.by_name(name)) is not None and not found.undone:
            more = " model.source=modelscope" if view.model.source == "modelscope" else ""
            raise unquantised.refusal(found, name, name=name, config={}, card=None, more=more)


def file_names(view: View) -> list[str]:
    """The files' names, of those that lie here and of those that a hub has."""
    pin = locked_pins(view).get(lock_key(view)) if view.model.source in HUBS else None
    return list(pin.files) if pin else list(local_files(view))


def check_quantisation(directory: Path, view: View, todo: Mapping[str, int]) -> None:
    """Raises ConfigError for weights that are quantised by a method that is not undone, and DataError
    where it is not among what is `todo`.
    """
    if not (directory / "config.json").is_file():
        return
    found = quantised.of_directory(directory)
    if found is not None and not found.undone:
        raise _refused(found, view, directory)
    if found is not None and f"dequantize.{found.method}" not in todo:
        raise unquantised.stale_lock(
            found, repository_name(view) if view.model.source in HUBS else str(directory), view.lock
        )
