"""Saving while training goes on: what is saved is the step as it was, whole or not there, whatever is killed,
full or late.

The seed of the kills is printed; TUNER_TEST_SEED=N repeats it.
"""

import os
import random
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest
import torch

from tests.conftest import environment
from tests.train.checkpoints import saving
from tests.train.checkpoints.saving import Job, Processes, ended
from tuner.errors import DataError, Interrupted, StageError
from tuner.train.checkpoints import removal, sharded, steps
from tuner.train.checkpoints import save as checkpoint
from tuner.train.checkpoints.copies import HostCopies, available_memory
from tuner.train.checkpoints.save import Saver
from tuner.train.engine import State

SEED = int(os.environ.get("TUNER_TEST_SEED") or random.SystemRandom().randrange(10**6))
KILLS = 60 if os.environ.get("TUNER_TEST_ALL") else 6


def state(value: float) -> State:
    return State(
        weights={"w": torch.full((3, 2), value)},
        optimizer={"w/step": torch.tensor(value), "w/exp_avg": torch.zeros(3, 2)},
    )


def save(saver: Saver, step: int, held: State | None = None, *, optimizer: bool = True) -> None:
    saver.save(held or state(step), step=step, tokens=10 * step, scores={"loss": 2.0}, optimizer=optimizer)


def save_and_fail(saver: Saver, held: State, error: Exception) -> None:
    with saver:
        save(saver, 1, held)
        raise error


def poll_on(saver: Saver) -> None:
    for _ in range(1000):
        saver.poll()
        time.sleep(0.01)


def numbers(out: Path) -> list[int]:
    return [found.step for found in steps.saved_steps(out)]


def test_round_trip(tmp_path: Path) -> None:
    assert steps.newest(tmp_path) is None
    with Saver(tmp_path) as saver:
        save(saver, 9)
        save(saver, 10)
    found = steps.newest(tmp_path)
    assert found is not None
    assert (found.step, found.tokens, found.dir.name, found.resumable) == (10, 100, "step-000010", True)
    read = sharded.open_step(found)
    assert torch.equal(read.weights["w"], state(10).weights["w"])
    assert read.optimizer["w/step"].item() == 10
    assert read.optimizer["w/step"].shape == ()
    assert sorted(path.name for path in found.dir.iterdir()) == [
        "optimizer.safetensors",
        "state.json",
        "weights.safetensors",
    ]


def test_a_step_that_nothing_goes_on_from_has_no_optimizer(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state(1), step=1, tokens=1, scores={}, optimizer=False)
    (found,) = steps.saved_steps(tmp_path)
    assert not found.resumable
    assert dict(sharded.open_step(found).optimizer) == {}


