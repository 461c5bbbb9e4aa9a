"""The child's side of a stage: `python -m tuner.stages.worker` reads a job from standard input and answers on
standard output.

A training run in several processes has this in each of them; they answer over their connections to the
launcher.
The config arrives resolved; Hydra is never imported here.
"""

import faulthandler
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tuner.config import deepspeed
from tuner.config.build import build_config
from tuner.config.schema import Config
from tuner.config.view import View
from tuner.errors import DataError, Interrupted, TunerError
from tuner.hardware.mistakes import mistake
from tuner.hardware.optional_imports import block_optional_imports
from tuner.hardware.parent import end_with_parent
from tuner.launch import channel_client
from tuner.launch.channel_client import ChannelClient
from tuner.pipeline.run import RunDirectory
from tuner.pipeline.stage import Context, Input, Stage
from tuner.progress import quiet, verbose, waiting
from tuner.report.printable import visible
from tuner.stages import OF_VERBS, STAGES


def main(stages: Sequence[Stage] = STAGES) -> int:
    # Standard output carries the answer alone: whatever a library prints goes to standard error.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which then sends SIGTERM
    signal.signal(
        signal.SIGUSR2, signal.SIG_IGN
    )  # Slurm warns all processes of a job with it before its time is over; submitit, the parent, acts on it
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # a launcher asks where a process hangs
    job: dict[str, Any] = json.load(sys.stdin)
    end_with_parent(job["parent"])
    rank, size = (
        int(os.environ[name]) if "control" in job else default
        for name, default in (("RANK", 0), ("WORLD_SIZE", 1))
    )
    control = connect_to_launcher(job["control"], rank) if "control" in job else None
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # OpenMP's threads spin while they wait for each other: on cores that something else uses too, that halves
    # the speed and more.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Packs of other lengths leave gaps in fixed segments; segments that grow hold up to 17 % less, and
    # estimates are made for them.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    config = build_config(job["config"])
    spare_imports(config, job["stage"], size)
    run = RunDirectory(Path(job["run"]))

    def write(text: str) -> None:
        print(visible(text), file=sys.stderr, flush=True)
        if rank == 0:  # the launcher writes down what the others say
            run.log(text, shown=True)

    def say(line: str) -> None:
        if not quiet():
            write(f"  {line}")
        elif rank == 0:
            run.log(f"  {line}", shown=True)

    stage = next(s for s in (*stages, *OF_VERBS) if s.name == job["stage"])
    view = View(config, None if stage in OF_VERBS else stage.name)
    if not stage.remote.fetches(view):  # what it reads is there; nothing may be looked up behind its back
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    inputs = {name: Input.of_json(told) for name, told in job["inputs"].items()}
    context = Context(config=view, inputs=inputs, out=Path(job["out"]), say=say, run=run.dir)
    result: dict[str, Any]
    try:
        with waiting(stage.name):
            facts = stage.run(context)
        result, code = {"facts": facts if rank == 0 else {}}, 0
    except BaseException as raised:
        if isinstance(raised, SystemExit | KeyboardInterrupt):
            raise
        error = mistake(raised) or raised
        if isinstance(error, TunerError | Interrupted):
            librarys = isinstance(error, DataError) and (error is not raised or error.__cause__)
            if librarys or (verbose() and isinstance(error, TunerError)):
                run.log(traceback.format_exc().rstrip())  # what a library had to say, for whoever asks why
            result, code = {"error": type(error).__name__, "message": str(error)}, error.exit_code
        else:
            result, code = {"error": None, "message": f"{type(error).__name__}: {error}"}, 1
        if control:  # before anything closes: then the others' trouble comes after its cause
            control.tell(result | {"lost": channel_client.is_peer_lost(raised)})
        if result["error"] is None:
            # Of the trouble that another process has made, the terminal hears nothing: the launcher tells its
            # cause.
            (run.log if control and rank == 0 and channel_client.is_peer_lost(raised) else write)(
                traceback.format_exc().rstrip()
            )
    if control is None:
        with suppress(BrokenPipeError):  # who asked was killed
            json.dump(result, answer)
            answer.close()
        return code
    if code == 0:
        control.tell(result)
        return code
    sys.stderr.flush()
    os._exit(code)  # libraries would wait for the others, who wait for this one


def connect_to_launcher(control: dict[str, Any], rank: int) -> ChannelClient:
    """Connect with the launcher, which ends this process when it goes."""
    try:
        made = ChannelClient(
            control["host"], control["port"], control["token"], rank, timeout=control["timeout"]
        )
    except OSError as error:
        raise SystemExit(
            f"The launcher at {control['host']}, port {control['port']}, can't be reached from here: {error}"
        ) from error
    channel_client.set_channel(made)
    return made


def spare_imports(config: Config, stage: str, processes: int) -> None:
    """Keep what this stage does not need from being imported."""
    algo, trains = config.algo, stage == "train"
    block_optional_imports(
        bitsandbytes=algo.quant != "none" or (trains and algo.optim.kind.bitsandbytes),
        deepspeed=trains
        and deepspeed.combination_of(config.machine, algo, processes=processes).engine == "deepspeed",
    )


if __name__ == "__main__":
    sys.exit(main())
