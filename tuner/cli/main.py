"""argv → verb → config → pipeline. Nothing heavy is imported before the verb that needs it."""

import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from tuner.cli.parse import parse
from tuner.cli.verb import CommandLine
from tuner.cli.verbs import VERBS
from tuner.errors import Interrupted, TunerError


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    signal.signal(signal.SIGTERM, interrupt)
    try:
        return _answer(parse(sys.argv[1:] if argv is None else argv))
    except TunerError as error:
        print(f"tuner: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("tuner: interrupted; run the same command again to continue.", file=sys.stderr)
        return Interrupted.exit_code
    except BrokenPipeError:  # the reader of our output went away: `tuner status | head`
        sys.stderr.close()
        return 0


def interrupt(_number: int, _frame: Any) -> NoReturn:
    """What SIGTERM does."""
    raise Interrupted("stopped by SIGTERM; run the same command again to continue.")


def _answer(line: CommandLine) -> int:
    if "--version" in line.flags:
        from tuner import __version__

        print(f"tuner {__version__}")
    elif "--help" in line.flags:
        from tuner.cli.help import help_text

        print(help_text(line.extra))
    elif line.completion is not None:
        from tuner.cli.completion import completion_script

        print(completion_script(line.completion, line.extra))
    else:
        return VERBS[line.verb].run(line)
    return 0
