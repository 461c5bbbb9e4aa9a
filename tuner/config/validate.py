"""What can be known to be wrong with a config as a whole: values out of range, or that contradict each other,
and secrets.

Each problem is a sentence that says what was found and what mends it; all are told at once.
"""

import codecs
import json
import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from tuner.config import deepspeed
from tuner.config.algo_checks import algo_problems
from tuner.config.schema import HUBS, Algo, Chat, Config, Data, DataSource, Machine, Model
from tuner.config.view import leaves
from tuner.errors import ConfigError, did_you_mean

SECRET = re.compile(r"TOKEN|SECRET|PASS|CREDENTIAL|API_?KEY|(^|_)KEYS?$", re.IGNORECASE)
"""what the environment calls a secret; where its value is a path that is there, that is none"""
PATIENCE = 1e9
"""seconds; a clock's numbers end somewhere above"""


def validate(config: Config) -> None:
    """Raise ConfigError for values that are out of range, that contradict each other, or that hold a
    secret.
    """
    model, algo, data, machine = config.model, config.algo, config.data, config.machine
    problems = [
        f"{path} is {number}, but must be {declared.limits}."
        for path, declared, value in leaves(config)
        if (number := declared.limits.outside(value)) is not None
    ]
    problems += [
        f"{path} is {number}, which is more than 64 bits hold."
        for path, _, value in leaves(config)
        for number in (value if isinstance(value, tuple) else (value,))
        if isinstance(number, int) and abs(number) >= 1 << 63
    ]
    problems += [
        f"{path} is {text!r}, which is not all letters: the bytes of a name that is no UTF-8, maybe. Rename "
        "the file."
        for path, _, value in leaves(config)
        for text in (value if isinstance(value, tuple) else (value,))
        if isinstance(text, str) and not _is_text(text)
    ]
    if data.length == 1:
        problems.append(
            "data.length is 1, but a pack needs at least 2 tokens: one to read and one to predict."
        )
    problems += _model(model)
    chosen = {"model", "model/chat"} & config.choices.keys()
    if chosen == {"model"} and model.chat == Chat() and model.source != "run":
        problems.append(
            f"model={config.choices['model']} chooses no chat template: begin its YAML with `defaults: "
            "[{chat: auto}, _self_]`, or name one in place of auto."
        )
    problems += algo_problems(algo)
    problems += _machine(machine, algo)
    if algo.init == "continue" and (model.source != "run" or not algo.uses_adapter):
        problems.append(
            "algo.init=continue goes on with the adapter of an earlier run: it needs model=run model.run=RUN "
            "and algo=lora."
        )
    if config.generation.temperature < 0 or config.generation.top_p > 1:
        problems.append("generation.temperature must be at least 0, and generation.top_p at most 1.")
    problems += _data(data)
    problems += _sources(model, data)
    if isinstance(algo.batch_tokens, int) and algo.batch_tokens < data.length:
        problems.append(
            f"algo.batch_tokens is {algo.batch_tokens}, less than one pack of data.length={data.length} "
            "tokens: raise the one or lower the other."
        )
    if model.context and data.length > model.context:
        problems.append(
            f"data.length is {data.length}, but the model was made for {model.context} tokens "
            "(model.context)."
        )
    if config.name is not None and not re.fullmatch(r"[^/\\\0]*[^/\\\0.\s][^/\\\0]*", config.name):
        problems.append(
            f"name is {config.name!r}, but it names a directory: no slashes, and not only dots or spaces."
        )
    problems += _secrets(config)
    if problems:
        raise ConfigError(" ".join(problems))


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _machine(machine: Machine, algo: Algo) -> list[str]:
    """Whether it can compute what `algo` says, and in so many processes."""
    problems = []
    if machine.timeout > PATIENCE:
        problems.append(f"machine.timeout is {machine.timeout:g}, but must be at most {PATIENCE:g} seconds.")
    if (unpaged := algo.optim.kind.unpaged) and machine.device == "cpu":
        problems.append(
            f"algo.optim.name={algo.optim.name} pages a GPU's memory, but machine.device is cpu: take "
            f"{unpaged}."
        )
    if algo.neftune and machine.sequence_parallel > 1:
        problems.append(
            "algo.neftune needs whole documents in one process: leave it out, or set "
            "machine.sequence_parallel=1."
        )
    if machine.zero != "auto" and not 0 <= machine.zero <= 3:
        problems.append(
            f"machine.zero is {machine.zero}, but ZeRO has the stages 1, 2 and 3; 0 shards nothing."
        )
    elif why := deepspeed.why_refused(
        deepspeed.combination_of(machine, algo, processes=deepspeed.process_count(machine))
    ):
        problems.append(why)
    if isinstance(machine.gpus, int) and machine.gpus < 1:
        problems.append(f"machine.gpus is {machine.gpus}, but must be at least 1.")
    if isinstance(machine.gpus, tuple) and (
        not machine.gpus or min(machine.gpus) < 0 or len(set(machine.gpus)) < len(machine.gpus)
    ):
        problems.append(
            f"machine.gpus is {list(machine.gpus)}, but must be a list of different GPU numbers, such as "
            "[0,1], or how many GPUs to use."
        )
    return problems


