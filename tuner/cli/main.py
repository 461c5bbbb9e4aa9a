"""argv → verb → config → pipeline. Nothing heavy is imported before the verb that needs it."""

import os
import sys
from collections.abc import Collection, Sequence

from tuner.cli.answer import answer
from tuner.cli.parse import parse
from tuner.cli.verb import CommandLine
from tuner.cli.verbs import VERBS
from tuner.errors import Interrupted
from tuner.launch import signals
from tuner.progress import VERBOSITY


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code. Without `argv` the process is nothing but the command."""
    signals.listen()
    code = Interrupted.exit_code
    try:
        code = answer(lambda: _run(parse(sys.argv[1:] if argv is None else argv)))
    finally:
        if argv is None:
            signals.leave(code)
    return code


def _run(line: CommandLine) -> int:
    _set_verbosity(line.flags)
    if "--version" in line.flags:
        from tuner import __version__

        print(f"tuner {__version__}")
    elif line.completion is not None:
        from tuner.cli.completion import completion_script

        print(completion_script(line.completion, line.extra))
    else:
        return VERBS[line.verb].run(line)
    return 0


def _set_verbosity(flags: Collection[str]) -> None:
    """For this process and those of its stages."""
    chosen = [flag.removeprefix("--") for flag in ("--quiet", "--verbose") if flag in flags]
    if chosen:
        os.environ[VERBOSITY] = chosen[0]
