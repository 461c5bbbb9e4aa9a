"""The config of a run: one tree of frozen dataclasses, a module for each group. Each leaf is declared as
identity, place or neutral (tuner.config.fields).

The string under a field is its documentation; `tuner copy` writes it beside the field.
"""

from dataclasses import dataclass, field

from tuner.config.fields import identity, neutral
from tuner.config.schema.algo import Algo
from tuner.config.schema.chat import Chat
from tuner.config.schema.data import Data, DataSource
from tuner.config.schema.machine import Machine
from tuner.config.schema.model import Model
from tuner.config.schema.optim import Optim
from tuner.config.schema.results import Convert, Eval, Generation, Merge, Predict, Serve, Sweep, Train

__all__ = [
    "HUBS",
    "Algo",
    "Chat",
    "Config",
    "Convert",
    "Data",
    "DataSource",
    "Eval",
    "Generation",
    "Machine",
    "Merge",
    "Model",
    "Optim",
    "Predict",
    "Serve",
    "Sweep",
    "Train",
]

HUBS = {"hub": "main", "modelscope": "master"}
"""values of model.source and data.source that are hubs, and the branch that each takes where none is named"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """One run."""

    model: Model = field(default_factory=Model)
    algo: Algo = field(default_factory=Algo)
    data: Data = field(default_factory=Data)
    machine: Machine = field(default_factory=Machine)
    eval: Eval = field(default_factory=Eval)
    train: Train = field(default_factory=Train)
    convert: Convert = field(default_factory=Convert)
    merge: Merge = field(default_factory=Merge)
    generation: Generation = field(default_factory=Generation)
    predict: Predict = field(default_factory=Predict)
    serve: Serve = field(default_factory=Serve)
    sweep: Sweep = field(default_factory=Sweep)
    seed: int = identity("train", default=0)
    """of the initial adapters, the order of the packs, and dropout"""
    variant: str = identity("train", default="", left_out="")
    """a free word in the fingerprint, to train the same config again"""
    root: str = neutral(default="outputs")
    """the output root: the store and the directories of the runs"""
    store: str | None = neutral(default=None)
    """where the artifacts lie; `root`/store when null"""
    lock: str = neutral("fetch_data", "fetch_model", default="tuner.lock")
    """the file that says which commit a branch of a hub means, and what its files and your own hold; meant
    to be committed
    """
    locked: bool = neutral(default=False)
    """refuse what is not in `lock`: for runs that must be the same everywhere"""
    until: str | None = neutral(default=None)
    """stop after this stage; `--help` lists the words"""
    redo: str | None = neutral(default=None)
    """build again from this stage on; what was there is moved to the trash"""
    name: str | None = neutral(default=None)
    """the name of the run's directory, instead of model-algo-data"""
    note: str | None = neutral(default=None)
    """a line of your own, shown by `status`"""
    tags: tuple[str, ...] = neutral(default=())
    """words of your own, shown by `status`"""
    choices: dict[str, str] = neutral(default=dict)
    """the options that were composed: filled by the tool"""
