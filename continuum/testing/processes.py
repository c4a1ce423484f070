"""Processes beside this one: what they are, and one that cleans up when this one is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["command_line", "watch"]


def command_line(pid: int) -> str | None:
    """Return the command line of a process: empty for a zombie, None if there is no such process."""
    if os.path.isdir("/proc/self"):
        try:
            return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
    listed = subprocess.run(["ps", "-p", str(pid), "-o", "command="], capture_output=True, text=True, check=False)
    return listed.stdout if listed.returncode == 0 else None


def watch(base_dir: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a process that stops and deletes the temporary PostgreSQL in ``base_dir`` when this one is killed.

    It goes away as soon as something is written to it, as nothing is by a process that is killed.
    """
    return subprocess.Popen(
        [sys.executable, "-m", __name__, str(base_dir)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is not for it
    )


def _clean_up(base_dir: str) -> None:
    from continuum.testing.postgres import EmbeddedPostgres

    server = EmbeddedPostgres(base_dir).start()  # joins it, and others that use it may go on
    server._temporary = server.base_dir
    server.stop()


if __name__ == "__main__":
    if not sys.stdin.buffer.read():
        _clean_up(sys.argv[1])