def test_views_and_tied_tensors_are_saved_as_they_are_seen(tmp_path: Path) -> None:
    matrix = torch.randn(4, 6)
    weights = {"w": matrix, "t": matrix.T, "tied": matrix, "row": matrix[1:3, ::2], "half": matrix.bfloat16()}
    checkpoint.save(
        tmp_path, State(weights=weights, optimizer={}), step=1, tokens=1, scores={}, optimizer=False
    )
    read = sharded.open_step(steps.saved_steps(tmp_path)[0]).weights
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("room", [True, False], ids=["copied", "no room for copies"])
def test_what_is_saved_is_the_step_though_training_went_on(
    tmp_path: Path, room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not room:
        monkeypatch.setattr(checkpoint, "available_memory", lambda: 0.0)
    held = State(weights={"w": torch.zeros(500_000)}, optimizer={"w/exp_avg": torch.zeros(500_000)})
    with Saver(tmp_path) as saver:
        for step in range(1, 6):
            held.weights["w"].fill_(step)
            held.optimizer["w/exp_avg"].fill_(10 * step)
            save(saver, step, held)
            assert room == (saver._pending is not None)
            held.weights["w"].fill_(-1)
            held.optimizer["w/exp_avg"].fill_(-1)
    for found in steps.saved_steps(tmp_path):
        read = sharded.open_step(found)
        assert read.weights["w"].unique().tolist() == [found.step]
        assert read.optimizer["w/exp_avg"].unique().tolist() == [10 * found.step]
    assert numbers(tmp_path) == [1, 2, 3, 4, 5]


def test_save_returns_while_the_disk_is_still_writing(tmp_path: Path) -> None:
    """The disk is a pipe, which takes nothing until somebody reads."""
    (tmp_path / "steps" / "step-000001.tmp").mkdir(parents=True)
    saver = Saver(tmp_path, rank=1, of=2)
    pipe = tmp_path / "steps" / "step-000001.tmp" / "weights-00002-of-00002.safetensors"
    os.mkfifo(pipe)
    # more than a pipe holds
    save(saver, 1, State(weights={"w": torch.zeros(1_000_000)}, optimizer={}), optimizer=False)
    time.sleep(0.05)
    saver.poll()  # neither waits nor complains
    assert saver._pending is not None
    assert not saver._pending.done()
    reader = os.open(pipe, os.O_RDONLY)
    assert select.select([reader], [], [], 10)[0]
    assert os.read(reader, 8)
    os.close(reader)
    with pytest.raises(StageError, match=r"Step 1 could not be saved in .*Broken pipe"):
        saver.wait()


def test_copies_are_taken_once(tmp_path: Path) -> None:
    copies, held = HostCopies(), {"weights": {"w": torch.zeros(3)}}
    first = copies.take(held, free=1e9)
    assert copies.take(held, free=0.0) == first  # what is there needs no room
    assert first is not None
    assert first["weights"]["w"].data_ptr() != held["weights"]["w"].data_ptr()
    assert (
        copies.take({"weights": {"w": torch.zeros(4)}, "optimizer": {"w": torch.zeros(3)}}, free=4.0) is None
    )


def test_the_memory_that_is_free_is_less_than_there_is() -> None:
    assert 0 < available_memory() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_steps_are_pruned_when_the_new_one_is_there(tmp_path: Path) -> None:
    seen = []

    def prune() -> None:
        seen.append(numbers(tmp_path))
        removal.prune(tmp_path, keep=2, by="loss", pinned=None, resumable=1)

    with Saver(tmp_path, prune=prune) as saver:
        for step in range(1, 5):
            save(saver, step)
    assert seen == [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4]]
    assert numbers(tmp_path) == [1, 3, 4]


def test_a_disk_that_refuses_is_noticed_at_the_latest_at_the_next_save(tmp_path: Path) -> None:
    (tmp_path / "steps").write_text("in the way", encoding="utf-8")
    words = r"Step 1 could not be saved in .*steps: .*the same command continues"
    with pytest.raises(StageError, match=words), Saver(tmp_path) as saver:
        save(saver, 1)
    saver = Saver(tmp_path)
    save(saver, 1)
    with pytest.raises(StageError, match=words):
        save(saver, 2)
    save(saver, 1)
    with pytest.raises(StageError, match=words):
        poll_on(saver)


def test_of_two_errors_the_first_is_shown_but_an_interruption_never_hides_a_failed_save(
    tmp_path: Path,
) -> None:
    (tmp_path / "steps").write_text("in the way", encoding="utf-8")
    with pytest.raises(ValueError, match="not finite"):
        save_and_fail(Saver(tmp_path), state(1), ValueError("not finite"))
    with pytest.raises(StageError, match="Step 1 could not be saved"):
        save_and_fail(Saver(tmp_path), state(1), Interrupted("stopped after step 1, which is saved"))


