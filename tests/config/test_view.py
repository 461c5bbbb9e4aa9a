"""A stage reads what is declared for it, also through a property of a node."""

import pytest

from tuner.config.schema import Algo, Config
from tuner.config.schema.algo import METHODS, Adapter
from tuner.config.view import View


@pytest.mark.parametrize("adapter", METHODS)
def test_a_property_gives_a_stage_what_it_gives_elsewhere(adapter: Adapter) -> None:
    algo = Algo(adapter=adapter)
    seen = View(Config(algo=algo), "train").algo
    assert (seen.method, seen.uses_adapter) == (algo.method, algo.uses_adapter)


@pytest.mark.parametrize("word", ["method", "uses_adapter"])
def test_a_property_reads_as_its_stage_may(word: str) -> None:
    with pytest.raises(AttributeError, match=r"algo\.adapter is not declared for the stage tokenize"):
        getattr(View(Config(), "tokenize").algo, word)
