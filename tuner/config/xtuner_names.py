"""The name of one of XTuner's configs → the words of the equal recipe, and what differs.

Such a name is a sentence, MODEL_METHOD_DATA and suffixes: `internlm2_chat_7b_qlora_oasst1_512_e3`. So the
names are parsed, not listed, and one that XTuner never had, of a model and a data set of the catalogue, is
understood as well. What the parts stand for, and where XTuner departs from its rule, is in conf/xtuner.yaml.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any

from tuner.config.compose import conf_dir
from tuner.config.yaml_file import load_yaml
from tuner.errors import ConfigError

SUFFIX = re.compile(
    r"e(?P<epochs>\d+)|(?P<thousands>\d+)k|(?P<millions>\d+)M|(?P<length>512)|sp(?P<shared>\d+)"
    r"|gpu(?P<gpus>\d+)|hf|openmind|varlen"
)
STAND_IN = "your_data.jsonl"
"""the file of a recipe whose data are the user's own"""
NODE = 8
"""GPUs of a machine, where XTuner wants more than that"""
ALWAYS = (
    "Packs: no conversation sees another one of its pack; XTuner's do, unless it sets use_varlen_attn.",
    "Precision: bf16, where XTuner computes in fp16.",
    "Chat template: the model's own (model/chat); XTuner has most base models read <|User|>:… <|Bot|>:….",
    "Held out: 5 % of the rows, at most 1,000, for the loss; data.held_out=0 trains on all, as XTuner.",
)
"""how every equal recipe differs"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Equal:
    """A recipe that equals one of XTuner's configs."""

    words: list[str]
    """of the command line"""
    differs: list[str]
    """what does not, a sentence or two each"""
    own_data: bool
    """whether it needs a file of the user's own, in whose place STAND_IN stands"""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Name:
    """A name, taken apart."""

    model: str
    method: str
    data: str
    suffixes: dict[str, int]


def bare_name(word: str) -> str:
    """The name that a path, a file of Python or XTuner's copy of it has.

    >>> bare_name("./internlm2_7b_qlora_sql_e3_copy.py")
    'internlm2_7b_qlora_sql_e3'
    """
    return word.rpartition("/")[2].removesuffix(".py").removesuffix("_copy")


def equal_recipe(name: str, options: Mapping[str, Collection[str]]) -> Equal:
    """The recipe that equals XTuner's config of this name; `options` are those of each group. Raises
    ConfigError, with the reason and the nearest that can be had.
    """
    table = _table()
    written = name
    for pattern, replacement in table["written"]:
        written = re.sub(pattern, replacement, written)
    _refuse(name, options)
    parts = _parse(written, options)
    if parts is None:
        raise ConfigError(_unknown(name, written, options))
    batch, gpus, words = 16, _gpus(parts), []
    length, epochs = _length(parts), parts.suffixes.get("epochs", 3)
    data = table["data"].get(parts.data, {"words": f"data={parts.data}"})
    differs = [data["differs"]] if "differs" in data else []
    for setting in table["settings"]:
        if re.search(setting["names"], written):
            batch, gpus = setting.get("batch", batch), setting.get("gpus", gpus)
            length, epochs = setting.get("length", length), setting.get("epochs", epochs)
            words += setting.get("words", "").format(length=length).split()
            differs += [setting["differs"]] if "differs" in setting else []
    own = data.get("own", False)
    return Equal(
        words=[
            *table["models"].get(parts.model, f"model={parts.model}").split(),
            *table["methods"][parts.method].split(),
            *data["words"].split(),
            *([f"data.path={STAND_IN}"] if own else []),
            f"data.length={length}",
            f"algo.epochs={epochs}",
            f"algo.batch_tokens={batch * gpus * length}",
            *_machine(parts),
            *words,
        ],
        differs=[*differs, _step(batch * gpus, length, gpus), *ALWAYS],
        own_data=own,
    )


@cache
def _table() -> Mapping[str, Any]:
    return load_yaml(conf_dir() / "xtuner.yaml")


def _parse(name: str, options: Mapping[str, Collection[str]]) -> _Name | None:
    table = _table()
    model, rest = _first(name, {*table["models"], *options["model"]})
    method, rest = _first(rest, table["methods"])
    data, rest = _first(rest, {*table["data"], *options["data"]})
    found: dict[str, int] = {}
    for suffix in filter(None, rest.split("_")):
        match = SUFFIX.fullmatch(suffix)
        if match is None:
            return None
        found |= {key: int(value) for key, value in match.groupdict().items() if value}
    return _Name(model=model, method=method, data=data, suffixes=found) if model and method and data else None


