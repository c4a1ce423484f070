"""Several worker processes under one parent: started, watched, restarted, and stopped together."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from continuum.worker.connections import Backoff
from continuum.worker.joint_probes import ASKED_BY, JointProbes

__all__ = ["OTHERS_PIPE", "PARENT_PIPE", "Supervisor", "descriptor_of", "end_with_parent", "others_ended"]

logger = logging.getLogger("continuum.worker")

PARENT_PIPE = "CONTINUUM_PARENT_PIPE"
"""Environment variable with the file descriptor whose end says that the parent is gone."""

OTHERS_PIPE = "CONTINUUM_OTHERS_PIPE"
"""Environment variable with the file descriptor whose end says that all others of a burst have ended."""

# What a node takes, over its drain timeout, to give everything back.
GIVING_BACK = 8.0
# A process that ends sooner than this after its start did not get going.
SHORT_LIFE = 5.0
MOST_FAILED_STARTS = 5

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(slots=True, eq=False)
class _Child:
    number: int
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    start_at: float = 0.0
    failed_starts: int = 0
    finished: bool = False  # it is not to be started again
    backoff: Backoff = field(default_factory=lambda: Backoff(base=0.2, cap=10.0))


class Supervisor:
    """Keeps ``processes`` copies of a command running until told to stop. To be used in the main thread.

    The first SIGTERM or SIGINT is passed on as SIGTERM, and the processes get until ``drain_timeout`` and a few seconds
    more to end; a second one kills them at once. If the parent itself is killed, a pipe tells them so
    (``end_with_parent``).

    In a burst one process stays until all others have ended (``others_ended``). What they gave back in the moment in
    which the last of them had found nothing left would else be nobody's.

    Args:
        command: the command line of each process.
        processes: how many.
        burst: a process that ends with status 0 is done; otherwise it is started again whenever it ends.
        drain_timeout: seconds the processes give their activities.
        environment: of the processes; the parent's own unless given.
        probes: what answers an orchestrator, and asks the processes.
    """

    def __init__(
        self,
        command: Sequence[str],
        processes: int,
        *,
        burst: bool = False,
        drain_timeout: float = 10.0,
        environment: Mapping[str, str] | None = None,
        probes: JointProbes | None = None,
    ) -> None:
        self.command = list(command)
        self.burst = burst
        self.drain_timeout = drain_timeout
        self._environment = dict(os.environ if environment is None else environment)
        self._children = [_Child(number + 1) for number in range(processes)]
        self._probes = probes
        self._stopped_by: int | None = None
        self._deadline = float("inf")
        self._gave_up = False

    @property
    def pids(self) -> list[int]:
        """Process ids of the children that run."""
        return [child.process.pid for child in self._children if child.process is not None]

    def run(self) -> int:
        """Run until all processes have ended for good, and return the exit status.

        0 if they ended well; 1 if they could not be got going, or not all of them ended well; 128 and the signal's
        number if a second signal or the deadline had them killed.
        """
        self._pipe, self._others = os.pipe(), os.pipe()
        self._others_end: int | None = self._others[1]
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_read, False)
        os.set_blocking(wake_write, False)
        old_handlers = {number: signal.signal(number, _noted) for number in (*_SIGNALS, signal.SIGCHLD)}
        old_wakeup = signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        try:
            return self._supervise(wake_read)
        finally:
            signal.set_wakeup_fd(old_wakeup)
            for number, handler in old_handlers.items():
                signal.signal(number, handler)
            self._kill()
            self._tell_the_last()
            for descriptor in (*self._pipe, self._others[0], wake_read, wake_write):
                os.close(descriptor)

    def _supervise(self, wake: int) -> int:
        status = 0
        while True:
            now = time.monotonic()
            for child in self._children:
                if child.process is not None and (code := child.process.poll()) is not None:
                    child.process = None
                    status = max(status, self._ended(child, code, now))
                if child.process is None and not child.finished and child.start_at <= now:
                    self._start(child)
            if all(child.finished for child in self._children[1:]):
                self._tell_the_last()
            if all(child.finished and child.process is None for child in self._children):
                return 1 if self._gave_up else status
            if now >= self._deadline:
                logger.error("not all worker processes ended within the deadline: killing them")
                self._kill()
                return 1 if self._gave_up else 128 + (self._stopped_by or signal.SIGKILL)
            waiting = [child.start_at for child in self._children if child.process is None and not child.finished]
            pause = min([self._deadline, *waiting]) - time.monotonic()
            select.select([wake], [], [], None if pause == float("inf") else max(0.0, pause))
            for number in _read(wake):
                if number not in _SIGNALS:
                    continue
                if self._stopped_by is not None:
                    logger.warning("second %s: killing the worker processes", signal.Signals(number).name)
                    self._kill()
                    return 128 + number
                logger.info("%s: draining, for at most %g seconds", signal.Signals(number).name, self.drain_timeout)
                self._stop(number)

    def _start(self, child: _Child) -> None:
        child.started = time.monotonic()
        descriptors = {PARENT_PIPE: self._pipe[0]}
        if self.burst and child is self._children[0]:
            descriptors[OTHERS_PIPE] = self._others[0]
        theirs = None
        if self._probes is not None:
            ours, theirs = socket.socketpair()
            self._probes.started(child.number, ours)
            descriptors[ASKED_BY] = theirs.fileno()
        environment = self._environment | {name: str(descriptor) for name, descriptor in descriptors.items()}
        # A group of its own: Ctrl-C in a terminal must reach the parent alone, or children would get two signals.
        try:
            child.process = subprocess.Popen(
                self.command,
                env=environment,
                pass_fds=tuple(descriptors.values()),
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        except OSError as error:
            pause = child.backoff.next()
            child.start_at = child.started + pause
            logger.error("worker process %d cannot be started (%s): trying again in %.1f s", child.number, error, pause)
            return
        finally:
            if theirs is not None:
                theirs.close()
        logger.info("worker process %d started (pid %d)", child.number, child.process.pid)

    def _tell_the_last(self) -> None:
        if self._others_end is not None:
            os.close(self._others_end)
            self._others_end = None

    def _ended(self, child: _Child, code: int, now: float) -> int:
        """Take note of a child's end; returns what it means for the exit status."""
        lived = now - child.started
        if self._stopped_by is not None or self._gave_up or (self.burst and code == 0):
            child.finished = True
            if self._probes is not None:
                self._probes.ended(child.number)
            # Ended by the signal itself: it had not come far enough to drain anything.
            return int(code not in (0, -signal.SIGTERM))
        if lived >= SHORT_LIFE:
            child.failed_starts = 0
            child.backoff.reset()
        elif code < 0:
            # Killed, perhaps by a run of its own: that run is given up in the end, and others wait for the process.
            child.failed_starts = 0
        else:
            child.failed_starts += 1
        if child.failed_starts >= MOST_FAILED_STARTS:
            logger.critical(
                "worker process %d failed to start %d times in a row, the last time with %s: giving up",
                child.number,
                child.failed_starts,
                _described(code),
            )
            child.finished = self._gave_up = True
            self._stop(signal.SIGTERM)
            return 1
        pause = child.backoff.next()
        child.start_at = now + pause
        logger.error("worker process %d ended with %s: restarting in %.1f s", child.number, _described(code), pause)
        return 0

    def _stop(self, number: int) -> None:
        self._stopped_by = number
        self._deadline = time.monotonic() + self.drain_timeout + GIVING_BACK
        for child in self._children:
            if child.process is not None:
                child.process.terminate()
            elif not child.finished:
                child.finished = True
                if self._probes is not None:
                    self._probes.ended(child.number)

    def _kill(self) -> None:
        for child in self._children:
            child.finished = True
            if child.process is not None:
                child.process.kill()
                child.process.wait()
                child.process = None


