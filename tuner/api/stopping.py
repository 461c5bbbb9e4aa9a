"""Ending a run that is training in another process, once it has saved."""

import time
from collections.abc import Callable

from tuner.errors import ConfigError
from tuner.pipeline.inherit import load_config
from tuner.pipeline.run import RunDirectory, store_of
from tuner.train.checkpoints import steps
from tuner.train.stop_signal import STOP_FILE


def stop_run(run: RunDirectory, tell: Callable[[str], None]) -> str | None:
    """Ask the run to stop, and wait until it has saved; returns how far it is, or None where it had just
    finished. Raises ConfigError when it is not training.
    """
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
    tell(f"asking {holder} to save and stop")
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
    return None if store.find(key) else _reached(run)


def _reached(run: RunDirectory) -> str:
    found = steps.saved_steps(run.path("train"))
    return f"step {found[-1].step}" if found else "no step yet"