def test_older_steps_that_cannot_be_removed_are_said(tmp_path: Path) -> None:
    def prune() -> None:
        (tmp_path / "nothing").rmdir()

    with (
        pytest.raises(
            StageError, match=r"Step 1 is saved, but older ones can't be removed from .*steps: .*nothing"
        ),
        Saver(tmp_path, prune=prune) as saver,
    ):
        save(saver, 1)
    assert numbers(tmp_path) == [1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("room", [True, False], ids=["copied", "no room for copies"])
def test_what_is_saved_of_a_gpu_is_the_step_though_training_went_on(
    tmp_path: Path, room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """135 million numbers and their moments, as of full fine-tuning; the GPU is busy when the save begins,
    and changes the tensors right after.
    """
    if not room:
        monkeypatch.setattr(checkpoint, "available_memory", lambda: 0.0)
    whole = [torch.empty(300, 450_000, device="cuda") for _ in range(3)]
    held = State(
        weights={f"w{i}": row for i, row in enumerate(whole[0])},
        optimizer={f"w{i}/m{k}": row for k, rows in enumerate(whole[1:]) for i, row in enumerate(rows)},
    )
    busy = torch.randn(8192, 8192, device="cuda")
    with Saver(
        tmp_path, prune=lambda: removal.prune(tmp_path, keep=1, by="none", pinned=None, resumable=1)
    ) as saver:
        for step in (1, 2, 3):
            for _ in range(20):
                busy @ busy
            for tensor in whole:
                tensor.fill_(step)
            began = time.monotonic()
            save(saver, step, held)
            held_for = time.monotonic() - began
            for tensor in whole:
                tensor.fill_(-1)
            torch.cuda.synchronize()
            saver.wait()
            print(
                f"room {room}: the loop was held for {held_for:.3f} s, the step was on the disk after "
                f"{time.monotonic() - began:.2f} s"
            )
            read = sharded.open_step(steps.saved_steps(tmp_path)[-1])
            assert all(
                (tensor == step).all() for tensor in (*read.weights.values(), *read.optimizer.values())
            )


# Several processes


def part(step: int, rank: int, of: int, *, numel: int = 12) -> State:
    own = slice(rank * numel // of, (rank + 1) * numel // of)
    whole = step * torch.arange(numel, dtype=torch.float32)
    moments = {f"w/exp_avg@{own.start}": -whole[own]} | (
        {"w/step": torch.tensor(float(step))} if rank == 0 else {}
    )
    return State(
        weights={f"w@{own.start}": whole[own]}, optimizer=moments, shapes={"w": (3, 4), "w/exp_avg": (3, 4)}
    )


@pytest.mark.parametrize("of", [2, 3, 4])
def test_processes_that_share_the_tensors_save_one_step(tmp_path: Path, of: int) -> None:
    savers = [Saver(tmp_path, rank=rank, of=of, timeout=10) for rank in range(of)]
    for step in (1, 2):
        for rank in reversed(range(of)):
            save(savers[rank], step, part(step, rank, of))
    with ThreadPoolExecutor(of) as pool:
        list(pool.map(Saver.wait, savers))
    for found in steps.saved_steps(tmp_path):
        assert found.whole()
        assert len(found.files) == 2 * of
        read = sharded.open_step(found)
        assert torch.equal(read.weights["w"], found.step * torch.arange(12.0).view(3, 4))
        assert torch.equal(read.optimizer["w/exp_avg"], -found.step * torch.arange(12.0).view(3, 4))
        assert read.optimizer["w/step"].item() == found.step
    assert numbers(tmp_path) == [1, 2]
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".safetensors", ".json"}
    assert not list(tmp_path.rglob("rank-*"))


def test_a_process_with_nothing_of_its_own_takes_part(tmp_path: Path) -> None:
    savers = [Saver(tmp_path, rank=rank, of=2, timeout=10) for rank in range(2)]
    save(savers[0], 1)
    save(savers[1], 1, State(weights={}, optimizer={}))
    savers[0].wait()
    read = sharded.open_step(steps.saved_steps(tmp_path)[0])
    assert torch.equal(read.weights["w"], state(1).weights["w"])


def test_a_process_that_does_not_come_is_named(tmp_path: Path) -> None:
    began = time.monotonic()
    first, third = (Saver(tmp_path, rank=rank, of=4, timeout=0.3) for rank in (0, 2))
    save(third, 1, part(1, 2, 4))
    save(first, 1, part(1, 0, 4))
    with pytest.raises(
        StageError,
        match=r"its part of processes 1, 3 of 4 \(the first is 0\) was not there 0.3 s \(machine.timeout\)",
    ):
        first.wait()
    assert 0.3 < time.monotonic() - began < 5
    assert not list((tmp_path / "steps").iterdir())


def test_where_training_has_failed_nobody_waits_long_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "GRACE", 0.2)
    began = time.monotonic()
    with pytest.raises(ValueError, match="a collective broke"):
        save_and_fail(
            Saver(tmp_path, rank=0, of=2, timeout=600), part(1, 0, 2), ValueError("a collective broke")
        )
    assert time.monotonic() - began < 5


def test_what_went_wrong_in_another_process_is_told_by_the_first(tmp_path: Path) -> None:
    first, second = (Saver(tmp_path, rank=rank, of=2, timeout=10) for rank in range(2))
    (tmp_path / "steps" / "step-000001.tmp" / "weights-00002-of-00002.safetensors").mkdir(parents=True)
    save(second, 1, part(1, 1, 2))
    save(first, 1, part(1, 0, 2))
    with pytest.raises(StageError, match=r"Process 1 of 2 says: .*Is a directory"):
        first.wait()
    with pytest.raises(StageError, match=r"Step 1 could not be saved in .*Is a directory"):
        second.wait()
    assert numbers(tmp_path) == []


def test_parts_that_make_no_whole_are_refused_when_they_are_saved(tmp_path: Path) -> None:
    first, second = (Saver(tmp_path, rank=rank, of=2, timeout=10) for rank in range(2))
    save(first, 1, part(1, 0, 2))
    save(second, 1, part(1, 2, 3))
    with pytest.raises(DataError, match=r"weights-00002-of-00002\.safetensors from 8 on: they leave a gap"):
        first.wait()
    assert numbers(tmp_path) == []


# Kills and full disks, in processes of their own


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    with Processes(environment()) as started:
        yield started


names = count()


def job(out: Path, *, begin: int, end: int = 10**6, of: int = 1, rank: int = 0, **more: object) -> Job:
    if rank == 0:
        out.with_name(f"started-{begin}").unlink(missing_ok=True)
    return Job(
        out=str(out),
        begin=begin,
        end=end,
        of=of,
        rank=rank,
        said=str(out.parent / f"said-{next(names)}"),
        **more,
    )  # type: ignore[arg-type]


def said(job: Job) -> str:
    path = Path(job.said)
    return path.read_text(encoding="utf-8") if path.exists() else "killed"


def all_whole(out: Path) -> dict[str, int]:
    """Each step there is whole and holds its own number everywhere; returns the inodes of their files."""
    for directory in (out / "steps").glob("step-*[0-9]"):
        found = steps.read_step(directory)
        assert found is not None, f"{directory} (seed {SEED})"
        assert found.whole(), f"{found.damaged()} (seed {SEED})"
        read = sharded.open_step(found)
        tensors = [*read.weights.values(), *(read.optimizer.values() if found.resumable else [])]
        assert {value for tensor in tensors for value in tensor.unique().tolist()} == {found.step}, (
            f"{directory} (seed {SEED})"
        )
    return {str(path): path.stat().st_ino for path in (out / "steps").glob("step-*[0-9]/*.safetensors")}


POINTS = [
    ("open", r"weights.*safetensors", 1),
    ("open", r"optimizer.*safetensors", 1),
    ("open", r"optimizer.*safetensors", 2),
    ("open", r"\.tmp/state\.json", 1),
    ("os.rename", r"step-\d+\.tmp", 1),
    ("os.rename", r"step-\d+$", 1),
    ("shutil.rmtree", r"\.old", 2),
    ("os.remove", "optimizer", 1),
]


@pytest.mark.parametrize("of", [1, 2])
@pytest.mark.timeout(300)
def test_kills(processes: Processes, tmp_path: Path, of: int) -> None:
    print(f"seed {SEED}")
    draw = random.Random(f"{SEED}/{of}")
    out, before, newest = tmp_path / "out", {}, 0
    for number in range(len(POINTS) + KILLS):
        point = POINTS[number] if number < len(POINTS) else None
        jobs = [
            job(out, begin=newest + 1, of=of, rank=rank, kill_at=point if rank == 0 else None)
            for rank in range(of)
        ]
        pids = [processes.start(each) for each in jobs]
        if point is None:
            time.sleep(draw.uniform(0.02, 0.5))
            os.kill(draw.choice(pids), signal.SIGKILL)
        else:
            ended(pids[0])
        for pid in pids:  # as the launcher does when one has died
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, signal.SIGKILL)
            ended(pid)
        assert [said(each) for each in jobs] == ["killed"] * of
        now = all_whole(out)
        stayed = {path: inode for path, inode in before.items() if "step-000001/weights" in path}
        assert stayed.items() <= now.items(), f"step 1, which is pinned, was touched (seed {SEED})"
        found = steps.newest(out)
        assert found is None or found.step >= newest
        newest, before = found.step if found else 0, now
    assert newest > 3
    last = [job(out, begin=newest + 1, end=newest + 2, of=of, rank=rank) for rank in range(of)]
    for pid in [processes.start(each) for each in last]:
        ended(pid)
    assert [said(each) for each in last] == ["ok"] * of
    all_whole(out)
    assert {path.suffix for path in (out / "steps").iterdir()} == {""}
    assert numbers(out) == [1, newest + 1, newest + 2][-len(numbers(out)) :]


