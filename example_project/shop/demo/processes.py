"""Child processes of the demo: workers and the web server, which never outlive it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from django.conf import settings

GRACE = 20.0
"""Seconds a child may take to stop before it is killed; more than the worker's own drain deadline."""


class Child:
    """A ``manage.py`` command in a process group of its own, so that Ctrl-C in the terminal reaches only the demo."""

    def __init__(self, name: str, log: Path, *arguments: str) -> None:
        self.name, self.log = name, log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, settings.BASE_DIR / "manage.py", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process and its children, if there are any left."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """``kill -9``: no handler runs, nothing is released."""
        self.send(signal.SIGKILL)
        self._process.wait()

    def wait(self, timeout: float) -> None:
        """Wait until it has ended, and kill it if it has not after ``timeout`` seconds."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
            return
        self.kill()

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Children:
    """The children of one demo; leaving the ``with`` block stops all of them, whatever the reason."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.logs.mkdir(parents=True, exist_ok=True)
        self._children: list[Child] = []

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        living = [child for child in self._children if child.exit_code is None]
        for child in living:
            child.send(signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        try:
            for child in living:
                child.wait(max(0.0, deadline - time.monotonic()))
        except KeyboardInterrupt:  # a second Ctrl-C: no more patience
            for child in living:
                child.kill()

    def start(self, name: str, *arguments: str) -> Child:
        """Start ``manage.py <arguments>``; its output goes to ``<name>.log``, emptied first."""
        log = self.logs / f"{name}.log"
        log.write_bytes(b"")
        child = Child(name, log, *arguments)
        self._children.append(child)
        return child


def free_port(wanted: int) -> int:
    """Return the wanted port of this machine, or the next one up that is free."""
    for port in range(wanted, wanted + 20):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise OSError(f"none of the ports {wanted} to {wanted + 19} is free")


def wait_until(condition: Callable[[], bool], timeout: float, pause: float = 0.1) -> bool:
    """Ask every ``pause`` seconds until the condition holds; False if it did not within ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def listening(port: int) -> bool:
    """Whether something accepts connections there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
