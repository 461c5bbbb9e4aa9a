"""The wall time from the end of a step to the end of the next, whenever the host reads what came of them."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class StepClock:
    """Begins to run when it is made. On a GPU steps end when the device comes to their end: a step that is
    read right after the one before it has not taken the less time for that.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self._known: tuple[torch.cuda.Event, float] | None = None
        if self._stream is not None:
            begun = self._event()
            begun.synchronize()
            self._known = (begun, time.monotonic())
        self._began = time.monotonic()

    def mark(self) -> Callable[[], float]:
        """Called when a step is launched: what tells when it ended, as time.monotonic() would have said, and
        waits for that. Marks are asked in the order in which they were made.
        """
        if self._stream is None:
            now = time.monotonic()
            return lambda: now
        event = self._event()

        def ended() -> float:
            assert self._known is not None
            event.synchronize()
            before, then = self._known
            now = then + float(before.elapsed_time(event)) / 1000  # milliseconds
            self._known = (event, now)
            return now

        return ended

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def lap(self, now: float) -> float:
        """The seconds from the last lap, or the beginning, to a moment of time.monotonic()."""
        began, self._began = self._began, now
        return self._began - began

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """While entered, it stands still. What was marked is read before."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._began += time.monotonic() - began
