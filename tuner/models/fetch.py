"""Models of hubs: looked up once, brought whole and right, from this machine's own caches where they have
them; and what a config.json may claim.

Standard library only at the top: a plan asks for what it costs.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.data.chat import choice
from tuner.errors import DataError
from tuner.hub import cache as hub_cache
from tuner.hub import lockfile
from tuner.hub.lockfile import Pin
from tuner.models.checkpoint import quantised, unquantised
from tuner.models.checkpoint.files import INDEX, parse_config
from tuner.models.checkpoint.repository_files import choose_files
from tuner.models.layouts import detection

if TYPE_CHECKING:
    from tuner.hub.listing import Listing, Remote

SIZES = {
    **dict.fromkeys(
        (
            "hidden_size",
            "intermediate_size",
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "ffn_hidden_size",
        ),
        1 << 20,
    ),
    **dict.fromkeys(
        ("d_model", "n_embd", "n_inner", "d_ff", "head_dim", "kv_channels", "q_lora_rank", "kv_lora_rank"),
        1 << 20,
    ),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 1 << 20),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), 1 << 12),
    **dict.fromkeys(
        ("num_attention_heads", "num_key_value_heads", "n_head", "multi_query_group_num"), 1 << 14
    ),
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "n_shared_experts", "num_experts_per_tok"),
        1 << 14,
    ),
    **dict.fromkeys(("vocab_size", "padded_vocab_size", "type_vocab_size"), 1 << 24),
    **dict.fromkeys(
        ("max_position_embeddings", "seq_length", "n_positions", "model_max_length", "sliding_window"),
        1 << 31,
    ),
}
"""keys of a config.json that decide how much is allocated, and the largest value of each that is believed:
some 20 times what any model has
"""
MAY_BE_NONE = frozenset(
    (
        "num_experts",
        "num_local_experts",
        "n_routed_experts",
        "n_shared_experts",
        "num_experts_per_tok",
        "type_vocab_size",
        "sliding_window",
        "q_lora_rank",
    )
)
"""sizes that are 0 where a model has no such part"""
MOST_WEIGHTS = 10**13
"""numbers in the linear layers of the largest model that is believed"""
DEEPEST = 16
"""how far the objects of a config.json are nested in each other, at most"""


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
    cached = hub_cache.resolve(repo, revision) if source == "hub" and hub.offline() else None
    listing: Listing = cached or hub.resolve(repo, revision, repo_type="model")

    @cache
    def read(remote: "Remote") -> bytes:
        return _cached(repo, remote) if cached else download.content(remote, hub.headers())

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
    except http.Refused as error:
        raise hub.refusal(repo, error, repo_type="model") from error
    except DataError as error:
        if cached:
            where = hub_cache.huggingface()
            raise DataError(
                f"{error} This is what {where} has of it, and HF_HUB_OFFLINE forbids to ask the hub for the "
                "rest."
            ) from error
        raise
    pin = lockfile.add(
        lock,
        name,
        replace(listing.pin(chosen, found), quantised=method, template=template.option if template else None),
    )
    say(lockfile.told(str(lock), name, pin))


def _template(files: "Mapping[str, Remote]", read: "Callable[[Remote], bytes]") -> str | None:
    """The tokenizer's own chat template; None where its files tell none, or are too large to be asked for
    now.
    """
    if "chat_template.jinja" in files:
        return read(files["chat_template.jinja"]).decode(errors="replace")
    try:
        settings = json.loads(read(files["tokenizer_config.json"]))
    except (KeyError, ValueError, RecursionError):
        return None
    return choice.template_in_settings(settings)


def _held(
    source: str,
    repo: str,
    config: Mapping[str, Any],
    files: "Mapping[str, Remote]",
    index: bytes | None,
    read: "Callable[[Remote], bytes]",
) -> str | None:
    """The method by which a repository's weights are quantised, if that is undone. Raises ConfigError for
    others, with the model that the card names.
    """
    from tuner.hub import http

    found = quantised.of_repository(config, files, index)
    if found is None or found.undone:
        return found.method if found else None
    card = None
    with suppress(http.Refused, DataError):  # it is looked at for a better message only
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
    wanted: dict[str, Remote] = hub.remotes(repo, pin, repo_type="model")
    download.begin(repo, pin.commit, wanted, source, out, say)
    taken = hub_cache.take(source, repo, pin, out, say)
    rest = {path: remote for path, remote in wanted.items() if path not in taken}
    if source == "hub" and not all((out / path).is_file() for path in rest):
        hub.refuse_offline(repo, "model")
    try:
        download.bring(rest, out, hub.headers(), say)
    except http.Refused as error:
        raise hub.refusal(repo, error, repo_type="model", commit=pin.commit) from error


def download_cost(source: str, repo: str, pin: Pin, partial: Path | None = None) -> tuple[int, int]:
    """Bytes still to download, and bytes that are here already: in the hubs' caches, or in `partial`, the
    directory that `download_model` is given.

    No file is read and nobody is asked. A file whose size the hub does not tell counts as none.
    """
    from tuner.hub import download
    from tuner.hub.listing import located

    missing = here = 0
    for path, pinned in pin.files.items():
        size, have = pinned.size or 0, 0
        if partial is not None:
            part = partial / download.PARTS / download.part_name(located(path, pinned, ""))
            have = max((file.stat().st_size for file in (partial / path, part) if file.is_file()), default=0)
        if have < size and hub_cache.find(source, repo, path, pinned):
            have = size
        here += min(have, size)
        missing += size - min(have, size)
    return missing, here


def _hub(source: str) -> Any:
    from tuner.hub import huggingface as hub
    from tuner.hub import modelscope

    return hub if source == "hub" else modelscope


def _cached(repo: str, remote: "Remote") -> bytes:
    """A small file of Hugging Face's cache, whose digest is right. Raises DataError."""
    from tuner.hub.download import SMALL
    from tuner.hub.listing import is_right
    from tuner.hub.lockfile import Pinned

    found = hub_cache.find(
        "hub", repo, remote.path, Pinned(size=remote.size, sha256=remote.sha256, blob=remote.blob)
    )
    if found is None or found.stat().st_size > SMALL or not is_right(found, remote):
        raise DataError(f"{remote.path} of {repo} is damaged in {hub_cache.huggingface()}.")
    return found.read_bytes()


