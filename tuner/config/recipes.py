"""Recipes: a person's own YAML of `defaults:` plus what differs, and `copy`, which writes one.

A recipe is read as words of the command line, so it can do what the line can and nothing more.
"""

import ast
import inspect
import shlex
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from tuner.config.build import dump_config, flatten
from tuner.config.compose import compose, refuse_hydra_keys
from tuner.config.overrides import GROUPS, Override, quote
from tuner.config.schema import Config
from tuner.config.yaml_file import load_yaml
from tuner.errors import ConfigError, did_you_mean

EDITED = tuple(
    (
        "algo.epochs algo.optim.lr algo.r algo.batch_tokens data.length data.held_out data.system seed name"
    ).split()
)
"""the fields that people edit most: written as comments even where they are at their default"""
WIDTH = 108
"""of a comment"""


def read_recipe(file: Path) -> list[str]:
    """A recipe as overrides: its `defaults:` choose options, the rest sets fields. Raises ConfigError.

    Words after the file on the line win.
    """
    values = load_yaml(file)
    refuse_hydra_keys(file, values)
    words = []
    for entry in values.pop("defaults", []):
        if entry in ("_self_", "tuner"):
            continue
        if not isinstance(entry, dict) or len(entry) != 1:
            raise ConfigError(
                f"{file}: an entry of `defaults:` is {entry!r}, but must be a group and its option, such as "
                "`- model: smollm2_135m_q4`."
            )
        group, choice = next(iter(entry.items()))
        group = str(group).removeprefix("override ").strip("/ ")
        if group not in GROUPS:
            raise ConfigError(
                f"{file}: `defaults:` names the group {group}, but the groups are "
                f"{', '.join(GROUPS)}.{did_you_mean(group, GROUPS)}"
            )
        words.append(f"{group}={choice}")
    return words + _words(values, "")


def _words(values: dict[str, Any], path: str) -> list[str]:
    words: list[str] = []
    for key, item in values.items():
        if isinstance(item, dict) and f"{path}{key}" == "data.of":  # its keys are names of files too
            words.append(
                Override(
                    f"++{path}{key}={{{','.join(f'{name}:{_grammar(take)}' for name, take in item.items())}}}"
                )
            )
        elif isinstance(item, dict):
            words += _words(item, f"{path}{key}.")
        else:
            words.append(Override(f"++{path}{key}={_grammar(item)}"))
    return words


def _grammar(item: Any) -> str:
    """A YAML value in Hydra's grammar."""
    if isinstance(item, list):
        return f"[{','.join(_grammar(i) for i in item)}]"
    return (
        quote(item)
        if isinstance(item, str)
        else "null"
        if item is None
        else str(item).lower()
        if isinstance(item, bool)
        else str(item)
    )


def write_recipe(file: Path, config: Config, notes: Iterable[str] = (), *, extra: Path | None = None) -> str:
    """Write `config` as a recipe: the options it was composed of, what differs from them, and the fields
    people edit as comments; `notes` are comments at its head. Returns the command that runs it, which names
    `extra`, the directory of the user's own options.
    """
    if file.exists():
        raise ConfigError(f"{file} is there already; copy does not overwrite.")
    chosen = [f"{group}={option}" for group, option in config.choices.items()]
    base = compose(chosen, extra=extra, whole=False)
    before, after = recipe_values(base), recipe_values(config)
    changed = {path: value for path, value in after.items() if before.get(path) != value}
    about = dict(field_documentation(Config))
    command = shlex.join(["python", "-m", "tuner", *(["-cd", str(extra)] if extra else []), str(file)])
    text = [f"# Run it with: {command}", *map(_comment, notes), *defaults_lines(config, extra), ""]
    text += _tree(
        {path: (value, about.get(path, ""), False) for path, value in changed.items()}
        | {path: (after[path], about[path], True) for path in EDITED if path not in changed}
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(text) + "\n", encoding="utf-8")
    return command


def _comment(note: str) -> str:
    indent = " " * (len(note) - len(note.lstrip()))
    return textwrap.fill(
        note.strip(),
        width=WIDTH,
        initial_indent=f"# {indent}",
        subsequent_indent=f"# {indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def defaults_lines(config: Config, extra: Path | None = None) -> list[str]:
    """The options that a config was composed of, as a recipe's `defaults:`."""
    return [
        "defaults:",
        *(
            f"  - {group}: {option}"
            for group, option in config.choices.items()
            if not (group == "model/chat" and _follows(config, extra))
        ),
    ]


def _follows(config: Config, extra: Path | None) -> bool:
    """Whether the chat template is the one that the model's YAML chooses."""
    return (
        compose([f"model={config.choices['model']}"], extra=extra, whole=False).choices.get("model/chat")
        == config.choices["model/chat"]
    )


def recipe_values(config: Config) -> dict[str, Any]:
    """What a recipe may say, by dotted path."""
    leaves = flatten(dump_config(config))
    return {path: value for path, value in leaves if not path.startswith(("choices", "data.parts"))}


def _tree(entries: dict[str, tuple[Any, str, bool]]) -> list[str]:
    """YAML lines for dotted paths; the documentation goes in front of each field, and the last item says
    whether it is a comment only.
    """
    lines: list[str] = []
    open_groups: list[str] = []
    for path in sorted(entries, key=lambda p: p.split(".")[:-1]):
        value, doc, comment = entries[path]
        *groups, name = path.split(".")
        live = any(p.startswith(".".join(groups) + ".") and not entries[p][2] for p in entries)
        for depth, group in enumerate(groups):
            if open_groups[depth : depth + 1] != [group]:
                open_groups = groups[:depth]
                lines.append(f"{'  ' * depth}{'' if live or not comment else '# '}{group}:")
            open_groups = groups[: depth + 1]
        pad = "  " * len(groups)
        if doc:
            lines.append(f"{pad}# {doc}")
        lines.append(f"{pad}{'# ' if comment else ''}{on_one_line({name: value})}")
    return lines


def on_one_line(value: Any) -> str:
    """A value, or a key and its value, as YAML on one line."""
    text = yaml.safe_dump(value, allow_unicode=True, default_flow_style=True, sort_keys=False, width=10**6)
    text = text.removesuffix("\n...\n").strip()
    return text[1:-1] if isinstance(value, dict) and len(value) == 1 else text


def field_documentation(cls: type, path: str = "") -> Iterator[tuple[str, str]]:
    """The string under each field, by dotted path. Python throws them away, so they are read from the
    source.
    """
    body = [part for base in cls.__mro__ if is_dataclass(base) for part in _source(base).body]
    after = {
        a.target.id: b.value.value
        for a, b in pairwise(body)
        if isinstance(a, ast.AnnAssign)
        and isinstance(a.target, ast.Name)
        and isinstance(b, ast.Expr)
        and isinstance(b.value, ast.Constant)
    }
    hints = get_type_hints(cls)
    for f in fields(cls):
        if is_dataclass(hints[f.name]):
            yield from field_documentation(hints[f.name], f"{path}{f.name}.")
        else:
            yield f"{path}{f.name}", " ".join(str(after.get(f.name, "")).split())


def _source(cls: type) -> ast.ClassDef:
    (found,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(found, ast.ClassDef)
    return found