def end_with_parent(end: Callable[[], Any] | None = None) -> bool:
    """In a child of a supervisor: drain when the parent is gone. Returns False if there is no supervisor.

    Args:
        end: called when the parent is gone; sends this process a SIGTERM unless given.
    """
    if (descriptor := descriptor_of(PARENT_PIPE)) is None:
        return False

    def watch() -> None:
        # Nothing is ever written: reading ends when the last holder of the other end, the parent, is gone.
        os.read(descriptor, 1)
        logger.warning("the parent process is gone: draining")
        (end or (lambda: os.kill(os.getpid(), signal.SIGTERM)))()

    threading.Thread(target=watch, name="continuum-parent", daemon=True).start()
    return True


def descriptor_of(variable: str) -> int | None:
    """In a child of a supervisor: return the file descriptor that an environment variable tells; None if there is none.

    Once: the variable is taken out, since the descriptor means nothing in processes that activities start.
    """
    named = os.environ.pop(variable, "")
    if not named.isdigit():
        return None
    os.set_inheritable(int(named), False)
    return int(named)


async def others_ended(descriptor: int) -> None:
    """In the process of a burst that stays: wait until all others have ended, so that what they left can be seen."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)


def _noted(number: int, frame: Any) -> None:
    """The number is on its way through the wake-up pipe."""


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 512)
    except BlockingIOError:
        return b""


def _described(code: int) -> str:
    if code >= 0:
        return f"status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
