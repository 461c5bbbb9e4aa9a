"""The launchers of Hydra's that run the jobs of a sweep: joblib, submitit and whatever else is installed.

A launcher is used as a map over calls. What a job does is settled before it is launched and travels with it,
so a YAML that is edited while a job waits in a queue changes nothing. Hydra composes nothing for it but the
default config.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tuner.config.compose import SWEEPING, main_hydra, one_paragraph
from tuner.config.overrides import quote

T = TypeVar("T")
_CHOICE = re.compile(r"hydra/launcher=(.*)")


def launcher_name(words: Sequence[str]) -> str | None:
    """The launcher that the words choose; None without one, and for Hydra's own, `basic`, which is no more
    than one job after the other.

    >>> launcher_name(["seed=1,2", "hydra/launcher=joblib"]), launcher_name(["hydra/launcher=basic"])
    ('joblib', None)
    """
    chosen = [match[1] for word in words if (match := _CHOICE.fullmatch(word))]
    return chosen[-1] if chosen and chosen[-1] != "basic" else None


def installed_launchers() -> list[str]:
    """Those that `hydra/launcher=` can choose here."""
    return sorted(main_hydra(None).config_loader.get_group_options("hydra/launcher"))


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """One of Hydra's launchers, as the words set it up."""

    name: str
    settings: dict[str, Any]
    """the fields of hydra.launcher"""
    batch: int | None
    """jobs that are launched at once (hydra.sweeper.max_batch_size)"""
    _config: Any
    _loader: Any

    def map(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Make the calls in processes of the launcher's; what they returned, in order. Raises what the
        launcher raises where a process dies.
        """
        from hydra.core.plugins import Plugins
        from hydra.core.utils import setup_globals
        from hydra.types import HydraContext

        setup_globals()
        context = HydraContext(config_loader=self._loader, callbacks=_no_callbacks())
        results: list[T] = []
        size = self.batch or len(calls)
        for at in range(0, len(calls), size):
            part = calls[at : at + size]
            launcher = Plugins.instance().instantiate_launcher(
                hydra_context=context, task_function=_Call(part), config=self._config
            )
            results += [done.return_value for done in launcher.launch([[] for _ in part], 0)]
        return results


def find_launcher(words: Sequence[str], directory: Path) -> Launcher:
    """The launcher that the words choose and set up; `directory` gets what it writes itself. Raises
    ConfigError.
    """
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    hydra = main_hydra(None)
    with one_paragraph():
        composed = hydra.compose_config(
            config_name="tuner",
            # absolute: a job may begin elsewhere
            overrides=[
                *(word for word in words if SWEEPING.match(word)),
                f"hydra.sweep.dir={quote(str(directory.absolute()))}",
            ],
            run_mode=RunMode.MULTIRUN,
            with_log_configuration=False,
        )
        settings = OmegaConf.to_container(composed.hydra.launcher, resolve=False)
        assert isinstance(settings, dict)
        return Launcher(
            name=str(composed.hydra.runtime.choices["hydra/launcher"]),
            settings={str(key): value for key, value in settings.items()},
            batch=composed.hydra.sweeper.get("max_batch_size"),
            _config=composed,
            _loader=hydra.config_loader,
        )


class _Call:
    """What a launcher calls for each job; a class, so that those that pickle can send it to other
    processes.
    """

    def __init__(self, calls: Sequence[Callable[[], Any]]) -> None:
        self.calls = calls

    def __call__(self, _composed: Any) -> Any:
        from hydra.core.hydra_config import HydraConfig

        return self.calls[HydraConfig.get().job.num]()


def _no_callbacks() -> Any:
    from hydra._internal.callbacks import Callbacks

    return Callbacks()
