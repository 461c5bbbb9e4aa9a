"""`stop RUN`: a run that is training saves and ends. What it saved can be used, and the same command
continues it.
"""

import time
from typing import TYPE_CHECKING

from tuner.cli.on_a_run import find_one
from tuner.cli.verb import CommandLine, Verb
from tuner.errors import ConfigError

if TYPE_CHECKING:
    from tuner.pipeline.run import RunDirectory


def run(line: CommandLine) -> int:
    return stop(find_one(line))


def stop(run: "RunDirectory") -> int:
    """Ask the run to stop, wait until it has saved, and say what can be done now. Raises ConfigError when
    it is not training.
    """
    from tuner.pipeline.advice import command_on
    from tuner.pipeline.inherit import load_config
    from tuner.pipeline.run import store_of
    from tuner.train.checkpoints import steps
    from tuner.train.stop_signal import STOP_FILE

    store, key = store_of(load_config(run)), run.key("train") or "-"
    holder, partial = store.holder(key), store.partial(key)
    if holder is None or not partial.is_dir():
        state = (
            "is finished"
            if store.find(key)
            else f"was stopped at {_reached(run)}"
            if steps.saved_steps(partial)
            else "is not training"
        )
        raise ConfigError(f"{run.dir.name} {state}: there is nothing to stop.")
    print(f"asking {holder} to save and stop", flush=True)
    while store.holder(key) == holder:
        # Asked again and again: a worker that is just starting clears a request made of the one before it.
        try:
            (partial / STOP_FILE).touch()
        except FileNotFoundError:
            break  # it was published this moment
        except PermissionError as error:
            raise ConfigError(
                f"{run.dir.name} is being trained by another user ({holder}), and only they can stop it."
            ) from error
        time.sleep(0.1)
    (partial / STOP_FILE).unlink(missing_ok=True)
    if store.find(key):
        print(f"{run.dir.name} had just finished")
        return 0
    print(
        f"{run.dir.name} is stopped at {_reached(run)}\n"
        f"  use what is there   {command_on(run, 'evaluate')}   (or convert, merge, chat)\n"
        f"  continue training   the same command again"
    )
    return 0


def _reached(run: "RunDirectory") -> str:
    from tuner.train.checkpoints import steps

    found = steps.saved_steps(run.path("train"))
    return f"step {found[-1].step}" if found else "no step yet"


VERB = Verb(
    name="stop",
    words="RUN",
    help="end a run that is training, once it has saved; later stages can use what it saved",
    run=run,
    examples={
        "stop last": "the run that trains",
        "stop support": "one of that name",
    },
    on_a_run=True,
)
