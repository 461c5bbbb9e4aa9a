"""A stage in a process of its own, or in several that train: memory and GPUs are given back when it ends, and
the orchestrator never imports torch.

The child inherits the descriptor of the artifact's lock. A flock belongs to the open file, so as long as the
child lives the artifact stays locked, even when its parent was killed: nobody else can write to the same
partial directory.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tuner.config.build import dump_config
from tuner.config.schema import Config
from tuner.errors import ConfigError, Interrupted
from tuner.hardware.limits import why_ended
from tuner.launch.failures import ended_at_once, exit_error
from tuner.launch.group import Group
from tuner.launch.members import RankPlacement, error_class
from tuner.launch.processes import HOME, WORKER
from tuner.launch.signals import answer_stop, count_signals, without_ctrl_c
from tuner.launch.watch import Watch

LOOK = 0.1
"""seconds between two looks at the signals that came"""
AT_ONCE = 0.3
"""seconds in which a stage ends that has nothing to save"""
SHOW_CURSOR = "\x1b[?25h"
EXTERNAL_LAUNCHERS = {
    "torchrun": ("WORLD_SIZE", "RANK"),
    "srun": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    "mpirun": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
}
"""what starts a command several times → the variables in which it says how often, and which one this is"""


def launch(
    stage: str,
    config: Config,
    inputs: Mapping[str, Any],
    out: Path,
    run: Path,
    *,
    locks: list[int],
    gpus: str | None,
    ranks: RankPlacement | None = None,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Run `stage` in a child that holds `locks` and sees the GPUs that CUDA_VISIBLE_DEVICES=`gpus` names;
    returns its facts.

    inputs   what it reads, by stage, as JSON can hold it
    run      the run's directory
    ranks    the processes, where there are several
    log      takes what those say, a line at a time

    Raises what the child raised, or StageError when it died.
    """
    job = {
        "module": WORKER,
        "stage": stage,
        "config": dump_config(config),
        "inputs": inputs,
        "out": str(out.absolute()),
        "run": str(run.absolute()),
    }
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in (HOME, os.environ.get("PYTHONPATH")) if p),
    }
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpus
    if ranks:
        return Group(job, ranks, locks=locks, environ=environment, log=log).run()
    # of whatever started this command; this child trains alone
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        environment.pop(name, None)
    with Watch(config.machine) as watch, count_signals() as signals:
        with without_ctrl_c():  # it reaches this process too, which passes it on
            child = subprocess.Popen(
                [sys.executable, "-m", WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[*locks, watch.board.descriptor],
                env=environment | watch.environment,
            )
        told = json.dumps(job | {"parent": os.getpid()}).encode()
        answer = _converse(child, told, signals, watch, partial(answer_stop, stage, log))
        if child.returncode < 0 and sys.stderr.isatty():
            sys.stderr.write(SHOW_CURSOR)  # it died while it drew
        if not signals and (why := why_ended(0, child.returncode, watch.board)):
            raise why
    # it had just finished: nothing was lost, and the next run finds it complete
    if signals and child.returncode == 0:
        raise Interrupted(f"Stopped after {stage}; run the same command again to go on.")
    return _result(stage, child.returncode, answer, at_once=len(signals) > 1)


def refuse_external_launcher(environ: Mapping[str, str]) -> None:
    """Raise ConfigError where something has started this very command several times: it
    starts the processes itself.
    """
    for name, (size, rank) in EXTERNAL_LAUNCHERS.items():
        count = environ.get(size, "")
        if count.isdecimal() and int(count) > 1 and rank in environ:
            raise ConfigError(
                f"{name} has started this command {count} times ({size}={count}, and this is "
                f"{rank}={environ[rank]}), but tuner starts the processes of a run itself, and does "
                "everything else once. Run `python -m tuner …` once, with machine.gpus=N for the GPUs of "
                "this machine, and machine.nodes=N for more machines (in an sbatch script without srun, or "
                "with machine.hostfile=FILE)."
            )


def _converse(
    child: "subprocess.Popen[bytes]",
    job: bytes,
    signals: list[int],
    watch: Watch,
    told_to_stop: Callable[[], object],
) -> bytes:
    """Give the child its job and wait for its answer. The first signal that comes meanwhile asks it to save
    and end, which it is `told_to_stop` for where it does not end in a moment; a second one ends it at once.
    Raises DataError where it had to be ended for what it read.

    Pipes are served by a thread, since signals come up in the main one, between any two instructions.
    """
    answers: list[bytes] = []
    talk = threading.Thread(target=lambda: answers.append(child.communicate(job)[0]), daemon=True)
    talk.start()
    passed_on = 0
    answer_at: float | None = None
    while talk.is_alive():
        talk.join(LOOK)
        if answer_at is not None and time.monotonic() > answer_at and talk.is_alive():
            told_to_stop()
            answer_at = None
        if why := watch.look():
            watch.end(child.pid)
            talk.join()
            raise why
        if len(signals) > passed_on:
            passed_on += 1
            answer_at = time.monotonic() + AT_ONCE if passed_on == 1 else None
            (child.terminate if passed_on == 1 else child.kill)()
    return answers[0]


def _result(stage: str, code: int, answer: bytes, *, at_once: bool) -> dict[str, Any]:
    """The facts, or the error that the child tells of; `at_once`: it was asked twice to stop."""
    try:
        result = json.loads(answer)
    except ValueError:
        result = {}
    if code == 0 and "facts" in result:
        facts: dict[str, Any] = result["facts"]
        return facts
    if "error" in result:
        raise error_class(result)(result["message"])
    raise ended_at_once(stage) if at_once else exit_error(stage, code)
