"""Words on the command line → configs. Hydra and OmegaConf end here, and in `config/launchers`.

Hydra finds the YAML, composes the groups and multiplies a sweep out; `tuner.config.build` judges what comes
out. Nothing of Hydra's is reached from YAML that is not ours: a recipe or a config directory from outside may
not contain a `hydra` node, `_target_` or a resolver (any of them could set an environment variable such as
LD_PRELOAD).
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from tuner.config.build import build_config
from tuner.config.overrides import GROUPS, translate
from tuner.config.schema import Config, DataSource
from tuner.config.yaml_file import load_yaml
from tuner.errors import ConfigError, did_you_mean

SWEEPING = re.compile(r"[+~]*hydra[./](launcher|sweeper)[=.]")
"""a word that chooses what runs the jobs of a sweep, or tells it something"""


def conf_dir() -> Path:
    """Where the shipped YAML lies: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def group_options(extra: Path | None = None) -> dict[str, list[str]]:
    """Each group's choices, by name."""
    if extra is not None:
        check_directory(extra)
    roots = [conf_dir(), *([extra] if extra else [])]
    return {
        group: sorted({file.stem for root in roots for file in (root / group).glob("*.yaml")})
        for group in GROUPS
    }


def compose(words: list[str], *, extra: Path | None = None, whole: bool = True) -> Config:
    """The config that the words name; `whole` as in `build_config`. Raises ConfigError."""
    from hydra.types import RunMode

    overrides = translate(words, group_options(extra), sweep=False)
    hydra = main_hydra(extra)
    with one_paragraph():
        composed = hydra.compose_config(
            config_name="tuner", overrides=overrides, run_mode=RunMode.RUN, with_log_configuration=False
        )
        if whole:
            _check_paths(words, dict(composed.hydra.runtime.choices))
        return _freeze(composed, dict(composed.hydra.runtime.choices), extra, whole=whole)


def compose_jobs(
    words: list[str], *, extra: Path | None = None
) -> list[tuple[Config | ConfigError, list[str]]]:
    """The config of each job that the words multiply out to, or why it is refused, with the words that make
    it. Nothing runs, and each is composed once.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.types import RunMode

    overrides = translate(words, group_options(extra), sweep=True)
    hydra = main_hydra(extra)
    found: list[tuple[Config | ConfigError, list[str]]] = []
    with one_paragraph():
        ours = OverridesParser.create().parse_overrides([w for w in overrides if not SWEEPING.match(w)])
        for job in (job for batch in BasicSweeper.split_arguments(ours, None) for job in batch):
            composed = hydra.compose_config(
                config_name="tuner", overrides=job, run_mode=RunMode.RUN, with_log_configuration=False
            )
            found.append((_frozen(composed, dict(composed.hydra.runtime.choices), extra), _typed(job)))
    return found


def sweeper_settings(words: list[str], *, extra: Path | None = None) -> dict[str, Any]:
    """What stands under `hydra.sweeper` with these words of Hydra's own. Raises ConfigError."""
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    hydra = main_hydra(extra)
    with one_paragraph():
        composed = hydra.compose_config(
            config_name="tuner", overrides=words, run_mode=RunMode.MULTIRUN, with_log_configuration=False
        )
        values: Any = OmegaConf.to_container(composed.hydra.sweeper, resolve=True)
    return dict(values)


def chooses_launcher(words: list[str]) -> bool:
    """Whether the words say what is to run the jobs of a sweep, or how."""
    return any(SWEEPING.match(word) for word in words)


def _typed(overrides: Iterable[str]) -> list[str]:
    """A job's words as they were typed."""
    return [word.removeprefix("++") for word in overrides]


def _frozen(composed: Any, choices: dict[str, Any], extra: Path | None) -> Config | ConfigError:
    """A job's config, or why it is none."""
    try:
        return _freeze(composed, choices, extra)
    except ConfigError as error:
        return error


def _freeze(composed: Any, choices: dict[str, Any], extra: Path | None, *, whole: bool = True) -> Config:
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(composed, resolve=True)
    values.pop("hydra", None)
    if isinstance(of := values.get("data", {}).get("of"), dict):
        values["data"]["parts"] = [_part(str(name), take, extra) for name, take in of.items()]
    chosen = {group: str(choices[group]) for group in GROUPS if choices.get(group)}
    return build_config({**values, "choices": chosen}, whole=whole)