def _sources(model: Model, data: Data) -> list[str]:
    """Whether a model or data on this machine has its path, or its package and file."""
    problems = []
    paths: list[tuple[str, Any, str, str]] = [("model", model, "a directory or a GGUF file", "")]
    if not data.parts:
        paths.append(
            ("data", data, "a file or a list of files", " data=mix needs data.of={SOURCE: share, …}.")
        )
    for group, part, kinds, more in paths:
        if part.source == "path" and not part.path:
            problems.append(
                f"{group}.path is not set: {group}=local needs "
                f"{group}.path={'DIR' if group == 'model' else 'FILE'}, {kinds}.{more}"
            )
        inside = "file" if group == "model" else "path"
        if part.source == "package" and not (part.package and getattr(part, inside)):
            problems.append(
                f"{group}.source is package: it needs {group}.package, the name to import, and "
                f"{group}.{inside}, what lies inside it."
            )
    return problems


def _model(model: Model) -> list[str]:
    """Where it comes from, and what its vocabulary gets."""
    problems = []
    if model.source == "run" and not model.run:
        problems.append(
            "model.run is not set: model=run needs model.run=RUN, an earlier run's name, path, digest, or "
            "`last`."
        )
    if model.source in HUBS:
        repo = model.modelscope if model.source == "modelscope" and model.modelscope else model.repo
        if not repo:
            problems.append(
                "model.repo is not set: model=hub needs model.repo=org/name, what the hub calls the model."
            )
        elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo, re.ASCII):
            problems.append(
                f"model.repo is {repo!r}, which is not the name of a repository, such as org/name. For a "
                "directory write model=local model.path=DIR."
            )
    if model.chat.auto and (
        said := [
            f.name
            for f in fields(Chat)
            if f.name not in ("auto", "default_system")
            and getattr(model.chat, f.name) != getattr(Chat(), f.name)
        ]
    ):
        problems.append(
            f"model.chat.{said[0]} is set, but model/chat=auto takes the template that goes with the "
            "tokenizer as it is: name the template to change, such as model/chat=chatml."
        )
    if twice := sorted({token for token in model.new_tokens if model.new_tokens.count(token) > 1}):
        problems.append(f"model.new_tokens names {twice[0]!r} twice.")
    if any(not token.strip() for token in model.new_tokens):
        problems.append("model.new_tokens holds a token that is empty or only white space.")
    return problems


def _data(data: Data) -> list[str]:
    """Where rows come from, and what is done with them."""
    problems = []
    if data.of and data.source == "path" and not data.path and not data.parts:
        problems.append(
            "data.of is set, but its sources were not looked up: a mixture is composed on the command line "
            "or in a recipe."
        )
    own = {f.name for f in fields(DataSource)} - {"label", "system", "leave", "unread"}
    if data.parts and (
        set_ := [name for name in sorted(own) if getattr(data, name) != getattr(DataSource(), name)]
    ):
        problems.append(
            f"data.{set_[0]} describes one source, and data.of names {len(data.parts)}: write it into the "
            "YAML of that source (in a directory of your own, -cd DIR)."
        )
    for where, part in [(f"data.of.{part.label}", part) for part in data.parts] or [("data", data)]:
        if part.source in HUBS and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", part.repo or ""):
            problems.append(
                f"{where}: repo is {part.repo!r}, but source={part.source} needs the name of a data set, "
                "such as data.repo=org/name."
            )
        if part.encoding != "auto" and not _codec(part.encoding):
            problems.append(
                f"{where}: encoding is {part.encoding!r}, which is not a text encoding that Python knows, "
                "such as utf-8, gb18030, latin-1 or utf-16."
            )
        if part.take is not None and part.take <= 0:
            problems.append(
                f"{where}: take is {part.take}, but must be a number of rows from 1, or a share above 0.0."
            )
        if unknown := [role for role in part.roles if role not in ("system", "user", "assistant", "tool")]:
            problems.append(
                f"{where}: roles.{unknown[0]} names no role; there are system, user, assistant and "
                f"tool.{did_you_mean(unknown[0], ['system', 'user', 'assistant', 'tool'])}"
            )
    if isinstance(data.max_dropped, float) and not 0 <= data.max_dropped <= 1:
        problems.append(
            f"data.max_dropped is {data.max_dropped}, but must be a number of rows, or a share from 0.0 to "
            "1.0."
        )
    return problems


def _codec(name: str) -> bool:
    try:
        return codecs.lookup(name)._is_text_encoding
    except LookupError:
        return False


def _secrets(config: Config) -> list[str]:
    """A config is written into every run's directory, so nothing in it may be a credential."""
    secrets = {
        value
        for name, value in os.environ.items()
        if SECRET.search(name) and len(value) >= 8 and not (value.startswith("/") and Path(value).exists())
    }
    found = []
    for path, _, value in leaves(config):
        text = json.dumps(value, ensure_ascii=False, default=str)
        if re.search(r"\w://[^/@\s'\"]+@", text):
            found.append(
                f"{path} holds an address with a user name or password in it; credentials come from the "
                "environment, never from the config."
            )
        elif any(json.dumps(secret, ensure_ascii=False)[1:-1] in text for secret in secrets):
            found.append(
                f"{path} holds the value of a secret from the environment; the config is written to disk and "
                "may not."
            )
    return found
