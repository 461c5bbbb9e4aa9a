"""`python -m tuner` and the console script, from a checkout, an editable install and a wheel, from any
directory.
"""

import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.conftest import REPO

PLAN = ["plan", "--json", "model=smollm2_135m_q4", "data=persona"]


def call(command: list[str | Path], cwd: Path) -> str:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_from_a_checkout() -> None:
    assert '"fetch_data"' in call([sys.executable, "-m", "tuner", *PLAN], REPO)


def test_from_an_editable_install(tmp_path: Path) -> None:
    origin = distribution("tuner-pipeline").read_text("direct_url.json") or ""
    if '"editable": true' not in origin:
        pytest.skip("tuner is not installed in editable mode here")
    scripts = Path(sysconfig.get_path("scripts"))
    assert call([sys.executable, "-m", "tuner", *PLAN], tmp_path) == call(
        [scripts / "tuner", *PLAN], tmp_path
    )


def test_from_a_wheel(tmp_path: Path) -> None:
    """In an environment of its own that sees this one's libraries, but not this checkout."""
    call(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", REPO],
        tmp_path,
    )
    (wheel,) = (tmp_path / "dist").glob("tuner_pipeline-*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    call([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], tmp_path)
    site = Path(
        call([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], tmp_path).strip()
    )
    # Behind the wheel on the path, and without the .pth files there: the editable install stays out of sight.
    (site / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    home = call([python, "-c", "import tuner; print(tuner.__file__)"], tmp_path)
    assert home.startswith(str(site))
    assert (site / "tuner" / "conf" / "tuner.yaml").exists()
    assert call([python, "-m", "tuner", *PLAN], tmp_path) == call(
        [tmp_path / "venv" / "bin" / "tuner", *PLAN], tmp_path
    )
    assert "persona" in call([python, "-m", "tuner", "list", "data"], tmp_path)


EXTRAS = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "optional-dependencies"
]


@pytest.mark.slow
@pytest.mark.parametrize("extra", sorted(EXTRAS.keys() - {"flash"}))  # that one is compiled to be looked at
def test_an_extra_resolves_with_the_pinned_versions(extra: str) -> None:
    """pip finds versions of all that it wants; nothing is installed."""
    words = ["-m", "pip", "install", "--dry-run", "--quiet", "-c", "constraints.txt", f".[{extra}]"]
    call([sys.executable, *words], REPO)
