"""argv → verb → config → pipeline. Nothing heavy is imported before the verb that needs it."""

import sys
from collections.abc import Sequence

from tuner.cli.parse import parse
from tuner.cli.verb import CommandLine
from tuner.cli.verbs import VERBS
from tuner.errors import Interrupted, TunerError
from tuner.launch import signals
from tuner.report.printable import visible


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code. Without `argv` the process is nothing but the command."""
    signals.listen()
    code = Interrupted.exit_code
    try:
        code = _answered(sys.argv[1:] if argv is None else argv)
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"tuner: {stop or 'interrupted; run the same command again to continue.'}", file=sys.stderr)
    finally:
        if argv is None:
            signals.leave(code)
    return code


def _answered(argv: Sequence[str]) -> int:
    """The exit code, once what went wrong is said. Raises Interrupted where a stop was asked for, whatever
    has become of it.
    """
    try:
        code = _answer(parse(argv))
    except Exception as error:
        signals.refuse_after_stop()  # in the middle of a library's work a stop may have broken anything
        if isinstance(error, TunerError):
            print(visible(f"tuner: {error}"), file=sys.stderr)
            return error.exit_code
        if isinstance(error, BrokenPipeError):  # the reader of our output went away: `tuner status | head`
            sys.stderr.close()
            return 0
        raise
    signals.refuse_after_stop()
    return code


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
