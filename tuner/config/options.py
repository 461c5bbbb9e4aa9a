"""What there is to choose from: the options of each group, each with the first line of its YAML; and whose
chat template a tokenizer's is.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from tuner.config.build import build_config
from tuner.config.compose import conf_dir, group_options
from tuner.config.overrides import GROUPS
from tuner.config.schema import Chat
from tuner.config.yaml_file import load_yaml
from tuner.errors import ConfigError, did_you_mean

PLURALS = {
    "models": "model",
    "algos": "algo",
    "machines": "machine",
    "evals": "eval",
    "chats": "model/chat",
    "chat": "model/chat",
    "templates": "model/chat",
}


def file_of(group: str, option: str, extra: Path | None) -> Path:
    """The YAML that an option is composed from."""
    own = extra / group / f"{option}.yaml" if extra else None
    return own if own and own.exists() else conf_dir() / group / f"{option}.yaml"


@cache
def vendor_templates() -> Mapping[str, str]:
    """Digest of a vendor's own Jinja (tuner.data.chat.choice) → the option of model/chat that writes the
    same.
    """
    return {str(digest): str(option) for digest, option in load_yaml(conf_dir() / "vendors.yaml").items()}


@cache
def catalogue_template(option: str) -> Chat:
    """A chat template of the catalogue."""
    return build_config(
        {"model": {"chat": load_yaml(conf_dir() / "model" / "chat" / f"{option}.yaml")}}, whole=False
    ).model.chat


def first_comment(file: Path) -> str:
    """The comment on the first line of a YAML file."""
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def group_lines(extra: Path | None) -> list[str]:
    """A line for each group: its default and how many options it has."""
    defaults = {
        str(k): str(v)
        for entry in load_yaml(conf_dir() / "tuner.yaml")["defaults"]
        if isinstance(entry, dict)
        for k, v in entry.items()
    }
    found = group_options(extra)
    lines = []
    for group in GROUPS:
        shown = ", ".join(found[group][:6]) + (" …" if len(found[group]) > 6 else "")
        default = f"   (default {defaults[group]})" if group in defaults else ""
        lines.append(f"  {group:<17} {shown}{default}")
    return lines


def show_options(words: list[str], extra: Path | None, *, as_json: bool) -> int:
    """Print the options; the first word may be a group, the others filter."""
    words = list(words)
    groups: tuple[str, ...] = GROUPS
    if words and (group := PLURALS.get(words[0], words[0])) in GROUPS:
        groups, words = (group,), words[1:]
    found = [
        (group, option, first_comment(file_of(group, option, extra)))
        for group in groups
        for option in group_options(extra)[group]
    ]
    shown = [entry for entry in found if all(word.lower() in " ".join(entry).lower() for word in words)]
    if not shown:
        raise ConfigError(
            f"Nothing in {', '.join(groups)} matches "
            f"{' '.join(words)!r}.{did_you_mean(words[-1], [*(option for _, option, _ in found), *GROUPS])}"
        )
    if as_json:
        print(
            json.dumps(
                [{"group": group, "option": option, "about": text} for group, option, text in shown],
                ensure_ascii=False,
                indent=1,
            )
        )
        return 0
    for group in groups:
        lines = [(option, text) for g, option, text in shown if g == group]
        if lines:
            print(f"{group}")
            print("\n".join(f"  {option:<24} {text}" for option, text in lines))
    return 0
