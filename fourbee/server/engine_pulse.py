"""How it is seen that an engine process hangs: what it tells of itself, and the rule.

Once a second a small thread of the engine process tells whether a step is under way and what has
come of it (`Pulse`); the API process judges by that (`Watch`). That a step takes long proves
nothing: a chunk of a prompt at depth 262,144 may take minutes on two cores, one native operation of
it ten seconds and more, and torch and NumPy count no operations at all. What a hung process has in
common is that nothing happens in it. So it hangs when

- nothing was heard for `SILENT_SECONDS`: it is stopped, or something holds the interpreter's lock;
- or a step is under way, and for `STILL_SECONDS` no native operation ended, the processor was not
  used and no disk was read or written: a deadlock;
- or a step uses the processor, but for `BUSY_SECONDS` neither it nor a native operation of it came
  to an end: an endless loop, or more work than anybody waits for.

While a model is loaded only silence counts, and more of it: reading a file may hold the lock.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# Seconds. With a beat and a look each second, what hangs is noticed within 10.
BEAT_SECONDS = 1.0
SILENT_SECONDS = 7.0
STILL_SECONDS = 7.0
BUSY_SECONDS = 600.0
LOADING_SILENT_SECONDS = 120.0

# Less of a core than this is no work: the pulse itself takes a hundredth of it.
_IDLE_SHARE = 0.01


@dataclass(frozen=True)
class Heartbeat:
    """What an engine process has done so far. All but `in_step` only grow."""

    in_step: bool
    steps: int
    operations: int  # of native plans
    cpu_seconds: float  # of all threads
    disk_accesses: int  # blocks read or written, and pages fetched


class Pulse:
    """Tells how it goes with the engine, from a thread of its own."""

    def __init__(self, send: Callable[[Heartbeat], object]) -> None:
        self.in_step = False
        self.steps = 0
        self._send = send
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Beats while the block runs."""
        self._thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._thread.join()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around a step of the engine."""
        self.in_step = True
        try:
            yield
        finally:
            self.in_step = False
            self.steps += 1

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            cpu = time.process_time()
            self._send(Heartbeat(self.in_step, self.steps, _operations(), cpu, _disk_accesses()))


class Watch:
    """Judges an engine process by its heartbeats."""

    def __init__(self) -> None:
        self.loading = True
        self._last = Heartbeat(False, 0, 0, 0.0, 0)
        # Seconds since it was heard, since anything happened in it, since something ended in it.
        self._silent = self._still = self._busy = 0.0

    def hear(self) -> None:
        """Something came from the process."""
        self._silent = 0.0

    def beat(self, beat: Heartbeat) -> None:
        """What came is a heartbeat."""
        last, self._last = self._last, beat
        used = beat.cpu_seconds - last.cpu_seconds
        ended = (last.steps, last.operations) != (beat.steps, beat.operations)
        if ended or not beat.in_step:
            self._busy = 0.0
        if (
            not self._busy
            or last.disk_accesses != beat.disk_accesses
            or (used >= _IDLE_SHARE * BEAT_SECONDS)
        ):
            self._still = 0.0

    def tick(self, seconds: float) -> str | None:
        """So many seconds later: what is wrong with the process, or None.

        Only those count in which the watching process ran itself: after Ctrl-Z and `fg`, or on a
        machine that stood still, both have been silent.
        """
        seconds = min(seconds, 2 * BEAT_SECONDS)
        self._silent += seconds
        self._still += seconds
        self._busy += seconds
        if self._silent > (LOADING_SILENT_SECONDS if self.loading else SILENT_SECONDS):
            return f"gave no sign of life for {self._silent:.0f} seconds"
        if self.loading or not self._last.in_step:
            return None
        if self._still > STILL_SECONDS:
            return f"stood still in a step for {self._still:.0f} seconds"
        if self._busy > BUSY_SECONDS:
            return f"did not end a step in {self._busy:.0f} seconds"
        return None


def _operations() -> int:
    """Operations that native plans have done; 0 where the kernels do not run."""
    native = sys.modules.get("fourbee.kernels._native")
    return native.heartbeat() if native is not None else 0


def _disk_accesses() -> int:
    """What tells waiting for a disk from waiting for nothing: weights may be read in a step."""
    import resource  # not on Windows, where there is no engine process

    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_majflt + usage.ru_inblock + usage.ru_oublock
