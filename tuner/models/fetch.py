"""Models of hubs: looked up once, then downloaded and verified, or taken from this machine's own caches.

Standard library only at the top: a plan asks for what it costs.
"""

import functools
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.data.chat import choice
from tuner.errors import DataError
from tuner.files import decode_json
from tuner.hub import cache, lockfile
from tuner.hub.lockfile import Pin
from tuner.models.checkpoint import quantised, unquantised
from tuner.models.checkpoint.config_limits import check_config
from tuner.models.checkpoint.files import INDEX, parse_config
from tuner.models.checkpoint.repository_files import choose_files
from tuner.models.layouts import detection

if TYPE_CHECKING:
    from tuner.hub.listing import Listing, RemoteFile


def lock_model(
    source: str,
    repo: str,
    revision: str | None,
    *,
    lock: Path,
    name: str,
    layout: str,
    file: str | None = None,
    say: Callable[[str], None],
) -> None:
    """Ask the hub which commit a revision is, choose the files, and write them into the lock under `name`.

    layout   that of the config; `auto` reads it off config.json
    file     the GGUF file wanted, where the repository has several
    Where HF_HUB_OFFLINE is set, Hugging Face's cache is asked instead. Raises DataError.
    """
    from tuner.hub import download, http
    from tuner.hub.listing import check_names

    hub = _hub(source)
    cached = cache.resolve_cached(repo, revision) if source == "hub" and hub.offline() else None
    listing: Listing = cached or hub.resolve(repo, revision, repo_type="model")

    @functools.cache
    def read(remote: "RemoteFile") -> bytes:
        return _cached(repo, remote) if cached else download.read_small_file(remote, hub.headers())

    try:
        chosen = choose_files(listing, read, file)
        check_names(chosen)
        by_path = {remote.path: remote for remote in listing.files}
        found, method = None, None
        template = choice.choose_by_template(_template({name: by_path[name] for name in chosen}, read))
        if "config.json" in chosen:
            config = parse_hub_config(read(by_path["config.json"]), f"config.json of {repo}")
            check_config(config)
            method = _held(
                source, repo, config, by_path, read(by_path[INDEX]) if INDEX in chosen else None, read
            )
            found = detection.detect_layout(config) if layout == "auto" else layout
    except http.HttpRefused as error:
        raise hub.refusal(repo, error, repo_type="model") from error
    except DataError as error:
        if cached:
            where = cache.huggingface_cache()
            raise DataError(
                f"{error} This is what {where} has of it, and HF_HUB_OFFLINE forbids to ask the hub for the "
                "rest."
            ) from error
        raise
    pin = lockfile.add_pin(
        lock,
        name,
        replace(listing.pin(chosen, found), quantised=method, template=template.option if template else None),
    )
    say(lockfile.lookup_message(str(lock), name, pin))


def _template(files: "Mapping[str, RemoteFile]", read: "Callable[[RemoteFile], bytes]") -> str | None:
    """The tokenizer's own chat template; None where its files tell none, or are too large to be asked for
    now.
    """
    if "chat_template.jinja" in files:
        return read(files["chat_template.jinja"]).decode(errors="replace")
    try:
        settings = decode_json(read(files["tokenizer_config.json"]))
    except (KeyError, ValueError):
        return None
    return choice.template_in_settings(settings)


def _held(
    source: str,
    repo: str,
    config: Mapping[str, Any],
    files: "Mapping[str, RemoteFile]",
    index: bytes | None,
    read: "Callable[[RemoteFile], bytes]",
) -> str | None:
    """The method by which a repository's weights are quantised, if that is undone. Raises ConfigError for
    others, with the model that the card names.
    """
    from tuner.hub import http

    found = quantised.of_repository(config, files, index)
    if found is None or found.undone:
        return found.method if found else None
    card = None
    with suppress(http.HttpRefused, DataError):  # it is looked at for a better message only
        card = read(files["README.md"]).decode(errors="replace") if "README.md" in files else None
    more = " model.source=modelscope" if source == "modelscope" else ""
    raise unquantised.refusal(found, repo, name=repo, config=config, card=card, more=more)


def download_model(source: str, repo: str, pin: Pin, out: Path, say: Callable[[str], None]) -> None:
    """Have each pinned file in `out`, whole and with its digest: from the hubs' caches on this machine first,
    then from the hub.

    What an interrupted attempt left in `out` is gone on from. Raises DataError, and OSError for a disk that
    is full.
    """
    from tuner.hub import download, http

    hub = _hub(source)
    wanted: dict[str, RemoteFile] = hub.remote_files(repo, pin, repo_type="model")
    download.begin_download(repo, pin.commit, wanted, source, out, say)
    taken = cache.take_cached(source, repo, pin, out, say)
    rest = {path: remote for path, remote in wanted.items() if path not in taken}
    if source == "hub" and not all((out / path).is_file() for path in rest):
        hub.refuse_offline(repo, "model")
    try:
        download.fetch_files(rest, out, hub.headers(), say)
    except http.HttpRefused as error:
        raise hub.refusal(repo, error, repo_type="model", commit=pin.commit) from error


def download_cost(source: str, repo: str, pin: Pin, partial: Path | None = None) -> tuple[int, int]:
    """Bytes still to download, and bytes that are here already: in the hubs' caches, or in `partial`, the
    directory that `download_model` is given.

    No file is read and nobody is asked. A file whose size the hub does not tell counts as none.
    """
    from tuner.hub import download
    from tuner.hub.listing import remote_file

    missing = here = 0
    for path, pinned in pin.files.items():
        size, have = pinned.size or 0, 0
        if partial is not None:
            part = partial / download.PARTS / download.part_name(remote_file(path, pinned, ""))
            have = max((file.stat().st_size for file in (partial / path, part) if file.is_file()), default=0)
        if have < size and cache.find_cached(source, repo, path, pinned):
            have = size
        here += min(have, size)
        missing += size - min(have, size)
    return missing, here


def _hub(source: str) -> Any:
    from tuner.hub import huggingface, modelscope

    return huggingface if source == "hub" else modelscope


def _cached(repo: str, remote: "RemoteFile") -> bytes:
    """A small file of Hugging Face's cache, whose digest is right. Raises DataError."""
    from tuner.hub.download import SMALL
    from tuner.hub.listing import is_intact
    from tuner.hub.lockfile import Pinned

    found = cache.find_cached(
        "hub", repo, remote.path, Pinned(size=remote.size, sha256=remote.sha256, blob=remote.blob)
    )
    if found is None or found.stat().st_size > SMALL or not is_intact(found, remote):
        raise DataError(f"{remote.path} of {repo} is damaged in {cache.huggingface_cache()}.")
    return found.read_bytes()


def parse_hub_config(content: bytes, what: str) -> dict[str, Any]:
    """A config.json that a hub sent. Raises DataError for what is none."""
    return parse_config(
        content,
        len(content),
        what,
        "Take the model from a source that you trust, or try another model.revision.",
    )