def parse_hub_config(content: bytes, what: str) -> dict[str, Any]:
    """A config.json that a hub sent. Raises DataError for what is none."""
    return parse_config(
        content,
        len(content),
        what,
        "Take the model from a source that you trust, or try another model.revision.",
    )


def check_config(config: Mapping[str, Any]) -> None:
    """Hold a config.json to sizes that a model can have, before anything is allocated by them. Raises
    DataError.
    """
    if not isinstance(config.get("model_type", ""), str):
        raise _absurd("model_type", config["model_type"], "a word")
    architectures = config.get("architectures")
    if architectures is not None and not (
        isinstance(architectures, list) and all(isinstance(name, str) for name in architectures)
    ):
        raise _absurd("architectures", architectures, "a list of names")
    _check(config, "", DEEPEST)


def _check(node: Any, path: str, left: int) -> None:
    if left == 0:
        raise DataError(
            f"config.json is nested more than {DEEPEST} levels deep, which no model's config is: refused. "
            "Get the model elsewhere."
        )
    if isinstance(node, list):
        for item in node:
            _check(item, path, left - 1)
    if not isinstance(node, Mapping):
        return
    for key, value in node.items():
        where = f"{path}.{key}" if path else str(key)
        if (most := SIZES.get(key)) is not None and value is not None:
            for number in value if isinstance(value, list) else [value]:
                if type(number) is not int or not (0 if key in MAY_BE_NONE else 1) <= number <= most:
                    raise _absurd(where, number, f"a whole number up to {most:,}")
        else:
            _check(value, where, left - 1)
    width, layers = (
        _first(node, "hidden_size", "n_embd", "d_model"),
        _first(node, "num_hidden_layers", "num_layers", "n_layer"),
    )
    inner = _first(node, "moe_intermediate_size", "intermediate_size", "ffn_hidden_size") * _first(
        node, "num_experts", "n_routed_experts"
    )
    weights = layers * width * (width + inner) + width * _first(node, "vocab_size", "padded_vocab_size")
    if weights > MOST_WEIGHTS:
        raise _absurd(path or "by its sizes", f"{weights:,} weights", f"at most {MOST_WEIGHTS:,}")


def _first(node: Mapping[str, Any], *keys: str) -> int:
    """The first of these sizes that a config has, 1 where it has none."""
    return next((value for key in keys if type(value := node.get(key)) is int and value > 0), 1)


def _absurd(where: str, value: Any, expected: str) -> DataError:
    return DataError(
        f"config.json says {where} {str(value)[:60]}, where {expected} was expected: no such model is "
        "loaded, and nothing was allocated. The file is damaged or made to do harm: get the model from a "
        "source that you trust."
    )
