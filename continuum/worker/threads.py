"""A pool of threads for work that is often over in no time and sometimes never.

Handing each job to another thread costs two thread switches, which is more than a short job itself. So a thread keeps
taking jobs while there are any, and only one further thread is ever on its way to help: when the first one blocks in
I/O, that one runs, takes a job, and calls the next. Short jobs thus stay on one thread, and blocking ones spread over
all within a moment.

A job that never ends cannot be killed, but its thread can be replaced.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol, TypeVar

__all__ = ["Job", "ThreadPool"]

logger = logging.getLogger("continuum.worker")


class Job(Protocol):
    """What the pool notes down on a job."""

    running: bool  # a thread has it
    stuck: bool  # its thread has been replaced


J = TypeVar("J", bound=Job)


class ThreadPool:
    """Runs ``work(job)`` for each submitted job, in the order of submission, on at most ``threads`` threads.

    The threads are daemons, started when needed and kept.

    Args:
        threads: how many jobs may run at once.
        work: called in a thread; must not raise.
        on_exit: called in a thread before it ends.
        name: prefix of the threads' names.
    """

    def __init__(
        self,
        threads: int,
        work: Callable[[J], None],
        *,
        on_exit: Callable[[], None] = lambda: None,
        name: str = "activity",
    ) -> None:
        self.threads = threads
        self._work = work
        self._on_exit = on_exit
        self._name = name
        # All below is guarded by the mutex, which nobody holds for longer than it takes to look.
        self._mutex = threading.Lock()
        self._jobs: deque[J] = deque()
        self._idle: list[threading.Lock] = []  # last in, first out: a thread that just ran is warm
        self._helper_called = False
        self._alive = 0
        self._started = 0
        self._stuck = 0
        self._closed = False

    @property
    def alive(self) -> int:
        """How many threads there are."""
        return self._alive

    @property
    def stuck(self) -> int:
        """How many of them are lost to jobs nobody waits for any more."""
        return self._stuck

    def submit(self, job: J) -> None:
        """Queue a job. Never blocks."""
        with self._mutex:
            self._jobs.append(job)
            helper = self._call_helper()
        if helper is not None:
            helper()

    def give_up(self, job: J) -> bool:
        """Stop counting on the thread that runs ``job``, and let another take its place; returns False if none runs it.

        There are never more than twice ``threads`` threads: beyond that the place stays lost until the job ends.
        """
        with self._mutex:
            if not job.running or job.stuck:
                return False
            job.stuck = True
            self._stuck += 1
            helper = self._call_helper()
        if helper is not None:
            helper()
        return True

    def newest(self) -> J | None:
        """Return the job that waits last in line, or None."""
        with self._mutex:
            return self._jobs[-1] if self._jobs else None

    def withdraw(self, until: J, most: int, wanted: Callable[[J], bool]) -> list[J]:
        """Take back jobs that nobody has begun, so that nobody will: the last ones in line up to ``until``.

        Args:
            until: a job; those behind it stay, and if it has been begun, all do.
            most: how many to take at most.
            wanted: tells which may be taken.
        """
        with self._mutex:
            jobs = list(self._jobs)
            if until not in jobs:
                return []
            taken: list[J] = []
            for job in reversed(jobs[: jobs.index(until) + 1]):
                if len(taken) == most:
                    break
                if wanted(job):
                    taken.append(job)
            gone = set(map(id, taken))
            # The same deque: threads that serve hold on to it.
            self._jobs.clear()
            self._jobs.extend(job for job in jobs if id(job) not in gone)
        return taken[::-1]

    def close(self) -> list[J]:
        """Let the threads end as soon as they are free, and return the jobs nobody has begun."""
        with self._mutex:
            self._closed = True
            left = list(self._jobs)
            self._jobs.clear()
            idle, self._idle = self._idle, []
        for wake in idle:
            wake.release()
        return left

    def _places(self) -> int:
        return self.threads + min(self._stuck, self.threads)

    def _call_helper(self) -> Callable[[], None] | None:
        """With the mutex held: what to call, once it is free, to have one more thread at work; None for "enough"."""
        if self._helper_called or not self._jobs:
            return None
        if self._idle:
            self._helper_called = True
            return self._idle.pop().release
        if self._alive < self._places() and not self._closed:
            self._helper_called = True
            self._alive += 1
            self._started += 1
            return self._start
        return None

    def _start(self) -> None:
        thread = threading.Thread(target=self._serve, name=f"{self._name}-{self._started}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            with self._mutex:
                self._alive -= 1
                self._helper_called = False
            # The others carry on, and the next job tries again.
            logger.error("the system allows no further thread for activities; there are %d", self._alive)

    def _serve(self) -> None:
        wake = threading.Lock()
        wake.acquire()
        mutex, jobs, work = self._mutex, self._jobs, self._work
        helping = True
        job: J | None = None
        while True:
            helper = None
            with mutex:
                if helping:
                    self._helper_called = helping = False
                if job is not None:
                    job.running = False
                    if job.stuck:
                        self._stuck -= 1
                    job = None
                if self._closed or self._alive > self._places():
                    self._alive -= 1
                    # A call for help may have been answered by nobody but this thread.
                    helper = self._call_helper()
                    leaving = True
                elif jobs:
                    job = jobs.popleft()
                    job.running = True
                    helper = self._call_helper() if jobs else None
                    leaving = False
                else:
                    self._idle.append(wake)
                    leaving = False
            if helper is not None:
                helper()
            if leaving:
                self._on_exit()
                return
            if job is None:
                wake.acquire()
                helping = True
            else:
                work(job)
