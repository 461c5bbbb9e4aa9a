"""A head whose rows' norms a layout fixes does not train where the result is to be written in that layout:
that is refused before anything does.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models import fixtures
from tuner.config.schema import Algo, Config, Merge
from tuner.config.view import View
from tuner.errors import ConfigError
from tuner.train.setup import build_model, refuse_fixed_head


def wished(layout: str, **algo: Any) -> View:
    config = Config(
        algo=Algo(**({"precision": "fp32", "r": 2, "targets": ("q_proj", "lm_head")} | algo)),
        merge=Merge(layout=layout),
    )  # type: ignore[arg-type]
    return View(config, "train")


def built(config: View, directory: Path, out: Path) -> Any:
    return build_model(config, directory, out, torch.device("cpu"), torch.float32, zero_stage=0)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("algo", [{}, {"adapter": "none"}], ids=["an adapter on the head", "all weights"])
def test_baichuan_2_in_its_own_layout(tmp_path: Path, algo: dict[str, Any]) -> None:
    native = fixtures.native("baichuan2_7b", "baichuan2", tmp_path / "native")
    with pytest.raises(
        ConfigError,
        match=r"the layout baichuan2, .* divides each of its rows by its norm .* or merge\.layout=native",
    ):
        built(wished("original", **algo), native, tmp_path)
    built(wished("native", **algo), native, tmp_path)
    built(
        wished("original", **(algo | ({"freeze": ("head",)} if algo else {"targets": ("q_proj",)}))),
        native,
        tmp_path,
    )


def test_a_family_without_a_class_is_always_written_in_its_own(tmp_path: Path) -> None:
    native = fixtures.native("baichuan2_13b", "baichuan2_13b", tmp_path / "native")
    with pytest.raises(
        ConfigError, match=r"^algo\.targets has an adapter for the output head, and the layout baichuan2_13b"
    ) as told:
        refuse_fixed_head(native, "algo.targets has an adapter for the output head", "native")
    assert "merge.layout" not in str(told.value)
    plain = fixtures.native("baichuan_7b", "baichuan", tmp_path / "plain")
    refuse_fixed_head(plain, "algo.targets has an adapter for the output head", "original")
