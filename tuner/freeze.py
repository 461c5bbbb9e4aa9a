"""Plain values → the frozen config tree: every key known, every value of its type, nothing that contradicts.

This is the only judge of a config: shipped YAML, recipes, the command line and a worker's job file all pass through here.
"""

import codecs
import difflib
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tuner.errors import ConfigError
from tuner.schema import Algo, Config, Data, Part
from tuner.stage import leaves

UNTIL = ("fetch", "tokenize", "train", "convert", "merge", "evaluate")


def nearest(word: str, known: Iterable[str]) -> str:
    """A sentence that names what was probably meant, or nothing.

    >>> nearest("trian", ["train", "merge"])
    ' Did you mean train?'
    """
    names = sorted(known)
    tails = [n for n in names if "." in word and n.endswith(f".{word.rsplit('.', 1)[-1]}")]
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.7) or tails or difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else ""


def field_paths() -> dict[str, Any]:
    """Every leaf of the config, by dotted path, with its type."""

    def walk(cls: Any, path: str) -> Iterable[tuple[str, Any]]:
        hints = get_type_hints(cls)
        for f in fields(cls):
            if is_dataclass(hints[f.name]):
                yield from walk(hints[f.name], f"{path}{f.name}.")
            elif _node_of(hints[f.name]) is None:
                yield f"{path}{f.name}", hints[f.name]

    return dict(walk(Config, ""))


def _node_of(hint: Any) -> Any:
    """The class of the nodes in a list of nodes, or None for any other type."""
    return get_args(hint)[0] if get_origin(hint) is tuple and is_dataclass(get_args(hint)[0]) else None


def freeze(values: Mapping[str, Any], *, whole: bool = True) -> Config:
    """The config that `values` describe, a nested mapping in which every field is optional. Raises ConfigError.

    A config that is not `whole` may lack what a run needs, such as the path of `data=local`.
    """
    config: Config = _build(Config, values, "")
    if whole:
        validate(config)
    return config


def thaw(config: Config) -> dict[str, Any]:
    """The nested mapping that freezes to an equal config: JSON and YAML can hold it.

    >>> freeze(thaw(Config(seed=3)), whole=False) == Config(seed=3)
    True
    """
    values: dict[str, Any] = _plain(asdict(config))
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _build(cls: Any, values: Any, path: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path.rstrip('.')} is a group of fields, not a value; it was given {values!r}.")
    hints = get_type_hints(cls)
    if unknown := [key for key in values if key not in hints]:
        raise ConfigError(f"{path}{unknown[0]} is not a field of the config.{nearest(f'{path}{unknown[0]}', field_paths())}")
    built = {}
    for f in fields(cls):
        hint = hints[f.name]
        if is_dataclass(hint):
            built[f.name] = _build(hint, values.get(f.name, {}), f"{path}{f.name}.")
        elif node := _node_of(hint):
            built[f.name] = tuple(_build(node, item, f"{path}{f.name}.{i}.") for i, item in enumerate(values.get(f.name, ())))
        elif f.name in values:
            built[f.name] = coerce(values[f.name], hint, f"{path}{f.name}")
        elif f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError(f"{path}{f.name} is missing and has no default.")
    return cls(**built)


def coerce(value: Any, hint: Any, path: str) -> Any:
    """`value` as the type `hint`; a number written as text counts, a number for a text does only where nothing is lost."""
    result = _as(value, hint)
    if result is not _NO:
        return result
    options = _options(hint)
    words = [str(word) for option in options if get_origin(option) is Literal for word in get_args(option)]
    raise ConfigError(f"{path} is {value!r}, but must be {' or '.join(_describe(o) for o in options)}.{nearest(str(value), words) if words else ''}")


_NO: Any = object()


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _as(value: Any, hint: Any) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        # of 1 and 1.0, one is a count and the other a share
        options = [float, *args] if {int, float} <= {*args} and not _whole(value) else args
        return next((result for option in options if (result := _as(value, option)) is not _NO), _NO)
    if hint is NoneType:
        return None if value is None else _NO
    if origin is Literal:
        return value if value in args else _NO
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        items = [_as(item, kind) for item, kind in zip(value, kinds, strict=False)]
        return tuple(items) if len(value) == len(kinds) and _NO not in items else _NO
    if origin is dict and isinstance(value, Mapping):
        pairs = {_as(key, args[0]): _as(item, args[1]) for key, item in value.items()}
        return pairs if _NO not in pairs and _NO not in pairs.values() else _NO
    if hint is bool:
        return value if isinstance(value, bool) else _NO
    if hint is str:
        return value if isinstance(value, str) else str(value) if isinstance(value, int) and not isinstance(value, bool) else _NO
    if hint in (int, float):
        return _number(value, hint)
    return _NO


