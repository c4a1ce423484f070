"""Worker processes that never outlive the session that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

__all__ = ["ROOT", "Retired", "Workers", "kill_tree"]

ROOT = Path(__file__).resolve().parent.parent
GRACE = 15.0


def kill_tree(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """``kill -9`` for a child of ours and all that it has started, whatever groups they are in.

    A supervisor that is killed alone would leave its workers time to end in order.
    """
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    children: dict[int, list[int]] = {}
    for line in listed.splitlines():
        pid, parent = map(int, line.split())
        children.setdefault(parent, []).append(pid)
    family = [process.pid]
    for pid in family:  # grows as we go
        family += children.get(pid, [])
    for pid in family:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


class Retired(NamedTuple):
    """A worker that was asked to end, and when, by ``time.perf_counter()``."""

    process: subprocess.Popen[bytes]
    since: float


class Workers:
    """A few worker processes with one log.

    Args:
        environment: added to this process's own.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = {**os.environ, **environment, "PYTHONPATH": str(ROOT)}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._retired: list[subprocess.Popen[bytes]] = []
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the workers)

    def spawn(self, module: str, *arguments: str) -> None:
        """Start ``python -m module arguments``."""
        self._processes.append(
            subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=self._environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal is for the benchmark alone
            )
        )

    def check(self) -> None:
        """Raise RuntimeError if one of them has ended."""
        for process in self._processes:
            if process.poll() is not None:
                raise RuntimeError(f"a worker ended with status {process.returncode}:\n{self.tail()}")

    @property
    def pids(self) -> list[int]:
        """The process ids of all, in the order they were started."""
        return [process.pid for process in self._processes]

    @property
    def first(self) -> int:
        """The process id of the one that was started first."""
        return self._processes[0].pid

    def retire(self) -> Retired:
        """Ask the one that was started first to end; from now on it is none of these."""
        first = self._processes.pop(0)
        self._retired.append(first)
        first.terminate()
        return Retired(first, time.perf_counter())

    def kill_first(self) -> None:
        """``kill -9`` the one that was started first; from now on it is none of these."""
        kill_tree(self._processes.pop(0))

    def stop(self) -> None:
        """Ask them to end, and kill those that do not."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        self.kill()

    def kill(self) -> None:
        """``kill -9``."""
        for process in (*self._processes, *self._retired):
            if process.poll() is None:
                kill_tree(process)
        self._processes.clear()
        self._retired.clear()

    def tail(self, size: int = 2000) -> str:
        """Return the end of what they have said."""
        end = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, end - size))
        return self._log.read().decode(errors="replace").strip()
