"""Workers for tests: in a thread of this process, and as processes that can be killed."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from continuum.worker.node import Node
from continuum.worker.options import NodeOptions

ROOT = Path(__file__).resolve().parent.parent


def node_options(**overrides: Any) -> NodeOptions:
    """Options of a small worker."""
    defaults: dict[str, Any] = {
        "database": "default",
        "queues": None,
        "concurrency": 50,
        "threads": 4,
        "burst": False,
        "drain_timeout": 5.0,
        "name": "test",
    }
    return NodeOptions(**{**defaults, **overrides})


class ThreadWorker:
    """A worker in a thread. What it raises, ``stop`` raises."""

    def __init__(self, **options: Any) -> None:
        self._ready = threading.Event()
        self.listening = False
        self.node = Node(node_options(**options), on_started=self._started)
        self._failure: BaseException | None = None
        self.status: int | None = None
        self._thread = threading.Thread(target=self._serve, name="test worker", daemon=True)

    def start(self) -> ThreadWorker:
        self._thread.start()
        assert self._ready.wait(60), "the worker does not start"
        if self._failure is not None:
            raise self._failure
        return self

    def stop(self) -> int | None:
        self.node.stop()
        return self.join()

    def join(self, timeout: float = 60) -> int | None:
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "the worker does not stop"
        if self._failure is not None:
            raise self._failure
        return self.status

    def _started(self, listening: bool) -> None:
        self.listening = listening
        self._ready.set()

    def _serve(self) -> None:
        try:
            self.status = asyncio.run(self.node.run())
        except BaseException as exc:
            self._failure = exc
        finally:
            self._ready.set()


@contextmanager
def worker(**options: Any) -> Iterator[ThreadWorker]:
    """A worker in a thread for the length of a block."""
    running = ThreadWorker(**options).start()
    try:
        yield running
    finally:
        running.stop()


def run_until_idle(**options: Any) -> ThreadWorker:
    """Work off all there is to do now."""
    running = ThreadWorker(burst=True, **options).start()
    running.join(60)
    return running


class ProcessWorker:
    """A worker process in the database of a test: one, whose id is that of the worker, unless told ``--processes``."""

    def __init__(self, environment: dict[str, str], *arguments: str, log: Path, cwd: Path = ROOT) -> None:
        self.log = log
        self._file = log.open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "django", "continuum_worker", "--processes=1", *arguments],
            env={**environment, "PYTHONPATH": os.pathsep.join([str(cwd), str(ROOT)])},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=subprocess.STDOUT,
        )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.wait()

    def wait(self, timeout: float = 60) -> int:
        try:
            return self.process.wait(timeout)
        finally:
            self._file.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()


class Lineage:
    """Worker processes that come one after another, each forked by a process that has everything loaded already.

    For tests in which many die in a row: an interpreter takes far longer to start, and to load a project, than its
    worker lives. They run in the same environment, and so with the settings that it names.
    """

    def __init__(self, environment: dict[str, str], *, log: Path) -> None:
        self.log = log
        self._file = log.open("ab")
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.kill_at_commit", "--serve"],
            env=environment,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._file,
            bufsize=0,  # what was read ahead, no select would tell of
        )
        self.pid = 0
        self._status: int | None = 0

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def start(self, *arguments: str, commit: int = 0, when: str = "before") -> None:
        """Start the next worker, which dies before or after a commit of its journal if one is given."""
        assert self._status is not None, "the one before still lives"
        order = ["--commit", str(commit), "--when", when, "--", *arguments]
        self._server.stdin.write(json.dumps(order).encode() + b"\n")
        self._server.stdin.flush()
        self.pid = int(self._server.stdout.readline())
        self._status = None

    def poll(self) -> int | None:
        """Return the exit status of the worker started last; None while it lives."""
        if self._status is None and select.select([self._server.stdout], [], [], 0)[0]:
            self._status = int(self._server.stdout.readline())
        return self._status

    def kill(self) -> int:
        """Kill the worker, if it still lives, and return its exit status."""
        if self.poll() is None:
            # It may end right now, but its parent keeps its process id until it has been told so.
            os.kill(self.pid, signal.SIGKILL)
            self._status = int(self._server.stdout.readline())
        return self._status

    def close(self) -> None:
        if self._server.poll() is None:
            self.kill()
        self._server.stdin.close()
        self._server.wait(30)
        self._server.stdout.close()
        self._file.close()
