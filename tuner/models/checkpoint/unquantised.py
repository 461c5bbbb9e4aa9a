"""What a quantised checkpoint was made from, by its card, its config.json or its name; and the words of a
refusal that names it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tuner.errors import ConfigError, DataError
from tuner.models.checkpoint.quantised import WORDS, Quantisation

NAMES = (
    (r"(?:unsloth[-_])?bnb[-_]?(?:4|8)[-_]?bits?|nf4|int8[-_]bnb", "bitsandbytes"),
    (r"awq(?:[-_](?:int)?4[-_]?(?:bits?)?|[-_]marlin)?", "awq"),
    (r"(?:autoround[-_])?gptq(?:[-_](?:int)?[2348][-_]?(?:bits?)?|[-_]marlin)?", "gptq"),
    (r"nvfp4(?:a16)?", "nvfp4"),
    (r"mxfp4", "mxfp4"),
    (r"fp8(?:[-_](?:dynamic|static|block|kv|e4m3))*", "fp8"),
    (r"quantized[.]w\d+a\d+|w(?:4|8)a(?:16|8)(?:[-_]g\d+)?", "compressed-tensors"),
    (r"hqq(?:[-_]\w+)?", "hqq"),
    (r"aqlm(?:[-_]\w+)*", "aqlm"),
    (r"eetq", "eetq"),
    (r"exl2|\d[.]\d+bpw[-_]h\d[-_]exl2", "exl2"),
    (r"exl3", "exl3"),
    (r"u?int[48]|[34568][-_]?bits?", "4 or 8 bits"),
)
"""how the names of repositories end, by method: after a `-` or `_`, and whatever the case"""
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
LARGEST_CARD = 1 << 20
"""bytes of a README.md that is looked at"""


def by_name(repository: str) -> Quantisation | None:
    """What the end of a repository's name tells: a guess, for as long as nothing else is known.

    >>> (by_name("unsloth/Llama-3.2-1B-Instruct-bnb-4bit").words, by_name("Qwen/Qwen3-0.6B-FP8").method,
    ...  by_name("Qwen/Qwen3-0.6B"))
    ('bitsandbytes', 'fp8', None)
    """
    cut = _suffix(repository)
    if cut is None:
        return None
    return Quantisation(
        method=cut[1], words=WORDS.get(cut[1], cut[1]), said="its name (the hub was not asked)"
    )


def _suffix(repository: str) -> tuple[str, str] | None:
    """A name without the end that tells of a quantisation, and the method."""
    best: tuple[str, str] | None = None
    for pattern, method in NAMES:
        if (found := re.search(rf"[-_.](?:{pattern})$", repository, re.IGNORECASE)) and (
            best is None or found.start() < len(best[0])
        ):
            best = (repository[: found.start()], method)
    return best if best and best[0].rpartition("/")[2] else None


def plain_name(name: str) -> str:
    """A repository's name without all that tells of a quantisation.

    >>> (plain_name("org/X-7B-Chat-GPTQ-Int4"), plain_name("unsloth/X-unsloth-bnb-4bit"),
    ...  plain_name("org/X-quantized.w8a8"))
    ('org/X-7B-Chat', 'unsloth/X', 'org/X')
    """
    while (cut := _suffix(name)) is not None:
        name = cut[0]
    return name


def base_of(card: str | None) -> str | None:
    """The model that a card names as its base, in its YAML (https://huggingface.co/docs/hub/model-cards)."""
    head = re.match(r"\s*---\s*\n(.*?)\n---", card or "", re.DOTALL)
    if head is None:
        return None
    try:
        said = yaml.safe_load(head[1])
    except (yaml.YAMLError, RecursionError, ValueError):
        return None
    base = said.get("base_model") if isinstance(said, Mapping) else None
    first = base[0] if isinstance(base, list) and base else base
    return first if isinstance(first, str) and REPOSITORY.fullmatch(first) else None


def card_of(directory: Path) -> str | None:
    """The README.md of a model directory."""
    path = directory / "README.md"
    return (
        path.read_text(encoding="utf-8", errors="replace")
        if path.is_file() and path.stat().st_size <= LARGEST_CARD
        else None
    )


def refusal(
    found: Quantisation,
    what: str,
    *,
    name: str | None,
    config: Mapping[str, Any],
    card: str | None,
    more: str = "",
) -> ConfigError:
    """Why a checkpoint is not trained, and the line that takes the unquantised one.

    what    the checkpoint in words; name: that of its repository or directory, for a guess
    more    words that belong into that line, such as model.source=modelscope
    """
    own, path = base_of(card), config.get("_name_or_path")
    said = [
        (own, "as its card says"),
        (path if isinstance(path, str) and REPOSITORY.fullmatch(path) else None, "as config.json says"),
    ]
    base, source = next(
        ((plain_name(base), source) for base, source in said if base and plain_name(base) != name), (None, "")
    )
    if base is None and name and plain_name(name) != name:
        guess = plain_name(name)
        base = guess if REPOSITORY.fullmatch(guess) else f"ORG/{guess.rpartition('/')[2]}"
        source = "a guess from its name"
    which = f"{base} ({source})" if base else "the one that its publisher made it from"
    return ConfigError(
        f"{what} is quantised already: {found.words}, as {found.said} tells. Such weights are not trained "
        f"here, since what is trained could not be merged into them. Take the unquantised model, {which}; "
        "algo=qlora then holds it in 4 bits while it trains. In place of the words for model and algo: "
        f"model=hub model.repo={base or 'ORG/NAME'}{more} algo=qlora"
    )


def stale_lock(found: Quantisation, what: str, lock: str | None) -> DataError:
    """For a checkpoint of which it was not known before the download that it has to be dequantised."""
    mend = f"Remove its entry from {lock}, so that the next run asks the hub again." if lock else ""
    return DataError(
        f"{what} is quantised, {found.words}, as {found.said} tells, which was not known before its weights "
        f"were here. {mend}".rstrip()
    )
