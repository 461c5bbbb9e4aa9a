"""A stage in a process of its own: memory and GPU are given back when it ends, and the orchestrator never imports torch.

The child inherits the descriptor of the artifact's lock. A flock belongs to the open file, so as long as the child lives the
artifact stays locked, even when its parent was killed: nobody else can write to the same partial directory.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuner import errors
from tuner.errors import Interrupted, StageError, TunerError
from tuner.freeze import thaw
from tuner.schema import Config
from tuner.stage import Input


def launch(stage: str, config: Config, inputs: Mapping[str, Input], out: Path, run: Path, locks: list[int], gpus: str | None) -> dict[str, Any]:
    """Run `stage` in a child that holds `locks` and sees the GPUs that CUDA_VISIBLE_DEVICES=`gpus` names; returns its facts.

    Raises what it raised, or StageError when it died.
    """
    job = {
        "stage": stage,
        "config": thaw(config),
        "inputs": {
            name: {"dir": str(i.dir.absolute()), "files": {n: str(p.absolute()) for n, p in i.files.items()}, "facts": dict(i.facts)}
            for name, i in inputs.items()
        },
        "out": str(out.absolute()),
        "run": str(run.absolute()),
        "parent": os.getpid(),
    }
    home = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in (home, os.environ.get("PYTHONPATH")) if p)}
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpus
    child = subprocess.Popen([sys.executable, "-m", "tuner.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=locks, env=environment)
    try:
        answer, _ = child.communicate(json.dumps(job).encode())
    except (KeyboardInterrupt, Interrupted):
        answer = _stop(child)
        if child.returncode == 0:  # it had just finished: nothing was lost, and the next run finds it complete
            raise Interrupted(f"Stopped after {stage}; run the same command again to go on.") from None
    return _result(stage, child.returncode, answer)


def _stop(child: "subprocess.Popen[bytes]") -> bytes:
    """Ask the child to save and end; a second signal to us ends it at once."""
    child.send_signal(signal.SIGTERM)
    try:
        assert child.stdout is not None
        answer = child.stdout.read()
        child.wait()
    except (KeyboardInterrupt, Interrupted):
        child.kill()
        child.wait()
        answer = b""
    return answer


def _result(stage: str, code: int, answer: bytes) -> dict[str, Any]:
    try:
        result = json.loads(answer)
    except ValueError:
        result = {}
    if code == 0 and "facts" in result:
        facts: dict[str, Any] = result["facts"]
        return facts
    if "error" in result:
        kind: type[TunerError] = getattr(errors, result["error"], StageError)
        raise kind(result["message"])
    if code in (-signal.SIGTERM, -signal.SIGINT):
        raise Interrupted(f"{stage} was stopped; run the same command again to go on.")
    if code == -signal.SIGKILL:
        raise StageError(
            f"{stage} was killed (SIGKILL). When nobody did it, the machine ran out of memory: make data.length or machine.micro_batch smaller. The same command goes on from the last checkpoint."
        )
    how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    raise StageError(f"{stage} failed: its process {how}; the reason stands above and in the run's log.")
