"""The words of a search are those of a sweep: its space, its settings, the config at each of its points."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from tuner.config.search_space import SETTINGS, SWEEPER, Choices, Numbers, Search, is_search, read_search
from tuner.errors import ConfigError

LR = "algo.optim.lr"


def search(*words: str) -> Search:
    return read_search([SWEEPER, *words], extra=None)


@pytest.mark.parametrize(
    ("word", "dimension"),
    [
        (f"{LR}=interval(1e-5,1e-2)", Numbers(low=1e-5, high=1e-2)),
        (f"{LR}=tag(log, interval(1e-5,1e-2))", Numbers(low=1e-5, high=1e-2, log=True)),
        # a field of whole numbers has no others
        ("algo.r=interval(4,64)", Numbers(low=4, high=64, whole=True)),
        ("algo.r=tag(log,int(interval(4,64)))", Numbers(low=4, high=64, whole=True, log=True)),
        # as in any sweep of Hydra's, a range ends before its end
        ("algo.r=range(4,16,4)", Numbers(low=4, high=12, step=4, whole=True)),
        ("algo.warmup=range(0,0.5,0.1)", Numbers(low=0, high=0.4, step=0.1)),
        ("seed=range(3,4)", Choices(values=("3",))),
        (f"{LR}=1e-4,2e-4", Choices(values=("0.0001", "0.0002"))),
        ("algo.r=choice(4,8,8)", Choices(values=("4", "8"))),
        ("algo.r=shuffle(4,8)", Choices(values=("4", "8"))),
        ("algo=lora,full", Choices(values=("lora", "full"))),
        ("model/chat=chatml,qwen3", Choices(values=("chatml", "qwen3"))),
        ("data.system='a, b',it's", Choices(values=("'a, b'", r"'it\'s'"))),
        (
            "algo.targets=choice([q_proj],[q_proj,v_proj])",
            Choices(values=("[q_proj]", "[q_proj,v_proj]")),
        ),
    ],
)
def test_a_word_is_a_dimension(word: str, dimension: Any) -> None:
    found = search(word, "algo.alpha=8")
    assert found.space == {word.partition("=")[0]: dimension}
    assert found.words == ("algo.alpha=8",)
    found.config(found.first_point(), None)


def test_the_point_is_in_the_config() -> None:
    found = search(
        "algo.r=4,8", "data.system=it's,客服", f"{LR}=interval(1e-5,1e-2)", "algo=full,lora", "seed=3"
    )
    point = {"algo.r": "8", "data.system": r"'it\'s'", LR: 0.00123456789, "algo": "lora"}
    config = found.config(point, None)
    assert (config.algo.r, config.data.system, config.seed) == (8, "it's", 3)
    assert config.algo.optim.lr == 0.00123457
    assert config.choices["algo"] == "lora"


def test_the_later_word_wins() -> None:
    assert search("algo.r=4,8", "algo.r=2", "seed=1,2").space.keys() == {"seed"}
    assert search("algo.r=2", "algo.r=4,8").space.keys() == {"algo.r"}


@settings(deadline=None)
@given(some.floats(1e-9, 1e3), some.floats(1e-9, 1e3), some.floats(0, 1), some.booleans())
def test_what_is_written_lies_within_the_ends(one: float, other: float, share: float, whole: bool) -> None:
    low, high = sorted([one, other])
    if whole:
        low, high = math.floor(low), math.ceil(high) + 1
    dimension = Numbers(low=low, high=high, whole=whole)
    value = min(low + share * (high - low), high)
    written = float(dimension.text(round(value) if whole else value))
    assert low <= written <= high
    assert math.isclose(written, value, rel_tol=1e-5, abs_tol=0.5 if whole else 0)


def test_settings() -> None:
    found = search("seed=1,2", "hydra.sweeper.n_trials=7", "hydra.sweeper.sampler.seed=null").settings
    assert (found.n_trials, found.direction, found.sampler["name"]) == (7, "minimize", "tpe")
    assert found.sampler["seed"] is None
    chosen = ["hydra/sweeper/sampler=random", "hydra/sweeper/pruner=none", "hydra.sweeper.direction=maximize"]
    found = search("seed=1,2", *chosen).settings
    assert (found.n_trials, found.direction) == (20, "maximize")
    assert (found.sampler, found.pruner) == ({"name": "random", "seed": 0}, {"name": "none"})


def test_settings_that_are_completed_are_those_there_are() -> None:
    found = search("seed=1,2").settings
    assert sorted(SETTINGS) == sorted(
        ["n_trials", "direction"]
        + [f"sampler.{key}" for key in found.sampler if key != "name"]
        + [f"pruner.{key}" for key in found.pruner if key != "name"]
    )


def test_what_makes_it_another_search() -> None:
    one = search("seed=1,2")
    assert search("seed=1,2", "hydra.sweeper.n_trials=5").identity() == one.identity()
    for words in (
        ["seed=1,2,3"],
        ["seed=range(1,3)"],
        ["seed=1,2", "hydra.sweeper.sampler.seed=1"],
        ["seed=1,2", "sweep.objective=loss"],
    ):
        assert search(*words).identity() != one.identity()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["algo.r=4"], r"A search needs something to choose.*interval"),
        (["seed=1,2", "hydra.sweeper.n_trails=5"], r"Did you mean n_trials\?.*sampler\.seed"),
        (["seed=1,2", "hydra.sweeper.n_jobs=2"], r"n_jobs is not a setting.*one after the other"),
        (["seed=1,2", "hydra.sweeper.storage=sqlite:///a.db"], r"storage.*in the directory of the sweep"),
        (["seed=1,2", "hydra.sweeper.n_trials=few"], r"hydra\.sweeper\.n_trials is 'few'.*whole number"),
        (["seed=1,2", "hydra.sweeper.n_trials=0"], "at least 1"),
        (["seed=1,2", "hydra.sweeper.direction=up"], "must be minimize or maximize"),
        (["seed=1,2", "hydra.sweeper.sampler.seed=-1"], "must be 0 or more"),
        (["seed=1,2", "hydra/sweeper/sampler=cmaes"], "Available options.*random tpe"),
        (["seed=1,2", "redo=train"], "redo=train does not go with"),
        ([f"{LR}=interval(1e-2,1e-5)"], "the lower one"),
        ([f"{LR}=tag(log,interval(0,1e-5))"], "more than 0"),
        (["algo.r=tag(log,range(1,5))"], r"tag\(log, …\) goes with interval"),
        (["data=glob(a*)"], "by name"),
        (["algo.rr=interval(1,5)"], "algo.rr is not a field"),
    ],
)
def test_a_mistake_is_one_paragraph(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        search(*words)
    assert "\n" not in str(caught.value)


def test_whether_it_is_a_search() -> None:
    assert is_search([SWEEPER, "seed=1,2"])
    assert not is_search(["seed=1,2", "data.system=interval"])
    assert not is_search(["hydra/sweeper=basic", "seed=1,2"])
    for word in ("hydra.sweeper.n_trials=3", "hydra/sweeper/sampler=random", f"{LR}=tag(log,interval(1,2))"):
        with pytest.raises(ConfigError, match=r"is for a search: add hydra/sweeper=optuna\."):
            is_search([word, "seed=1,2"])