def _whole(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value) is not None)


def _number(value: Any, hint: type) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return _NO
    try:
        number = float(value)  # PyYAML reads 1e-4 as text
    except ValueError:
        return _NO
    if not math.isfinite(number):
        return _NO
    if hint is float:
        return number
    return int(value) if isinstance(value, int) else int(number) if number.is_integer() else _NO


def _describe(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(str(word) for word in args)
    if origin is tuple:
        return f"a list such as [{', '.join('1.0' if a is float else 'a' for a in args if a is not Ellipsis)}]"
    names = {NoneType: "null", bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return "a mapping such as {key: text}" if origin is dict else names[hint]


def validate(config: Config) -> None:
    """Raise ConfigError for values that are out of range, that contradict each other, or that hold a secret."""
    model, algo, data, machine = config.model, config.algo, config.data, config.machine
    at_least_one = {
        "algo.r": algo.r,
        "algo.steps": algo.steps,
        "algo.stop_step": algo.stop_step,
        "algo.schedule_steps": algo.schedule_steps,
        "algo.batch_tokens": algo.batch_tokens,
        "data.length": data.length,
        "data.min_trained_tokens": data.min_trained_tokens,
        "machine.threads": machine.threads,
        "machine.workers": machine.workers,
        "machine.micro_batch": machine.micro_batch,
        "machine.save_every": machine.save_every,
        "machine.keep": machine.keep,
        "machine.gpus": machine.gpus,
        "convert.step": config.convert.step,
        "eval.max_new_tokens": config.eval.max_new_tokens,
        "generation.max_new_tokens": config.generation.max_new_tokens,
    }
    more_than_zero = {
        "algo.alpha": algo.alpha,
        "algo.epochs": algo.epochs,
        "algo.optim.lr": algo.optim.lr,
        "algo.optim.eps": algo.optim.eps,
        "algo.clip": algo.clip,
        "generation.top_p": config.generation.top_p,
    }
    shares = {"algo.dropout": algo.dropout, "data.held_out": data.held_out, "algo.optim.betas": max(algo.optim.betas), "algo.warmup": algo.warmup}
    problems = [f"{path} is {n}, but must be at least 1." for path, n in at_least_one.items() if isinstance(n, int) and n < 1]
    problems += [f"{path} is {x}, but must be more than 0." for path, x in more_than_zero.items() if x is not None and x <= 0]
    if data.length == 1:
        problems.append("data.length is 1, but a pack needs at least 2 tokens: one to read and one to predict.")
    problems += [f"{path} is {x}, but must be at least 0 and less than 1." for path, x in shares.items() if not 0 <= x < 1]
    if model.source == "run" and not model.run:
        problems.append("model.run is not set: model=run needs model.run=RUN, an earlier run's name, path, digest, or `last`.")
    if algo.init == "continue" and (model.source != "run" or algo.adapter != "lora"):
        problems.append("algo.init=continue goes on with the adapter of an earlier run: it needs model=run model.run=RUN and algo=lora.")
    problems += _ends(algo)
    if isinstance(machine.gpus, tuple) and (not machine.gpus or min(machine.gpus) < 0 or len(set(machine.gpus)) < len(machine.gpus)):
        problems.append(f"machine.gpus is {list(machine.gpus)}, but must be different numbers of GPUs, such as [0,1], or how many.")
    if config.generation.temperature < 0 or config.generation.top_p > 1:
        problems.append("generation.temperature must be at least 0, and generation.top_p at most 1.")
    problems += _data(data)
    paths: list[tuple[str, Any, str, str]] = [("model", model, "a directory or a GGUF file", "")]
    if not data.parts:
        paths.append(("data", data, "a file or a list of files", " data=mix needs data.of={SOURCE: share, …}."))
    for group, part, kinds, more in paths:
        if part.source == "path" and not part.path:
            problems.append(f"{group}.path is not set: {group}=local needs {group}.path={'DIR' if group == 'model' else 'FILE'}, {kinds}.{more}")
        inside = "file" if group == "model" else "path"
        if part.source == "package" and not (part.package and getattr(part, inside)):
            problems.append(f"{group}.source is package: it needs {group}.package, the name to import, and {group}.{inside}, what lies inside it.")
    if isinstance(algo.batch_tokens, int) and algo.batch_tokens < data.length:
        problems.append(
            f"algo.batch_tokens is {algo.batch_tokens}, less than one pack of data.length={data.length} tokens: raise the one or lower the other."
        )
    if model.context and data.length > model.context:
        problems.append(f"data.length is {data.length}, but the model was made for {model.context} tokens (model.context).")
    if algo.adapter == "none" and algo.dropout:
        problems.append("algo.dropout acts on adapters, but algo.adapter is none: full fine-tuning has no such dropout.")
    for path, word in (("until", config.until), ("redo", config.redo)):
        if word is not None and word not in UNTIL:
            problems.append(f"{path} is {word!r}, but must be one of {', '.join(UNTIL)}.{nearest(word, UNTIL)}")
    if config.until in UNTIL and config.redo in UNTIL and UNTIL.index(config.redo) > UNTIL.index(config.until):
        problems.append(f"redo={config.redo} comes after until={config.until}: nothing would be built again.")
    if config.name is not None and not re.fullmatch(r"[^/\\\0]*[^/\\\0.\s][^/\\\0]*", config.name):
        problems.append(f"name is {config.name!r}, but it names a directory: no slashes, and not only dots or spaces.")
    problems += _secrets(config)
    if problems:
        raise ConfigError(" ".join(problems))


def _data(data: Data) -> list[str]:
    """Where rows come from, and what is done with them."""
    problems = []
    if data.of and data.source == "path" and not data.path and not data.parts:
        problems.append("data.of is set, but its sources were not looked up: a mixture is composed on the command line or in a recipe.")
    own = {f.name for f in fields(Part)} - {"label", "system"}
    if data.parts and (set_ := [name for name in sorted(own) if getattr(data, name) != getattr(Part(), name)]):
        problems.append(
            f"data.{set_[0]} describes one source, and data.of names {len(data.parts)}: write it into the YAML of that source (in a directory of your own, -cd DIR)."
        )
    for where, part in [(f"data.of.{part.label}", part) for part in data.parts] or [("data", data)]:
        if part.source in ("hub", "modelscope") and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", part.repo or ""):
            problems.append(f"{where}: repo is {part.repo!r}, but source={part.source} needs the name of a data set, such as data.repo=org/name.")
        if part.encoding != "auto" and not _codec(part.encoding):
            problems.append(
                f"{where}: encoding is {part.encoding!r}, which is no text encoding of Python's, such as utf-8, gb18030, latin-1 or utf-16."
            )
        if part.take is not None and part.take <= 0:
            problems.append(f"{where}: take is {part.take}, but must be a number of rows from 1, or a share above 0.0.")
        if unknown := [role for role in part.roles if role not in ("system", "user", "assistant", "tool")]:
            problems.append(
                f"{where}: roles.{unknown[0]} names no role; there are system, user, assistant and tool.{nearest(unknown[0], ['system', 'user', 'assistant', 'tool'])}"
            )
    if isinstance(data.max_dropped, float) and not 0 <= data.max_dropped <= 1:
        problems.append(f"data.max_dropped is {data.max_dropped}, but must be a number of rows, or a share from 0.0 to 1.0.")
    return problems


def _codec(name: str) -> bool:
    try:
        return codecs.lookup(name)._is_text_encoding
    except LookupError:
        return False


def _ends(algo: Algo) -> list[str]:
    """Where the training, its stop and the learning rate's course end, as far as that is known without the data."""
    problems = []
    if algo.steps and algo.stop_step and algo.stop_step > algo.steps:
        problems.append(f"algo.stop_step is {algo.stop_step}, but algo.steps ends the training at {algo.steps}: raise that to train longer.")
    end = algo.stop_step or algo.steps
    if end and algo.schedule_steps and algo.schedule_steps < end and algo.schedule != "constant":
        problems.append(
            f"algo.schedule_steps is {algo.schedule_steps}, but the training ends at step {end}: the learning rate would be 0 from there. Raise it, or set algo.schedule=constant."
        )
    return problems


def _secrets(config: Config) -> list[str]:
    """A config is written into every run's directory, so nothing in it may be a credential."""
    secrets = {
        value
        for name, value in os.environ.items()
        if re.search(r"TOKEN|SECRET|PASSWORD|API_?KEY", name, re.IGNORECASE) and len(value) >= 8 and not value.startswith("/")
    }
    found = []
    for path, _, value in leaves(config):
        text = repr(value)
        if re.search(r"\w://[^/@\s'\"]+@", text):
            found.append(f"{path} holds an address with a user name or password in it; credentials come from the environment, never from the config.")
        elif any(secret in text for secret in secrets):
            found.append(f"{path} holds the value of a secret from the environment; the config is written to disk and may not.")
    return found
