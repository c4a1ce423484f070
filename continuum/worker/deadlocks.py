"""The watchdog of a worker's loop: finds workflow code that does not let go, and interrupts it.

One thread looks a few times a second at the number of the stretch of workflow code that runs. As long as that changes
nothing else happens, so that watching costs a run next to nothing.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from continuum.core.failures import is_engine
from continuum.core.watching import Interrupted, Watch, guarded
from continuum.exceptions import WorkflowDeadlockError

__all__ = ["Watchdog"]

logger = logging.getLogger("continuum.worker")

# The longest pause between two looks, in seconds.
LOOK_EVERY = 0.25
# So many times the timeout is waited for code that blocks without computing, or gets no processor to compute on.
PATIENCE = 10


class ThreadWatch(Watch):
    """The side of the thread that is watched, which is the one that makes it.

    Raising and settling exclude each other. Whoever raises says so first and looks then whether the code still runs;
    the watched thread says first that it does not, and looks then whether something was raised. So one sees the other.
    """

    def __init__(self, timeout: float) -> None:
        super().__init__()
        self.timeout = timeout
        self.thread = threading.get_ident()
        self._lock = threading.RLock()
        self._hit = False
        self._stack = ""

    def interrupt(self, serial: int, stack: str) -> bool:
        """Raise in the watched thread, if it still runs the same stretch of code; returns whether it did."""
        with self._lock:
            self.raised = True
            if not self.active or self.serial != serial:
                self.raised = self._hit
                return False
            self._hit, self._stack = True, stack
            _raise_in(self.thread, Interrupted)
            return True

    def settle(self) -> bool:
        # No "with": what is on its way may hit when the lock has just been taken, which since Python 3.14 is before the
        # block begins that would let go of it.
        lock: Any = self._lock
        try:
            lock.acquire()
            self._take_back()
            hit, self._hit = self._hit, False
            self.raised = False
            return hit
        finally:
            while lock._is_owned():
                lock.release()

    def _take_back(self) -> None:
        """Have what was raised, and has not hit yet, not hit any more.

        NULL in its place would do that too. But with each exception that is raised in a thread, and with NULL, the
        interpreter begins to look for it at every call and jump, and only one that hits ends that: without one all code
        stays slow, and in 3.11 the next call that is traced or profiled does not return.
        """
        try:
            _raise_in(self.thread, _TakenBack)
            while True:
                pass
        except _TakenBack:
            pass

    def verdict(self) -> WorkflowDeadlockError:
        return WorkflowDeadlockError(self.timeout, self._stack)


class _TakenBack(BaseException):
    """Raised in place of what was raised before."""


def _raise_in(thread: int, error: type[BaseException]) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))


class Watchdog:
    """Watches the thread that makes it, from a thread of its own, for the length of a ``with`` block.

    What counts is the time the watched thread has *computed*: a process that was stopped, or starves on a busy
    machine, is not to blame its runs. Code that blocks without computing is reported at once, and interrupted when it
    goes on for :data:`PATIENCE` times as long.

    Args:
        timeout: seconds.

    Attributes:
        watch: what the watched code runs under.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.watch = ThreadWatch(timeout)
        self._every = min(LOOK_EVERY, timeout / 4)
        self._computed = _processor_clock(self.watch.thread)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="continuum-watchdog", daemon=True)
        self._serial = 0
        self._since = self._looked = self._held = 0.0
        self._reported = False

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            self.look()

    def look(self) -> None:
        """Look once."""
        watch = self.watch
        serial, active, now = watch.serial, watch.active, time.monotonic()
        if not active:
            return
        if serial != self._serial:
            self._serial = serial
            self._begin(now)
            return
        # A look that comes late says that the process was stopped, not that the code took so long.
        self._held += min(now - self._looked, 2 * self._every)
        self._looked = now
        computed = self._computed() - self._since
        if computed < self.timeout and self._held < self.timeout * PATIENCE:
            if self._held >= self.timeout and not self._reported:
                self._reported = True
                logger.warning(
                    "run %s has kept its worker from everything else for %.1f s, of which it computed %.1f s\n%s",
                    _run_of(watch),
                    self._held,
                    computed,
                    self._stack(),
                )
            return
        stack = self._stack()
        if watch.interrupt(serial, stack):
            logger.error("run %s did not let go for %.1f s: interrupted\n%s", _run_of(watch), self._held, stack)
        # If the code takes no notice, it is told again after as long.
        self._begin(now)

    def _begin(self, now: float) -> None:
        self._since, self._looked, self._held, self._reported = self._computed(), now, 0.0, False

    def _stack(self) -> str:
        frames: list[tuple[FrameType, int]] = []
        frame = sys._current_frames().get(self.watch.thread)
        while frame is not None and frame.f_code is not guarded.__code__:
            frames.append((frame, frame.f_lineno))
            frame = frame.f_back
        frames.reverse()
        frames = _of_user(frames) or _of_user(_ready_frames(self.watch.subject))
        lines = traceback.StackSummary.extract(frames, lookup_lines=True).format()
        return "".join(["Traceback (most recent call last):\n", *lines])


def _processor_clock(thread: int) -> Callable[[], float]:
    """Return what tells how many seconds a thread has computed; where that cannot be known, what time it is."""
    if hasattr(time, "pthread_getcpuclockid"):
        clock = time.pthread_getcpuclockid(thread)
        return lambda: time.clock_gettime(clock)
    return time.monotonic


def _of_user(frames: list[tuple[FrameType, int]]) -> list[tuple[FrameType, int]]:
    return [(frame, line) for frame, line in frames if not is_engine(frame.f_code.co_filename)]


def _ready_frames(loop: Any) -> list[tuple[FrameType, int]]:
    """Where the tasks of a run stand that only have to be called to go on: caught between two of their turns."""
    frames = []
    # The loop's own thread goes on meanwhile.
    with suppress(RuntimeError):
        for task in list(getattr(loop, "tasks", ())):
            awaited = None if task.done() or task._fut_waiter is not None else task.get_coro()
            while (frame := getattr(awaited, "cr_frame", None)) is not None:
                frames.append((frame, frame.f_lineno))
                awaited = awaited.cr_await
    return frames


def _run_of(watch: Watch) -> object:
    run = getattr(getattr(watch.subject, "execution", None), "run", None)
    return getattr(run, "id", "(given up)")
