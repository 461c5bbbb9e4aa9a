"""In a real kernel: the cell shows a bar and a curve, and an interrupt saves the step."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tuner
from tests.conftest import REPO

pytest.importorskip("ipykernel")
jupyter_client = pytest.importorskip("jupyter_client")

pytestmark = pytest.mark.slow


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """(manager, client) of a kernel with this Python, as a notebook has one."""
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "tuner",
        "language": "python",
    }
    (tmp_path / "kernels" / "tuner").mkdir(parents=True)
    (tmp_path / "kernels" / "tuner" / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    manager = jupyter_client.KernelManager(kernel_name="tuner")
    manager.start_kernel(cwd=str(tmp_path))
    client = manager.blocking_client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def messages(client: Any, code: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a cell shows, as it comes."""
    asked = client.execute(code)
    while True:
        message = client.get_iopub_msg(timeout=120)
        if message["parent_header"].get("msg_id") != asked:
            continue
        kind, content = message["msg_type"], message["content"]
        if kind == "status" and content["execution_state"] == "idle":
            return
        yield kind, content


def test_a_cell_shows_a_bar_and_a_curve_and_an_interrupt_saves(
    kernel: Any, words: list[str], tmp_path: Path
) -> None:
    manager, client = kernel
    line = [
        *(word for word in words if not word.startswith(("algo.steps", "machine.save_every"))),
        *("algo.steps=3000", "machine.save_every=3000", "algo.stop_step=2000", "until=train"),
    ]
    code = f"import tuner; run = tuner.run({line!r}); run"
    shown, error = [], ""
    for kind, content in messages(client, code):
        if kind in ("display_data", "update_display_data"):
            shown.append(content["data"])
            if len(shown) == 2:
                manager.interrupt_kernel()
        if kind == "error":
            error = content["evalue"]
    assert "<progress" in shown[0]["text/html"]
    assert "<polyline" in shown[1]["text/html"]
    first, second = (int(data["text/plain"].split()[1].partition("/")[0]) for data in shown[:2])
    assert 0 < first < second < 2000
    assert shown[0]["text/plain"].split()[1].endswith("/2000")
    assert "saved" in error or "continue" in error
    run = tuner.find(root=tmp_path / "outputs")
    (state,) = [planned for planned in run.plan() if planned.stage == "train"]
    assert state.state == "continue"
    assert int(state.why.removeprefix("@step ")) >= second
