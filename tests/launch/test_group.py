"""Several processes that train together: how many and where, what is told when one fails, and that none is
ever left.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPO, environment
from tests.launch.ranked import fake_machines, group
from tuner.config.schema import Machine
from tuner.errors import ConfigError, Interrupted, StageError
from tuner.launch.child import refuse_external_launcher
from tuner.launch.failures import find_failure
from tuner.launch.group import Group
from tuner.launch.hosts import read_hostfile
from tuner.launch.members import MOMENT, SETTLE, Member, RankPlacement, place_ranks
from tuner.launch.remote import forwarded_environment, remote_command

TWO = RankPlacement(here=2, timeout=60)


@pytest.mark.parametrize(
    ("machine", "gpus", "size"),
    [
        (Machine(), None, 1),
        (Machine(), "GPU-a", 1),
        (Machine(gpus=2), "GPU-a,GPU-b", 2),
        (Machine(gpus=2, processes=1), "GPU-a,GPU-b", 1),
        (Machine(device="cpu", processes=3), None, 3),
    ],
)
def test_a_training_has_a_process_for_each_gpu(machine: Machine, gpus: str | None, size: int) -> None:
    ranks = place_ranks(machine, gpus, {})
    assert (ranks.size if ranks else 1) == size


def test_more_processes_than_gpus_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"machine\.processes is 3 .* machine\.gpus=2 takes 2: set machine\.gpus=3"
    ):
        place_ranks(Machine(gpus=2, processes=3), "GPU-a,GPU-b", {})


def test_a_hostfile_is_read_as_deepspeed_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text(
        "# the rack\n127.0.0.1 slots=2\n\nana@127.0.0.2 slots = 8  # the new one\nnode-3\n", encoding="utf-8"
    )
    assert read_hostfile(file, 2) == ["127.0.0.1", "ana@127.0.0.2", "node-3"]
    ranks = place_ranks(Machine(nodes=2, processes=2, device="cpu", hostfile=str(file)), None, {})
    assert ranks == RankPlacement(here=2, hosts=("127.0.0.1", "ana@127.0.0.2"), launcher="ssh", timeout=600)
    assert ranks.size == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("node-1 slots=8\n-oProxyCommand=sh\n", r":2 is not `host slots=8`"),
        ("node-1; reboot\n", r":1 is not `host slots=8`"),
        ("a\na\n", r":2 names a host twice"),
        ("a slots=1\n", r":1 has 1 slots, and machine\.processes wants 2"),
        ("192.0.2.1\n192.0.2.2\n", r"begins with 192\.0\.2\.1, which is not this machine"),
        ("127.0.0.1\n", r"machine\.nodes is 2, but machine\.hostfile=.* names 1"),
        ("", r"names 0: none"),
        (
            "localhost\nnode-2\n",
            r"begins with localhost, by which every machine means itself: write the name or address",
        ),
    ],
)
def test_a_hostfile_that_does_not_do_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        place_ranks(Machine(nodes=2, processes=2, device="cpu", hostfile=str(file)), None, {})


@pytest.mark.parametrize(
    ("machine", "environ", "message"),
    [
        (Machine(nodes=2), {}, r"nothing says which machines"),
        (
            Machine(nodes=2, launcher="local", hostfile="hosts"),
            {},
            r"machine\.launcher=local starts processes on this machine only",
        ),
        (Machine(nodes=2, launcher="slurm"), {}, r"needs an allocation of Slurm's"),
        (Machine(nodes=2, hostfile="/nowhere/hosts"), {}, r"can't be read"),
        (
            Machine(nodes=2),
            {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"},
            r"scontrol does not say which machines 'n\[1-2\]' are",
        ),
    ],
)
def test_machines_that_can_not_be_told_are_refused(
    machine: Machine, environ: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=message):
        place_ranks(machine, None, environ)


@pytest.mark.parametrize(
    "environ",
    [
        {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "node"},
        {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "0"},
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
    ],
)
def test_several_orchestrators_are_refused_with_the_right_way(environ: dict[str, str]) -> None:
    with pytest.raises(
        ConfigError,
        match=r"has started this command \d times .* Run `python -m tuner …` once, with machine\.gpus=N",
    ):
        refuse_external_launcher(environ)


def test_one_orchestrator_in_a_job_is_right() -> None:
    """A batch script of many tasks, submitit's single task, and torchrun with one process."""
    refuse_external_launcher({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"})
    refuse_external_launcher({"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"})
    refuse_external_launcher({"WORLD_SIZE": "1", "RANK": "0"})


def members(*changes: dict[str, Any]) -> list[Member]:
    return [
        Member(**{"rank": rank, "heard": 0.0, "connection": socket.socket(), **change})
        for rank, change in enumerate(changes)
    ]  # type: ignore[arg-type]


def closed(found: list[Member]) -> None:
    for member in found:
        assert member.connection is not None
        member.connection.close()


LOST = {"error": "StageError", "message": "Connection closed by peer", "lost": True}
OWN = {"error": "StageError", "message": "the loss is not a number", "lost": False}


@pytest.mark.parametrize(
    ("changes", "now", "dead", "late"),
    [
        ([{}, {}], 9.0, None, []),
        ([{"waited": 9.0, "met": 3}, {"met": 2}], 9.0, None, []),  # it may still come
        ([{}, {"heard": -2.0}], 9.0, None, [1]),
        ([{"waited": 10.5, "met": 3}, {"met": 2}], 9.0, None, [1]),
        # all are here: it is the network, and they will tell
        ([{"waited": 10.5, "met": 3}, {"waited": 10.5, "met": 3}], 9.0, None, []),
        ([{"told": OWN, "ended": 0.0}, {}], 9.0, 0, []),
        ([{"told": LOST, "ended": 0.0}, {"told": OWN, "ended": 1.0}], 9.0, 1, []),
        ([{"told": OWN, "ended": 1.0}, {"told": OWN, "ended": 0.0}], 9.0, 1, []),  # the first
        ([{"told": LOST, "ended": 8.0}, {}], 9.0, None, []),  # its cause may still show
        ([{"told": LOST, "ended": 0.0}, {}, {"told": LOST, "ended": 1.0}], 9.0, None, [1]),
        ([{"told": LOST, "ended": 0.0}, {"told": LOST, "ended": 1.0}], 9.0, 0, []),
        ([{"told": {"facts": {}}}, {"heard": -2.0}], 9.0, None, [1]),
        # the others do the same in a moment
        ([{"told": {"error": "Interrupted", "message": "", "lost": False}}, {}], 9.0, None, []),
        # a connection is all that is known of a process elsewhere
        ([{}, {"host": "b", "closed": True, "ended": 0.0}], 9.0, 1, []),
        ([{}, {"host": None, "closed": True}], 9.0, None, []),  # one here is asked for its exit code
    ],
)
def test_the_cause_is_told_and_not_its_consequence(
    changes: list[dict[str, Any]], now: float, dead: int | None, late: list[int]
) -> None:
    assert MOMENT < SETTLE < 9.0
    found = members(*changes)
    verdict = find_failure(found, now, 10.0)
    closed(found)
    assert (verdict and verdict.dead and verdict.dead.rank) == dead
    assert [member.rank for member in (verdict.late if verdict else ())] == late


def test_nothing_secret_is_on_a_command_line_or_leaves_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {
        "HF_TOKEN": "hf_secret",
        "WANDB_API_KEY": "secret",
        "NCCL_DEBUG": "INFO",
        "OMP_NUM_THREADS": "4",
        "CUDA_VISIBLE_DEVICES": "0",
        "HOME": "/root",
    }
    assert forwarded_environment(environ) == {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "4"}
    for launcher in ("ssh", "slurm"):
        assert "secret" not in " ".join(remote_command("node-2", launcher, environ))  # type: ignore[arg-type]


def test_all_are_told_alike_and_to_the_bit(tmp_path: Path) -> None:
    facts = group(tmp_path / "out", TWO, {}).run()
    assert facts["tenth"] == [0.1, 0.2]
    assert facts["mixed"] == [
        {"rank": rank, "text": "数据" * 50 * rank, "nothing": None} for rank in range(2)
    ]
    assert facts["sum"] == [2e16, 0.0]
    assert {facts["environment"][name] for name in ("RANK", "LOCAL_RANK")} == {"0"}
    assert {facts["environment"][name] for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")} == {"2"}
    assert not running(tmp_path / "out")


def running(out: Path) -> list[int]:
    """The ranks that are there; one that is a zombie is not."""
    alive = []
    for file in out.glob("pid-*"):
        try:
            state = (
                Path(f"/proc/{file.read_text(encoding='utf-8')}/stat")
                .read_text(encoding="ascii")
                .rpartition(")")[2]
                .split()[0]
            )
        except FileNotFoundError:
            continue
        if state != "Z":
            alive.append(int(file.name.removeprefix("pid-")))
    return sorted(alive)


@pytest.mark.parametrize(
    ("scene", "ranks", "message", "shown"),
    [
        ({"rank": 1, "act": "kill"}, TWO, r"^Rank 1 of 2 of train was killed \(SIGKILL\)", ""),
        pytest.param(
            {"rank": 1, "act": "bug"},
            TWO,
            r"^train failed: rank 1 of 2 ended with ValueError: a bug of ours",
            "[rank 1] ValueError: a bug of ours",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"rank": 1, "act": "stop", "timeout": 60},
            replace(TWO, timeout=6),
            r"^train hangs: rank 1 of 2 was not heard for 6 s .*SIGSTOP has stopped it",
            "",
            marks=pytest.mark.slow,
        ),
        (
            {"rank": 1, "act": "sleep", "timeout": 60},
            replace(TWO, timeout=6),
            r"^train hangs: rank 1 of 2 did not come to where the others waited for 6 s",
            "",
        ),
        # the others have given up before the launcher has
        pytest.param(
            {"rank": 1, "act": "sleep", "timeout": 10},
            TWO,
            r"^train hangs: rank 1 of 2 did not come to where the others waited",
            "",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"rank": 0, "act": "error"}, TWO, r"^the loss is not a number$", "", marks=pytest.mark.slow
        ),
        pytest.param(
            {"rank": 1, "act": "error"},
            TWO,
            r"^Rank 1 of 2: the loss is not a number$",
            "",
            marks=pytest.mark.slow,
        ),
        pytest.param({"act": "others fail"}, TWO, r"^the same everywhere$", "", marks=pytest.mark.slow),
        pytest.param(
            {"rank": 0, "act": "exit"},
            TWO,
            r"^Rank 0 of 2 of train failed: its process ended with code 9",
            "",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"rank": 2, "act": "kill"},
            replace(TWO, here=3),
            r"^Rank 2 of 3 of train was killed",
            "",
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda value: f"{value.get('rank', 'all')}-{value['act']}" if isinstance(value, dict) else "",
)
def test_one_that_fails_or_hangs_is_named_and_all_end(
    scene: dict[str, Any],
    ranks: RankPlacement,
    message: str,
    shown: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    log: list[str] = []
    began = time.monotonic()
    with pytest.raises(StageError, match=message) as raised:
        group(tmp_path / "out", ranks, {"step": 1, **scene}, log=log.append).run()
    took = time.monotonic() - began
    assert not running(tmp_path / "out")
    assert took < 60 + ranks.timeout
    said = capfd.readouterr().err
    assert shown in said
    assert not re.search(r"gloo|peer", f"{raised.value} {said}"), "the noise of those who lost it"
    if scene["act"] == "sleep":
        assert any(re.search(r"^  \[rank 1\] .*ranked\.py\", line \d+ in act", text) for text in log), (
            "where it was"
        )


def start(directory: Path, scene: dict[str, Any]) -> "subprocess.Popen[str]":
    """A launcher in a process of its own, once its training of two steps."""
    directory.mkdir()
    words = [
        sys.executable,
        "-m",
        "tests.launch.ranked",
        str(directory),
        "2",
        json.dumps({"steps": 10**6, "pause": 0.01, **scene}),
    ]
    with (directory / "said").open("w") as said:
        process = subprocess.Popen(
            words,
            env=environment({"OMP_NUM_THREADS": "1"}),
            cwd=REPO,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            # a suite in the background ignores it, and children inherit that
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    for _ in range(6000):
        assert process.poll() is None, (directory / "said").read_text(encoding="utf-8")
        if (directory / "step").exists():
            return process
        time.sleep(0.01)
    raise AssertionError("it does not step")


def free(lock: Path) -> bool:
    return subprocess.run(["flock", "-n", lock, "true"], check=False).returncode == 0


def test_sigterm_stops_all_after_the_same_step(tmp_path: Path) -> None:
    """The signals with which Slurm and submitit warn all processes of a job end none."""
    process = start(tmp_path / "out", {})
    for file in (tmp_path / "out").glob("pid-*"):
        for warning in (signal.SIGUSR1, signal.SIGUSR2):
            os.kill(int(file.read_text(encoding="utf-8")), warning)
    process.terminate()
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert re.match(r"Interrupted: stopped after step \d+, in \[True, False\]", told)
    assert not running(tmp_path / "out")


def test_none_outlives_a_launcher_that_was_killed(tmp_path: Path) -> None:
    """Also not one that is busy and looks at nothing. The lock is held until the last has ended."""
    out = tmp_path / "out"
    process = start(out, {"rank": 1, "step": 20, "act": "sleep"})
    while int((out / "step").read_text(encoding="utf-8") or 0) < 19:
        time.sleep(0.01)
    assert not free(out / "lock")
    process.kill()
    process.communicate()
    began = time.monotonic()
    while running(out) or not free(out / "lock"):
        assert time.monotonic() - began < 20, f"ranks {running(out)}, lock {free(out / 'lock')}"
        time.sleep(0.05)


def test_a_stranger_on_the_port_changes_nothing(tmp_path: Path) -> None:
    """Whoever has not the token is not heard, whatever else it says. Here the launcher is a thread, which
    gets no signals.
    """
    made = group(tmp_path / "out", TWO, {})
    host, port = made._server._listener.getsockname()
    assert host == "127.0.0.1"
    strangers = [socket.create_connection(("127.0.0.1", port)) for _ in range(4)]
    for stranger, text in zip(
        strangers, (b"", b'{"token": "wrong", "rank": 0}\n', b"[" * 5000 + b"\n", b"{}\n"), strict=True
    ):
        stranger.sendall(text + b'{"error": "StageError", "message": "a lie", "lost": false}\n')
    with ThreadPoolExecutor() as threads:
        assert threads.submit(made.run).result()["tenth"] == [0.1, 0.2]
    for stranger in strangers:
        stranger.close()


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """srun, scontrol and ssh that reach the other machine within this one; `words` is what they were
    called with.
    """
    for name, value in fake_machines(tmp_path / "fakes").items():
        monkeypatch.setenv(name, value)
    return tmp_path / "fakes"


def on_two_machines(out: Path, launcher: str, scene: dict[str, Any], log: list[str]) -> Group:
    machine = Machine(device="cpu", nodes=2, processes=1, timeout=60)
    if launcher == "ssh":
        (out.parent / "hosts").write_text("127.0.0.1\n127.0.0.2\n", encoding="utf-8")
        ranks = place_ranks(replace(machine, hostfile=str(out.parent / "hosts")), None, {})
    else:
        ranks = place_ranks(
            machine, None, {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "both", "SLURMD_NODENAME": "127.0.0.1"}
        )
    assert ranks is not None
    assert ranks.hosts == ("127.0.0.1", "127.0.0.2")
    return group(out, ranks, scene, log=log.append)


@pytest.mark.parametrize("launcher", ["ssh", "slurm"])
def test_two_machines_train_together(launcher: str, fakes: Path, tmp_path: Path) -> None:
    log: list[str] = []
    made = on_two_machines(tmp_path / "out", launcher, {}, log)
    facts = made.run()
    assert facts["tenth"] == [0.1, 0.2]
    assert "  [rank 1] a word of its own" in log
    words = (fakes / "words").read_text(encoding="utf-8")
    assert "127.0.0.2" in words
    assert "tuner.launch.remote" in words
    assert made._server._token not in words
    assert not running(tmp_path / "out")


def test_a_process_that_dies_on_another_machine_is_named(
    fakes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log: list[str] = []
    with pytest.raises(
        StageError, match=r"^train failed: rank 1 of 2 on 127\.0\.0\.2 ended with ValueError: a bug of ours"
    ):
        on_two_machines(tmp_path / "out", "ssh", {"rank": 1, "step": 1, "act": "bug"}, log).run()
    assert "[rank 1] ValueError: a bug of ours" in capfd.readouterr().err
    assert not running(tmp_path / "out")


def test_a_machine_that_can_not_be_reached_is_named(
    fakes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (fakes / "ssh").write_text(
        "#!/bin/sh\necho 'Permission denied (publickey).' >&2\nexit 255\n", encoding="utf-8"
    )
    log: list[str] = []
    with pytest.raises(
        StageError,
        match=(
            r"^train was not started on 127\.0\.0\.2: ssh ended with code 255; .* reached without a password"
        ),
    ):
        on_two_machines(tmp_path / "out", "ssh", {}, log).run()
    assert "Permission denied (publickey)." in capfd.readouterr().err
    assert not running(tmp_path / "out")


@pytest.mark.slow
def test_a_second_signal_ends_all_at_once(tmp_path: Path) -> None:
    """One of them never comes to the end of its step."""
    process = start(tmp_path / "out", {"rank": 1, "step": 5, "act": "sleep"})
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=20)
    assert process.returncode == Interrupted.exit_code
    assert "ended at once" in told
    assert not running(tmp_path / "out")
