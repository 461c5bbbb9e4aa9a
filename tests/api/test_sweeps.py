"""Which launcher the words of a sweep choose, and what is said of one that is not there."""

import shutil
from pathlib import Path

import pytest

import tuner.api.sweeps as sweeps
from tuner.errors import ConfigError


def test_a_launcher_that_is_not_installed_is_named_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sweeps, "installed_launchers", lambda: ["basic"])
    sweeps.check_launcher(["seed=1,2", "hydra/launcher=basic"])
    for name, plugin in sweeps.PLUGINS.items():
        with pytest.raises(
            ConfigError, match=rf"needs {plugin}, which is not .* pip install '{plugin}>=1\.2'"
        ):
            sweeps.check_launcher([f"hydra/launcher={name}"])


def test_a_launcher_that_is_misspelt_or_set_up_wrongly() -> None:
    with pytest.raises(ConfigError, match=r"no such launcher here\. Did you mean joblib\? There are: basic"):
        sweeps.check_launcher(["hydra/launcher=jobli"])
    with pytest.raises(ConfigError, match="n_job"):
        sweeps.check_launcher(["hydra/launcher=basic", "hydra.launcher.n_job=3"])


@pytest.mark.skipif(bool(shutil.which("srun")), reason="Slurm is here")
def test_slurm_that_is_not_here() -> None:
    if "submitit_slurm" not in sweeps.installed_launchers():
        pytest.skip("needs hydra-submitit-launcher")
    with pytest.raises(ConfigError, match="whose srun is not found here"):
        sweeps.check_launcher(["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu"])


def test_one_job_at_a_time_needs_no_launcher(tmp_path: Path) -> None:
    for words in (
        ["seed=1,2"],
        ["hydra/launcher=basic"],
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=1"],
    ):
        if "joblib" not in str(words) or "joblib" in sweeps.installed_launchers():
            assert sweeps.chosen_launcher(words, tmp_path) is None
