"""The processes of another launcher than ours, and what the launcher reads off an address."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from tests.conftest import REPO, environment
from tuner.errors import ConfigError
from tuner.train.distributed import from_environment, interface, single_process

PROGRAM = """
import json, sys, torch
from pathlib import Path
from tuner.train.distributed import from_environment
with from_environment(torch.device("cpu"), timeout=60) as world:
    told = world.gather([world.rank, world.first, float("inf"), 5e-324])
Path(sys.argv[1], str(world.rank)).write_text(json.dumps(told))
"""


def test_torchrun_makes_a_world(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    words = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(tmp_path / "program.py"),
        str(tmp_path),
    ]
    subprocess.run(
        [sys.executable, *words],
        env=environment({"OMP_NUM_THREADS": "1"}),
        cwd=REPO,
        check=True,
        capture_output=True,
        timeout=120,
    )
    expected = [[0, True, float("inf"), 5e-324], [1, False, float("inf"), 5e-324]]
    assert [json.loads((tmp_path / str(rank)).read_text(encoding="utf-8")) for rank in range(2)] == [
        expected,
        expected,
    ]


def test_one_process_needs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with from_environment(torch.device("cpu"), timeout=1) as world:
        assert world == single_process(torch.device("cpu"))
        assert world.gather({"a": 1}) == [{"a": 1}]
        assert world.sum([1.5, 2.0]) == [1.5, 2.0]
        world.barrier()
        # as DeepSpeed's engine needs it
        torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    assert not torch.distributed.is_initialized()


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "5"), ("LOCAL_RANK", "5"), ("WORLD_SIZE", "6")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(ConfigError, match=r"2 are visible.*machine\.processes=2"),
        from_environment(torch.device("cuda"), timeout=1),
    ):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_an_address_has_an_interface() -> None:
    assert interface("127.0.0.1") == "lo"
    assert interface("192.0.2.77") is None
    assert interface("::1") is None
