"""A small training in several processes, without a model: what the tests of the launcher start. The scene
that it plays lies beside its output.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.conftest import REPO, environment
from tuner.config.build import dump_config
from tuner.config.schema import Config, Data, Machine, Model
from tuner.errors import Interrupted, StageError, TunerError
from tuner.launch.group import Group
from tuner.launch.members import RankPlacement, place_ranks
from tuner.pipeline.stage import Context, Stage
from tuner.stages.worker import main as worker

FAKES = {
    "scontrol": '#!/bin/sh\n[ "$*" = "show hostnames both" ] && printf "127.0.0.2\\n127.0.0.1\\n"\n',
    "srun": (
        '#!/bin/sh\necho "$@" >> "$FAKES/words"\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec env -u'
        ' CUDA_VISIBLE_DEVICES "$@"\n'
    ),
    "ssh": (
        '#!/bin/sh\necho "$@" >> "$FAKES/words"\nwhile [ "$1" = -o ]; do shift 2; done\nshift\nexec env -i'
        ' PATH="$PATH" sh -c "$*"\n'
    ),
}
"""programs that reach the other machine, 127.0.0.2, within this one"""


def play(ctx: Context) -> dict[str, Any]:
    """Steps until there is a stop, as the real loop does them; at one of them one process does what its
    scene says.
    """
    import torch

    from tuner.train.distributed import from_environment
    from tuner.train.stop_signal import Stop

    torch.set_num_threads(1)
    scene = json.loads((ctx.out / "scene.json").read_text(encoding="utf-8"))
    with Stop(ctx.out) as stop, from_environment(torch.device("cpu"), timeout=scene["timeout"]) as world:
        (ctx.out / f"pid-{world.rank}").write_text(str(os.getpid()), encoding="utf-8")
        if world.rank:
            print("a word of its own", file=sys.stderr, flush=True)
        for step in range(scene["steps"]):
            if world.rank == scene.get("rank") and step == scene.get("step"):
                act(scene["act"])
            wishes = world.gather(stop.requested)
            if world.first:
                (ctx.out / "step").write_text(str(step), encoding="utf-8")
            if any(wishes):
                raise Interrupted(f"stopped after step {step}, in {wishes}")
            time.sleep(scene.get("pause", 0.0))
        if scene.get("act") == "others fail":  # all but the first, at once
            raise StageError("the same everywhere")
        tenth, mixed = (
            world.gather(0.1 * (world.rank + 1)),
            world.gather({"rank": world.rank, "text": "数据" * 50 * world.rank, "nothing": None}),
        )
        return {
            "tenth": tenth,
            "mixed": mixed,
            "sum": world.sum([1e16, -1.0 if world.rank else 1.0]),
            "environment": dict(os.environ),
        }


def act(what: str) -> None:
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "sleep":
        time.sleep(1000)
    elif what == "bug":
        raise ValueError("a bug of ours")
    elif what == "error":
        raise StageError("the loss is not a number")
    elif what == "exit":
        os._exit(9)


def group(
    directory: Path,
    ranks: RankPlacement,
    scene: Mapping[str, Any],
    *,
    locks: Sequence[int] = (),
    log: Callable[[str], None] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Group:
    """The processes, not yet started."""
    directory.mkdir(exist_ok=True)
    (directory / "scene.json").write_text(
        json.dumps({"steps": 3, "timeout": ranks.timeout, **scene}), encoding="utf-8"
    )
    config = Config(model=Model(path="model"), data=Data(path=("rows.jsonl",)))
    job = {
        "module": "tests.launch.ranked",
        "stage": "train",
        "config": dump_config(config),
        "inputs": {},
        "out": str(directory),
        "run": str(directory),
    }
    return Group(
        job,
        ranks,
        locks=locks,
        environ=environment({"OMP_NUM_THREADS": "1", **(environ or {})}),
        log=log or (lambda _: None),
    )


def fake_machines(directory: Path) -> dict[str, str]:
    """Write srun, scontrol and ssh into a directory, where they note in `words` what they are called with;
    returns the environment that has them.
    """
    directory.mkdir()
    for name, text in FAKES.items():
        (directory / name).write_text(text, encoding="utf-8")
        (directory / name).chmod(0o755)
    return {"PATH": f"{directory}{os.pathsep}{os.environ['PATH']}", "FAKES": str(directory)}


def launcher(directory: Path, ranks: RankPlacement, scene: str) -> int:
    """A launcher in a process of its own: it prints what became of the training."""
    from tuner.launch.signals import listen

    listen()
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT)
    import fcntl

    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        facts = group(directory, ranks, json.loads(scene), locks=[lock]).run()
        print(f"Done: {facts['tenth']} over {facts['environment'].get('GLOO_SOCKET_IFNAME')}", flush=True)
    except (TunerError, Interrupted) as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    os.chdir(REPO)
    if len(sys.argv) == 4:
        sys.exit(launcher(Path(sys.argv[1]), RankPlacement(here=int(sys.argv[2]), timeout=20), sys.argv[3]))
    if len(sys.argv) == 5:  # a host file, or `slurm`
        file = None if sys.argv[4] == "slurm" else sys.argv[4]
        found = place_ranks(
            Machine(
                nodes=2,
                processes=int(sys.argv[2]),
                device="cpu",
                timeout=json.loads(sys.argv[3]).get("timeout", 20),
                hostfile=file,
            ),
            None,
            os.environ,
        )
        assert found is not None
        sys.exit(launcher(Path(sys.argv[1]), found, sys.argv[3]))
    sys.exit(worker([Stage(name="train", version=1, run=play)]))
