"""The record of a sweep: the same jobs are the same sweep, and it is found by name, digest or `last`."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tuner.config.schema import Config
from tuner.errors import ConfigError
from tuner.pipeline.run import RunDirectory
from tuner.pipeline.sweeps import SweepDirectory, SweepJob, find_sweep, sweep_directory, swept_fields

CONFIGS = [replace(Config(), seed=seed) for seed in (1, 2)]
JOBS = [SweepJob(words={"seed": str(config.seed)}, run="x") for config in CONFIGS]


def note(root: Path, name: str, age: int = 0) -> SweepDirectory:
    sweep = SweepDirectory(root / "sweeps" / name)
    sweep.write(JOBS)
    os.utime(sweep.record, (1e9 - age, 1e9 - age))
    return sweep


def test_the_same_jobs_are_the_same_sweep(tmp_path: Path) -> None:
    sweep = sweep_directory(tmp_path, JOBS, CONFIGS)
    assert sweep.name == "seed"
    assert sweep_directory(tmp_path, JOBS[::-1], CONFIGS[::-1]).dir == sweep.dir
    # neither where it is computed, nor how far, nor what became of the jobs
    again = [replace(config, until="train", redo="train", root="elsewhere") for config in CONFIGS]
    assert sweep_directory(tmp_path, [replace(job, code=0) for job in JOBS], again).dir == sweep.dir
    assert sweep_directory(tmp_path, JOBS[:1], CONFIGS[:1]).digest != sweep.digest
    refused = SweepJob(words={"seed": "x"})
    assert sweep_directory(tmp_path, [*JOBS, refused], CONFIGS).digest != sweep.digest


def test_a_sweep_is_called_as_its_jobs_are(tmp_path: Path) -> None:
    named = [replace(config, name="客服/../1") for config in CONFIGS]
    assert sweep_directory(tmp_path, JOBS, named).dir.parent == tmp_path / "sweeps"
    assert sweep_directory(tmp_path, JOBS, named).name == "客服_.._1"


def test_what_differs() -> None:
    jobs = [SweepJob(words={"algo": "lora", "seed": "1"}), SweepJob(words={"algo": "lora"})]
    assert swept_fields(jobs) == ["seed"]
    assert swept_fields(jobs[:1]) == []


def test_a_sweep_is_found(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no sweep under"):
        find_sweep(tmp_path)
    first, second = note(tmp_path, "lr-seed-12345678", age=5), note(tmp_path, "lr-87654321")
    assert find_sweep(tmp_path).dir == second.dir
    for word in ("lr-seed", "lr-seed-12345678", "1234"):
        assert find_sweep(tmp_path, word).dir == first.dir
    note(tmp_path, "lr-11111111", age=9)
    with pytest.raises(ConfigError, match="lr means 2 sweeps"):
        find_sweep(tmp_path, "lr")
    with pytest.raises(ConfigError, match=r"Did you mean lr-seed.*\? There are: lr-11111111"):
        find_sweep(tmp_path, "lr-sead")


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    sweep = note(tmp_path, "lr-87654321")
    assert sweep.jobs() == JOBS
    for text in ("", "{}", '{"jobs": [{"more": 1}]}', '{"jobs": 5}'):
        sweep.record.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match="typed again writes it anew"):
            sweep.jobs()


def test_a_run_is_found_under_another_name(tmp_path: Path) -> None:
    sweep = note(tmp_path, "lr-87654321")
    job = SweepJob(run="a-0badf00d")
    assert sweep.find_run(job) is None
    assert sweep.find_run(SweepJob()) is None
    RunDirectory(tmp_path / "runs" / "b-0badf00d").dir.mkdir(parents=True)
    (tmp_path / "runs" / "b-0badf00d" / "config.yaml").write_text("", encoding="utf-8")
    found = sweep.find_run(job)
    assert found
    assert found.name == "b"


def test_what_a_job_notes_itself_is_part_of_the_record(tmp_path: Path) -> None:
    """Whoever launched it may be gone; what the command that launched it has noted counts more."""
    sweep = SweepDirectory(tmp_path / "sweeps" / "lr-87654321")
    jobs = [SweepJob(run=f"a-0badf00{i}") for i in range(3)]
    sweep.write([*jobs[:2], replace(jobs[2], code=0)])
    sweep.note_end(jobs[1], 1, "out of memory")
    sweep.note_end(jobs[2], 75, "stopped")
    assert sweep.jobs() == [
        jobs[0],
        replace(jobs[1], code=1, message="out of memory"),
        replace(jobs[2], code=0),
    ]
    sweep.ask_to_stop()
    assert sweep.stopping
    sweep.forget_ends(jobs)
    assert not sweep.stopping
    assert sweep.end(jobs[1]) is None
    (tmp_path / "sweeps" / "lr-87654321" / "jobs" / "0badf000.json").write_text("{", encoding="utf-8")
    assert sweep.jobs()[:2] == jobs[:2]
