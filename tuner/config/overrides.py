r"""What a person typed → overrides in Hydra's grammar, with every value kept as it was typed.

Hydra's grammar refuses Chinese, spaces, `=`, parentheses, brackets and `#` in bare values, and turns `2024`
into a number. The schema knows which fields are text, so their values are quoted here. Numbers, dicts and
lists stay Hydra's.

In texts that become part of what is trained or asked (a column's pattern, a system prompt, a word to fill in,
a chat template), `\n` and `\t` are a line break and a tab, as in YAML's double quotes: on a command line
nobody can type them otherwise. `\\n` is a backslash and an n, and what begins a command of LaTeX (`\nabla`,
`\text`) stays one.
"""

import re
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from tuner.config.build import field_paths
from tuner.config.other_names import ours_for
from tuner.errors import ConfigError, did_you_mean

GROUPS = ("model", "algo", "data", "machine", "eval", "model/chat")
SHOWN = 40
"""options of a group that an error names"""
_OVERRIDE = re.compile(r"(?P<sign>\+\+|\+|~)?(?P<key>[\w./@:-]+)=(?P<value>.*)", re.DOTALL)
_SWEEP_CALL = re.compile(
    r"((int|float)\(\s*|tag\([^()]*,\s*)*(choice|range|interval|glob|shuffle|sort)\(.*\)\Z", re.DOTALL
)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SWEEPING = re.compile(r"hydra[./](launcher|sweeper)\b")
_WRITTEN = re.compile(r"data\.(columns|fill)\b|(data|generation)\.system\b|model\.chat\.|eval\.prompts\b")
"""fields whose texts are written to be read by a model"""
_ESCAPE = re.compile(
    r"\\(?:\\(?=[nt])|n(?!(?:abla|e|eq|eg|u|i|ot|otin|ewline|onumber|orm|exists|mid)(?![A-Za-z]))"
    r"|t(?!(?:ext[a-z]*|heta|imes|an|anh|au|o|op|riangle|ilde|frac|herefore)(?![A-Za-z])))"
)


class Override(str):
    """A word that is in Hydra's grammar already."""

    __slots__ = ()


def translate(words: list[str], options: dict[str, list[str]], *, sweep: bool) -> list[str]:
    """Overrides for Hydra. `options` lists each group's choices; `sweep` allows commas. Raises
    ConfigError.
    """
    return [word if isinstance(word, Override) else _translate_one(word, options, sweep) for word in words]


def _translate_one(word: str, options: dict[str, list[str]], sweep: bool) -> str:
    match = _OVERRIDE.match(word)
    if match is None:
        if word.startswith("~"):
            raise ConfigError(
                f"{word}: a field can't be removed. Give it another value, or null where that is allowed."
            )
        raise ConfigError(
            f"{word!r} is neither a verb, a recipe file nor field=value; see: python -m tuner --help"
        )
    sign, key, value = match["sign"], match["key"], match["value"]
    if key.startswith("hydra"):  # launchers and sweepers are Hydra's own business
        if not sweep or not _SWEEPING.match(key):
            raise ConfigError(
                f"{word} does nothing here. Of Hydra's own settings hydra.launcher and hydra.sweeper count, "
                "with -m; where a run is written says root=DIR."
            )
        return word
    if key in GROUPS:
        if sign:
            raise ConfigError(f"{word}: write {key}={value}; every group is there already.")
        return f"{key}={_choice(key, value, options, sweep)}"
    kind = _field(key)
    if sign == "~":
        raise ConfigError(
            f"{word}: a field can't be removed. Give it another value, or null where that is allowed."
        )
    if sign == "+":
        raise ConfigError(f"{word}: write {key}={value}; every field is there already, nothing can be added.")
    if _WRITTEN.match(key):
        value = _ESCAPE.sub(lambda found: {"n": "\n", "t": "\t"}.get(found[0][1], "\\"), value)
    return f"++{key}={_value(key, value, kind, sweep)}"


def _field(key: str) -> Any:
    """The type of the field that `key` names; `data.fill.name` names an entry of the mapping `data.fill`."""
    known = field_paths()
    if key in known:
        return known[key]
    if (parent := key.rpartition(".")[0]) in known and get_origin(known[parent]) is dict:
        return get_args(known[parent])[1]
    groups = {path.rpartition(".")[0] for path in known} - {""}
    if key in groups:
        raise ConfigError(
            f"{key} is a group of fields, not a field; set one of "
            f"{', '.join(p for p in known if p.startswith(f'{key}.'))}."
        )
    hint = ours_for(key, known) or did_you_mean(key, [*known, *GROUPS])
    raise ConfigError(f"{key} is not a field of the config.{hint}")


