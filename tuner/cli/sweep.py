"""A sweep: one job for each combination, through Hydra's sweeper and launcher, on one store that builds
equal stages once.
"""

import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tuner.api import to_stderr
from tuner.api.sweeps import check_sweep_disk, sweep_job_config
from tuner.cli.plan_text import sweep_summary
from tuner.config.compose import compose_sweep
from tuner.config.schema import Config
from tuner.errors import ConfigError, Interrupted, Stopped, TunerError
from tuner.launch.signals import refuse_after_stop


def sweep(words: list[str], verb: Callable[[Config], int], *, extra: Path | None, dry: bool = False) -> int:
    """Call `verb` with the config of every job; returns the highest of their exit codes. A `dry` sweep
    builds nothing.
    """
    if not dry:
        check_sweep_disk(words, extra)
    results = compose_sweep(words, partial(_job, verb), extra=extra, dry=dry)
    if not dry:
        print(sweep_summary(results))
    return max((code for _, code, _ in results), default=0)


def _job(
    verb: Callable[[Config], int], job: Config | ConfigError, overrides: list[str]
) -> tuple[str, int, str]:
    """One job: (what it is, exit code, what went wrong). Only an interruption ends the sweep."""
    title = " ".join(overrides)
    to_stderr(f"── {title}")
    try:
        if isinstance(job, ConfigError):
            raise job
        return title, verb(sweep_job_config(job)), ""
    except Stopped as stopped:  # this run only, and on purpose
        to_stderr(f"tuner: {stopped}")
        return title, stopped.exit_code, str(stopped)
    except (Interrupted, KeyboardInterrupt) as error:
        to_stderr(f"tuner: {error or 'interrupted'}")
        # not an Exception: Hydra's launcher would go on with the next job
        raise SystemExit(Interrupted.exit_code) from error
    except TunerError as error:
        refuse_after_stop()
        to_stderr(f"tuner: {error}")
        return title, error.exit_code, str(error)
    except Exception as error:  # a bug of ours: shown in full, and the other jobs go on
        refuse_after_stop()
        traceback.print_exc()
        return title, 1, f"{type(error).__name__}: {error}"
