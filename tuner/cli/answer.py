"""What went wrong in a command → words on standard error, and the exit code."""

import sys
import traceback
from collections.abc import Callable

from tuner.config.schema import Machine
from tuner.errors import Interrupted
from tuner.hardware.mistakes import mistake
from tuner.launch import signals
from tuner.launch.watch import supervise
from tuner.progress import verbose
from tuner.report.printable import visible


def answer(work: Callable[[], int]) -> int:
    """The exit code of `work`; where a stop was asked for, that of a stop, whatever has become of it. What is
    nobody's mistake but ours is raised.
    """
    try:
        return _answer(work)
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"tuner: {stop or 'interrupted; run the same command again to continue.'}", file=sys.stderr)
        return Interrupted.exit_code


def _answer(work: Callable[[], int]) -> int:
    try:
        code = work()
    except Exception as error:
        signals.refuse_after_stop()  # in the middle of a library's work a stop may have broken anything
        if (known := mistake(error)) is not None:
            if verbose():
                traceback.print_exception(error)
            print(visible(f"tuner: {known}"), file=sys.stderr)
            return known.exit_code
        if isinstance(error, BrokenPipeError):  # the reader of our output went away: `tuner status | head`
            sys.stderr.close()
            return 0
        raise
    signals.refuse_after_stop()
    return code


def answer_under_limits(work: Callable[[], int], machine: Machine) -> int:
    """The same, in a process that is ended when what strangers wrote takes too much."""
    return supervise(lambda: answer(work), machine)
