"""A YAML file from outside as a mapping, of a size that people write."""

from pathlib import Path
from typing import Any

import yaml

from tuner.errors import ConfigError, did_you_mean

LONGEST = 1 << 20
"""characters of a file"""
DEEPEST = 40
"""levels of nesting"""
MOST = 100_000
"""values, with what aliases stand for written out"""


def load_yaml(file: Path) -> dict[str, Any]:
    """A YAML file as a mapping. Raises ConfigError, also for one that is longer or deeper than a person
    writes, whose aliases stand for more than there is, or that contains itself.
    """
    try:
        text = file.read_text(encoding="utf-8")
        if len(text) > LONGEST:
            raise ConfigError(f"{file} is no config: it has {len(text):,} characters, more than {LONGEST:,}.")
        _refuse_deep(file, text)
        _refuse_large(file, yaml.compose(text, yaml.SafeLoader))
        values = yaml.safe_load(text)
    except FileNotFoundError as error:
        there = [path.name for path in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
        raise ConfigError(f"{file} is not there.{did_you_mean(file.name, there)}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} can't be read as YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{file} must be a mapping with `defaults:` and fields, but is a {type(values).__name__}."
        )
    return values


def _refuse_deep(file: Path, text: str) -> None:
    """What is nested deeply can't be walked, and not even be composed."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST and event.start_mark:
            raise ConfigError(
                f"{file}:{event.start_mark.line + 1} is nested deeper than {DEEPEST} levels, as no config is."
            )


def _refuse_large(file: Path, root: yaml.Node | None) -> None:
    """An alias is the very node that it names: each is counted once, and added up wherever it stands."""
    sizes: dict[int, int] = {}
    inside: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in inside:
            raise ConfigError(
                f"{file}:{node.start_mark.line + 1} contains itself, by an alias (*name) inside what it "
                "names."
            )
        if id(node) not in sizes:
            inside.add(id(node))
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            below = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
            sizes[id(node)] = 1 + sum(map(size, below))
            inside.remove(id(node))
        return sizes[id(node)]

    if root is not None and (whole := size(root)) > MOST:
        raise ConfigError(
            f"{file} is no config: with its aliases written out it has {whole:.1e} values, more than "
            f"{MOST:,}."
        )