def _choice(group: str, value: str, options: dict[str, list[str]], sweep: bool) -> str:
    if "," in value and not sweep and not _SWEEP_CALL.match(value):
        raise ConfigError(f"{group}={value} names several options: add -m for a sweep over them.")
    if sweep and _SWEEP_CALL.match(value):
        return value
    for name in value.split(",") if sweep else [value]:
        if name not in options[group]:
            elsewhere = _elsewhere(group, name) if group in ("model", "data") else ""
            hint = "" if elsewhere else did_you_mean(name, options[group])
            there = options[group] if len(options[group]) <= SHOWN else []
            known = (
                f"There are: {', '.join(there)}."
                if there
                else f"There are {len(options[group])}: python -m tuner list {group} shows them."
            )
            raise ConfigError(f"{group}={name}: there is no such option.{hint} {known}{elsewhere}")
    return value


def _elsewhere(group: str, name: str) -> str:
    """What to type for a path, or for what a hub has, in place of an option; nothing for another name."""
    path = Path(name).expanduser()
    if path.exists():
        return f" For a path of your own write {group}=local {group}.path={name}"
    if _REPOSITORY.fullmatch(name):
        return f" For what a hub has write {group}=hub {group}.repo={name}"
    if "/" in name:
        return f" For a path of your own write {group}=local {group}.path={name}, but that is not there."
    return ""


def _value(key: str, value: str, kind: Any, sweep: bool) -> str:
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    text = str in kinds
    listed = any(get_origin(k) is tuple for k in kinds)
    if value == "null" and NoneType in kinds:
        return value
    if listed and value.startswith("[") and value.endswith("]"):
        return (
            f"[{','.join(quote(item) for item in split_at_commas(value[1:-1]))}]" if _texts(kinds) else value
        )
    if not text:
        if (
            "," in value
            and not sweep
            and not value.startswith(("[", "{", "'", '"'))
            and not _SWEEP_CALL.match(value)
        ):
            raise ConfigError(f"{key}={value} gives several values: add -m for a sweep over them.")
        plain = (
            re.fullmatch(r"[\w.+\-,]*", value, re.ASCII)
            or value.startswith(("[", "{", "'", '"'))
            or _SWEEP_CALL.match(value)
        )
        return value if plain else quote(value)
    if sweep and _SWEEP_CALL.match(value):
        return value
    return ",".join(quote(part) for part in split_at_commas(value)) if sweep else quote(value)


def _texts(kinds: tuple[Any, ...]) -> bool:
    return any(
        get_origin(k) is tuple and get_args(k)[0] is str for k in kinds if get_origin(k) is not Literal
    )


def split_at_commas(text: str) -> list[str]:
    """Cut at the commas that stand outside quotes and brackets.

    >>> split_at_commas("a,'b,c',[d,e]")
    ['a', "'b,c'", '[d,e]']
    """
    parts, depth, mark = [""], 0, ""
    for char in text:
        if mark:
            mark = "" if char == mark else mark
        elif char in "'\"" and not parts[-1].strip():
            mark = char
        elif char in "[({":
            depth += 1
        elif char in "])}":
            depth = max(0, depth - 1)
        if char == "," and not depth and not mark:
            parts.append("")
        else:
            parts[-1] += char
    stripped = [part.strip() for part in parts]
    return [] if stripped == [""] else stripped


def quote(text: str) -> str:
    r"""A quoted string of Hydra's grammar that stands for `text`; `~` in front becomes the home directory;
    `${` stays text.

    Hydra reads a backslash as itself except in a run of them before a quote, which is halved.

    >>> print(quote("客服/2026(1).jsonl"), quote("it's"), quote("'as quoted'"))
    '客服/2026(1).jsonl' 'it\'s' 'as quoted'
    """
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"" and text[0] not in text[1:-1]:
        text = text[1:-1]
    elif text == "~" or text.startswith("~/"):
        text = str(Path(text).expanduser())
    text = text.replace("${", "\\${")
    text = re.sub(r"(\\*)'", lambda m: m[1] * 2 + "\\'", text)
    text = re.sub(r"(\\+)\Z", lambda m: m[1] * 2, text)
    return f"'{text}'"
