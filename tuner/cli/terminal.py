"""Where a chat's questions come from and its answers go: a terminal, or a pipe."""

import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

from tuner.progress import quiet


class Terminal:
    """Questions come from standard input, answers go to standard output, and all else to standard error.

    A terminal has a prompt, lines can be edited, and Ctrl-C does not break in: at the prompt it clears the
    line, and an answer ends between two tokens. Through a pipe each
    line is a question, and Ctrl-C ends the program.
    """

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty()
        self._asking = self._pressed = False
        self._before: Any = None

    def __enter__(self) -> "Terminal":
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
        if self.interactive:
            if os.environ.get("LC_ALL") in ("C", "POSIX"):
                # as Python itself takes it; readline would cut a character into bytes
                os.environ["LC_ALL"] = "C.UTF-8"
            import readline  # noqa: F401  input() edits lines with it

            self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        if self.interactive:
            signal.signal(signal.SIGINT, self._before)

    def _press(self, *_: object) -> None:
        self._pressed = True
        if self._asking:
            raise KeyboardInterrupt

    def stop_requested(self) -> bool:
        """Whether Ctrl-C was pressed since the question."""
        return self._pressed

    def lines(self) -> Iterator[str]:
        """What was typed, without space around it, until there is no more."""
        if not self.interactive:
            yield from (line.strip() for line in sys.stdin)
            return
        while True:
            try:
                self._asking = True
                line = self._ask()
                self._asking = False
            except KeyboardInterrupt:
                self._asking = False
                self.hint("\n/exit or Ctrl-D leaves")
                continue
            except EOFError:
                self.hint("")
                return
            self._pressed = False
            yield line.strip()

    def _ask(self) -> str:
        if sys.stdout.isatty():
            return input("> ")
        print("> ", end="", file=sys.stderr, flush=True)
        if not (line := sys.stdin.readline()):
            raise EOFError
        return line

    def show(self, piece: str) -> None:
        """A piece of an answer, at once."""
        print(piece, end="", flush=True)

    def end_answer(self) -> None:
        print(flush=True)

    def introduce(self, text: str) -> None:
        """A line on what is talked with, where the command is not quiet."""
        if not quiet():
            self.hint(text)

    def hint(self, text: str) -> None:
        """A line for the user that is not part of an answer."""
        print(text, file=sys.stderr, flush=True)