def _part(name: str, take: Any, extra: Path | None) -> dict[str, Any]:
    """A source of a mixture: an option of the group `data`, without what is the mixture's own to say, or a
    file.
    """
    files = [root / "data" / f"{name}.yaml" for root in ([extra] if extra else []) + [conf_dir()]]
    if file := next((file for file in files if file.is_file()), None):
        values = load_yaml(file)
        if values.get("of") or values.get("defaults"):
            raise ConfigError(
                f"data.of names {name}, which is made of others itself ({file}): name its sources instead."
            )
        return {f.name: values[f.name] for f in fields(DataSource) if f.name in values} | {
            "label": name,
            "take": take,
        }
    if "/" in name or "." in name or Path(name).exists():
        return {"source": "path", "path": name, "label": Path(name).name, "take": take}
    raise ConfigError(
        f"data.of names {name}, which is neither an option of `data` nor a "
        f"file.{did_you_mean(name, group_options(extra)['data'])}"
    )


def main_hydra(extra: Path | None) -> Any:
    """Hydra on our configs, and before them on those of the directory `extra`."""
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    search_path = create_config_search_path(str(conf_dir()))
    if extra is not None:  # `options` has checked it
        search_path.prepend("user", f"file://{extra.resolve()}", None)
    return Hydra.create_main_hydra2("tuner", search_path)


def _check_paths(words: list[str], choices: dict[str, Any]) -> None:
    """`data.path=FILE` without `data=local` would be looked for in the default's package: say what was
    forgotten.
    """
    for field, option in (
        ("model.path", "local"),
        ("data.path", "local"),
        ("model.run", "run"),
        ("model.repo", "hub"),
    ):
        group = field.partition(".")[0]
        typed = next((word for word in words if word.startswith(f"{field}=")), None)
        if typed and choices.get(group) != option and not any(word.startswith(f"{group}=") for word in words):
            raise ConfigError(
                f"{typed} goes with {group}={option}; the {group} here is {choices.get(group)}, the default. "
                f"Write {group}={option} {typed}"
            )


@contextmanager
def one_paragraph() -> Iterator[None]:
    """Turn what Hydra and OmegaConf raise into a ConfigError of one paragraph."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        said = " ".join(f"{error} {error.__cause__ or ''}".split())
        if said.startswith("Could not override 'model/chat'"):  # that of the catalogue's models always can
            said = (
                "model/chat can't be chosen, since the YAML of this model has no place for it: begin it with "
                "`defaults: [{chat: auto}, _self_]`."
            )
        raise ConfigError(said) from error


def check_directory(directory: Path) -> None:
    """Refuse a config directory from outside whose YAML reaches for Hydra."""
    if not directory.is_dir():
        raise ConfigError(f"The config directory {directory} does not exist.")
    for file in sorted(directory.rglob("*.yaml")):
        refuse_hydra_keys(file, load_yaml(file))


def refuse_hydra_keys(file: Path, values: Any, path: str = "") -> None:
    """Refuse YAML that is not ours and names Hydra's node, `_target_` or a resolver. Raises ConfigError."""
    reason = (
        "YAML from outside the package may not reach Hydra, since it could run code or set the environment; "
        "remove it."
    )
    if isinstance(values, dict):
        for key, item in values.items():
            words = str(key).split()
            if any(
                word == "hydra" or word.startswith(("hydra/", "hydra.", "hydra@")) for word in words
            ) or key in (
                "_target_",
                "_partial_",
                "_recursive_",
            ):
                raise ConfigError(f"{file} contains {path}{key}: {reason}")
            refuse_hydra_keys(file, item, f"{path}{key}.")
    elif isinstance(values, list):
        for item in values:
            refuse_hydra_keys(file, item, path)
    elif isinstance(values, str) and (
        found := re.search(r"\$\{[^}]*:", values) or re.match(r"(override\s+)?hydra\b[/.@]", values)
    ):
        raise ConfigError(f"{file} contains {found[0]!r} at {path.rstrip('.') or 'its top'}: {reason}")