def _first(name: str, known: Iterable[str]) -> tuple[str, str]:
    """The longest of what is known that a name begins with, and what follows; nothing and the name where
    there is none.
    """
    begins = [part for part in known if name == part or name.startswith(f"{part}_")]
    part = max(begins, key=len, default="")
    return part, name[len(part) :].lstrip("_") if part else name


def _length(parts: _Name) -> int:
    """Tokens of a sequence: of 128k, 131,072."""
    found = parts.suffixes
    return (
        found.get("length")
        or 1024 * found.get("thousands", 0)
        or 1024 * 1024 * found.get("millions", 0)
        or 2048
    )


def _gpus(parts: _Name) -> int:
    """That a name says, or that have to share a sequence."""
    return max(parts.suffixes.get("gpus", 1), parts.suffixes.get("shared", 1))


def _machine(parts: _Name) -> list[str]:
    gpus, shared = _gpus(parts), parts.suffixes.get("shared", 1)
    return [
        *([f"machine.gpus={min(gpus, NODE)}"] if gpus > 1 else []),
        *([f"machine.nodes={gpus // NODE}"] if gpus > NODE else []),
        *([f"machine.sequence_parallel={shared}"] if shared > 1 else []),
    ]


def _step(sequences: int, length: int, gpus: int) -> str:
    on = "one GPU" if gpus == 1 else f"{gpus} GPUs"
    return (
        f"Step: {sequences * length:,} tokens, XTuner's {sequences} × {length:,} on {on}; with more GPUs "
        "XTuner's step grows, and this does not (algo.batch_tokens)."
    )


def _refuse(name: str, options: Mapping[str, Collection[str]]) -> None:
    """Raise ConfigError for a name of XTuner's that can't be had; return for any other."""
    table = _table()
    entry = next((entry for entry in table["refused"] if re.search(entry["names"], name)), None)
    if entry is None:
        return
    text = f"XTuner's {name} can't be had: {entry['why']}"
    if "nearest" in entry:
        kept = {*table["instead"], *table["models"], *options["model"]}
        found = max((part for part in kept if f"_{part}_" in f"_{name}_"), key=len, default="")
        if not found:
            return
        rest = name.partition(f"{found}_")[2]
        method = next((known for known in ("qlora", "lora", "full") if known in rest.split("_")), "full")
        model = table["instead"].get(found, found)
        nearest = entry["nearest"].format(model=model, method=method, rest=rest)
        text += f" Write: python -m tuner copy {nearest}"
    raise ConfigError(text)


def _unknown(name: str, written: str, options: Mapping[str, Collection[str]]) -> str:
    """Why a name was not understood, with the nearest one that is."""
    table = _table()
    methods = sorted(table["methods"], key=len, reverse=True)
    method = re.search(rf"(?<=_)({'|'.join(methods)})(?=_)", written)
    if method is None:
        return (
            f"{name} is neither a file to write, which ends in .yaml, nor the name of a config of XTuner's, "
            f"which is MODEL_METHOD_DATA_e3 with a method of {', '.join(table['methods'])}."
        )
    data, suffixes = _without_suffixes(written[method.end() + 1 :])
    models = get_close_matches(
        written[: method.start() - 1], [*table["models"], *options["model"]], n=1, cutoff=0.4
    )
    sets = get_close_matches(data, [*table["data"], *options["data"]], n=1, cutoff=0.4)
    near = f"{''.join(models)}_{method[0]}_{''.join(sets)}{suffixes}"
    hint = (
        f"Did you mean {near}?"
        if _parse(near, options)
        else "python -m tuner list model and python -m tuner list data show what there is."
    )
    return f"{name} is not understood as the name of a config of XTuner's, MODEL_METHOD_DATA_e3. {hint}"


def _without_suffixes(name: str) -> tuple[str, str]:
    """What names the data, and the suffixes behind it.

    >>> _without_suffixes("oast1_512_e3")
    ('oast1', '_512_e3')
    """
    parts = name.split("_")
    while len(parts) > 1 and SUFFIX.fullmatch(parts[-1]):
        parts.pop()
    data = "_".join(parts)
    return data, name[len(data) :]
