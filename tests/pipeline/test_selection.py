"""The words of `until` and `redo`, as the stages themselves give them."""

from typing import Any

import pytest

from tuner.config.schema import Config
from tuner.errors import ConfigError
from tuner.pipeline.selection import check_stop_words, stages_named, stages_to_redo, stages_until, stop_words
from tuner.stages import STAGES


def test_the_stages_say_where_people_may_stop() -> None:
    assert stop_words(STAGES) == ["fetch", "tokenize", "train", "convert", "merge", "evaluate"]
    assert stages_named(STAGES, "fetch") == {"fetch_data", "fetch_model"}
    assert [stage.name for stage in stages_until(STAGES, "fetch")] == ["fetch_data", "fetch_model"]
    assert stages_to_redo(STAGES, "convert") == {"convert", "merge", "evaluate"}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"until": "trian"}, "Did you mean train"),
        ({"redo": "baseline"}, "must be one of fetch, tokenize, train, convert, merge, evaluate"),
        ({"until": "fetch", "redo": "train"}, "comes after"),
    ],
)
def test_other_words_are_refused_in_one_paragraph(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        check_stop_words(Config(**values), STAGES)
    assert "\n" not in str(caught.value)