def test_a_disk_that_is_full_ends_the_training_with_words_and_leaves_the_older_steps(
    processes: Processes, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    started = job(out, begin=1, largest=100_000)
    ended(processes.start(started))
    assert said(started).startswith("StageError: Step 2 could not be saved in ")
    assert "File too large. Make space or repair the disk; the same command continues." in said(started)
    all_whole(out)
    assert [path.name for path in (out / "steps").iterdir()] == ["step-000001"]


@pytest.mark.parametrize("full", [0, 1])
def test_a_disk_that_is_full_for_one_of_two(processes: Processes, tmp_path: Path, full: int) -> None:
    out = tmp_path / "out"
    jobs = [
        job(out, begin=1, end=3, of=2, rank=rank, timeout=3.0, largest=50_000 if rank == full else None)
        for rank in range(2)
    ]
    pids = [processes.start(each) for each in jobs]
    ended(pids[0])
    if full == 0 and Path(f"/proc/{pids[1]}").exists():
        os.kill(pids[1], signal.SIGKILL)  # as the launcher does
    ended(pids[1])
    assert "Step 2 could not be saved" in said(jobs[0])
    assert "File too large" in said(jobs[0])
    assert said(jobs[1]).startswith("StageError: Step 2 could not be saved") or full == 0
    all_whole(out)
    assert numbers(out) == [1]


def test_a_real_disk_that_is_full(processes: Processes, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    size = 2 * 4 * 4 * saving.SHAPE[0] * saving.SHAPE[1] + 40_000  # two steps and their markers, not three
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", small], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        started = job(small / "out", begin=1, keep=9)
        ended(processes.start(started))
        assert "No space left on device. Make space" in said(started)
        all_whole(small / "out")
        assert sorted(path.name for path in (small / "out" / "steps").iterdir()) == [
            "step-000001",
            "step-000002",
        ]
        # old ones go when the new one is there, so it still does not fit
        going_on = job(small / "out", begin=3, end=4, keep=1)
        ended(processes.start(going_on))
        assert "No space left" in said(going_on)
        removal.remove(small / "out" / "steps" / "step-000002")
        again = job(small / "out", begin=2, end=2)
        ended(processes.start(again))
        assert said(again) == "ok"
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)
