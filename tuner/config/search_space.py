"""Words of a search → the space that it draws from and its settings. The words are those of a sweep in
Hydra's grammar: what would be multiplied out is a dimension of the space. Beside `compose` the only module
that knows Hydra.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

from tuner.config.build import coerce, field_paths
from tuner.config.compose import compose, group_options, sweeper_settings
from tuner.config.overrides import GROUPS, Override, translate
from tuner.config.schema import Config
from tuner.errors import ConfigError, did_you_mean

SWEEPER = "hydra/sweeper=optuna"
"""the word that makes a sweep a search"""
SETTINGS = (
    "n_trials direction sampler.seed sampler.n_startup_trials sampler.multivariate pruner.n_startup_trials "
    "pruner.n_warmup_steps"
).split()
"""what may be typed behind `hydra.sweeper.` with the default sampler and pruner"""
_INTERVAL = re.compile(r"((int|float)\(\s*|tag\([^()]*,\s*)*interval\(.*\)\Z", re.DOTALL)
NOT_HERE = {
    "n_jobs": "trials run one after the other.",
    "storage": "the study lies in the directory of the sweep, under root=DIR.",
    "study_name": "the study has the name of the sweep's directory, for which name=NAME stands.",
    "params": "the space is said on the line, as in algo.optim.lr=interval(1e-5,1e-3).",
    "search_space": "the space is said on the line, as in algo.optim.lr=interval(1e-5,1e-3).",
    "custom_search_space": "code is not named in a config.",
    "max_failure_rate": "a trial that fails does not end a search, and three in a row do.",
}
"""settings of other sweepers with Optuna → what holds here"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """A dimension that is one of some values, written in Hydra's grammar."""

    values: tuple[str, ...]

    def text(self, value: Any) -> str:
        """A value as a word has it."""
        return str(value)

    def __str__(self) -> str:
        shown = [value.strip("'") for value in self.values]
        return " or ".join(text for text in (", ".join(shown[:-1]), shown[-1]) if text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbers:
    """A dimension that is a number from `low` to `high`, both among them."""

    low: float
    high: float
    step: float | None = None
    log: bool = False
    """whether it is drawn evenly by its logarithm"""
    whole: bool = False
    """whether it is a whole number"""

    def text(self, value: float) -> str:
        """A value as a word has it: with six digits, where these lie within the ends.

        >>> Numbers(low=1e-5, high=0.01).text(0.00031415926535), Numbers(low=0, high=1).text(0.1 * 3)
        ('0.000314159', '0.3')
        """
        if self.whole:
            return str(round(value))
        short = f"{value:.6g}"
        return short if self.low <= float(short) <= self.high else repr(value)

    def __str__(self) -> str:
        steps = f" in steps of {self.step:g}" if self.step and (self.step != 1 or not self.whole) else ""
        whole = ", whole numbers" if self.whole and not self.step else ""
        return f"{self.low:g} to {self.high:g}{steps}{whole}{', by the logarithm' * self.log}"


Dimension = Choices | Numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSettings:
    """`hydra.sweeper` of conf/hydra/sweeper/optuna.yaml."""

    n_trials: int
    direction: Literal["minimize", "maximize"]
    sampler: Mapping[str, Any]
    pruner: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """What a search is for, and where it looks."""

    words: tuple[str, ...]
    """of every trial"""
    space: Mapping[str, Dimension]
    """by field or group"""
    settings: SearchSettings
    base: Config
    """of every trial, as far as it is known before there is one"""
    ignored: tuple[str, ...] = ()
    """words that choose a launcher, which a search has none of"""

    def config(self, point: Mapping[str, Any], extra: Path | None) -> Config:
        """The config of the trial at a point of the space. Raises ConfigError."""
        point_words = [
            Override(word if word.partition("=")[0] in GROUPS else f"++{word}")
            for word in self.point_words(point)
        ]
        return compose([*self.words, *point_words], extra=extra)

    def point_words(self, point: Mapping[str, Any]) -> list[str]:
        """The values at a point, in Hydra's grammar."""
        return [f"{key}={dimension.text(point[key])}" for key, dimension in self.space.items()]

    def first_point(self) -> dict[str, Any]:
        """One of the points, to plan with."""
        return {
            key: dimension.values[0] if isinstance(dimension, Choices) else dimension.low
            for key, dimension in self.space.items()
        }

    def identity(self) -> dict[str, Any]:
        """What makes it another search: all but the number of trials and the words that stay."""
        settings = asdict(self.settings)
        settings.pop("n_trials")
        space = {key: [type(found).__name__, asdict(found)] for key, found in self.space.items()}
        return {"space": space, **settings, "objective": self.base.sweep.objective}


def is_search(words: Sequence[str]) -> bool:
    """Whether the words of a sweep ask for a search. Raises ConfigError where some do, but not SWEEPER."""
    if not any(word.startswith("hydra/sweeper=") for word in words):
        for word in words:
            key, _, value = word.partition("=")
            if re.match(r"hydra[./]sweeper\b", key) or _INTERVAL.match(value):
                raise ConfigError(f"{word} is for a search: add {SWEEPER}.")
    return SWEEPER in words


def read_search(words: list[str], *, extra: Path | None) -> Search:
    """The search that the words mean. Raises ConfigError."""
    hydras = [word for word in words if word.startswith("hydra")]
    own = [word for word in words if word not in hydras]
    translated = translate(own, group_options(extra), sweep=True)
    settings = _settings([word for word in hydras if _is_sweepers(word)], extra)
    stays: dict[str, str] = {}
    space: dict[str, Dimension] = {}
    for typed, override in zip(own, translated, strict=True):
        key, dimension = _read(override)
        stays.pop(key, None)
        space.pop(key, None)  # the later word wins
        if dimension is None:
            stays[key] = typed
        else:
            space[key] = dimension
    if not space:
        raise ConfigError(
            "A search needs something to choose: give a field several values, as in "
            "algo.optim.lr='interval(1e-5,1e-3)' or algo.r=4,8,16."
        )
    base = compose(list(stays.values()), extra=extra, whole=False)
    if base.redo:
        raise ConfigError(
            f"redo={base.redo} does not go with {SWEEPER}: a search keeps what its trials found. "
            "hydra.sweeper.sampler.seed=N makes another search."
        )
    return Search(
        words=tuple(stays.values()),
        space=space,
        settings=settings,
        base=base,
        ignored=tuple(word for word in hydras if not _is_sweepers(word)),
    )


def _is_sweepers(word: str) -> bool:
    return re.match(r"hydra[./]sweeper\b", word) is not None


def _settings(words: Sequence[str], extra: Path | None) -> SearchSettings:
    """The settings of the sweeper, each of its type. Raises ConfigError."""
    known = sweeper_settings([SWEEPER, *(word for word in words if word.startswith("hydra/"))], extra=extra)
    paths = [
        *(name for name, value in known.items() if not isinstance(value, dict)),
        *(f"{name}.{key}" for name, value in known.items() if isinstance(value, dict) for key in value),
    ]
    for word in words:
        path = word.partition("=")[0].removeprefix("hydra.sweeper.")
        if word.startswith("hydra.sweeper.") and (path not in paths or path.endswith(".name")):
            if instead := NOT_HERE.get(path.partition(".")[0]):
                raise ConfigError(f"hydra.sweeper.{path} is not a setting of a search here: {instead}")
            there = ", ".join(found for found in paths if not found.endswith(".name"))
            raise ConfigError(
                f"hydra.sweeper.{path} is not a setting of this search.{did_you_mean(path, paths)} "
                f"There are: {there}; hydra/sweeper/sampler=… and hydra/sweeper/pruner=… choose others."
            )
    values = sweeper_settings([SWEEPER, *(word for word in words if word != SWEEPER)], extra=extra)
    hints = get_type_hints(SearchSettings)
    for name in ("n_trials", "direction"):
        values[name] = coerce(values[name], hints[name], f"hydra.sweeper.{name}")
    for part in ("sampler", "pruner"):
        for key, default in known[part].items():
            hint = int | None if key == "seed" else type(default)
            values[part][key] = coerce(values[part][key], hint, f"hydra.sweeper.{part}.{key}")
            if isinstance(found := values[part][key], int) and not 0 <= found < 2**32:
                raise ConfigError(f"hydra.sweeper.{part}.{key} is {found}, but must be 0 or more.")
    if values["n_trials"] < 1:
        raise ConfigError(f"hydra.sweeper.n_trials is {values['n_trials']}, but must be at least 1.")
    return SearchSettings(**{field.name: values[field.name] for field in fields(SearchSettings)})


def _read(override: str) -> tuple[str, Dimension | None]:
    """The field or group of a word, and the dimension that it makes; None where it gives one value."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, RangeSweep
    from hydra.errors import HydraException

    try:
        (parsed,) = OverridesParser.create().parse_overrides([override])
    except HydraException as error:
        raise ConfigError(" ".join(f"{error} {error.__cause__ or ''}".split())) from error
    key, value = parsed.get_key_element().lstrip("+"), parsed.value()
    if not parsed.is_sweep_override():
        return key, None
    if isinstance(value, Glob):
        raise ConfigError(f"{key}=glob(…): a search takes the options by name, as in {key}=a,b.")
    if "log" in value.tags and not isinstance(value, IntervalSweep):
        raise ConfigError(f"{key}: tag(log, …) goes with interval(…), as in tag(log, interval(1e-5,1e-2)).")
    if isinstance(value, IntervalSweep):
        return key, _interval(key, value)
    if isinstance(value, RangeSweep):
        return key, _range(key, value)
    assert isinstance(value, ChoiceSweep)
    value.shuffle = False  # the order is the sampler's, and a study knows a dimension by its values in order
    return key, Choices(values=tuple(dict.fromkeys(parsed.sweep_string_iterator())))


def _interval(key: str, sweep: Any) -> Numbers:
    """`interval(low,high)`; of whole numbers where the field is one, or int(…) says so."""
    kind = field_paths().get(key)
    typed = isinstance(sweep.start, int) and isinstance(sweep.end, int)
    whole = typed or (kind is int and all(float(end).is_integer() for end in (sweep.start, sweep.end)))
    log = "log" in sweep.tags
    if not sweep.start < sweep.end or (log and sweep.start <= 0):
        more = " and more than 0" if log else ""
        raise ConfigError(
            f"{key}=interval({sweep.start:g},{sweep.end:g}): the first number must be the lower one{more}."
        )
    return Numbers(low=sweep.start, high=sweep.end, log=log, whole=whole)


def _range(key: str, sweep: Any) -> Numbers | Choices:
    """`range(start,stop,step)`, which ends before `stop`, as it does in any sweep of Hydra's."""
    values = list(sweep.range())
    if not values:
        raise ConfigError(f"{key}: its range holds no number.")
    whole = all(isinstance(value, int) for value in values)
    if len(values) == 1:
        return Choices(values=(str(values[0]),))
    low, high = (float(f"{end:.12g}") for end in (min(values), max(values)))
    return Numbers(low=low, high=high, step=float(abs(sweep.step)), whole=whole)
