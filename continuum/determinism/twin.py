"""A process with another hash seed, which lives through the histories of this one.

What depends on the order of a set, or on ``hash()``, comes out the same again in the process that made it. The twin is
asked over a socket, in JSON, one history after the other; whatever happens to it, runs go on without.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from django.conf import ENVIRONMENT_VARIABLE

__all__ = ["Twin", "shared"]

logger = logging.getLogger("continuum.run")

#: How long the twin may take to load the project, and to answer, in seconds.
START_TIMEOUT, ANSWER_TIMEOUT = 60.0, 5.0
#: A history of more bytes is not sent.
MOST_BYTES = 8 * 1024 * 1024
#: How soon a twin that is gone is replaced, in seconds.
PAUSE = 10.0


class Twin:
    """The process, and the line to it. May be asked from any thread.

    Args:
        seed: its hash seed; one by lot unless given.

    Attributes:
        seed: its hash seed.
        process: the process, or None.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = str(seed or 1 + secrets.randbelow(2**32 - 1))
        self.process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._answers: Any = None
        self._lock = threading.Lock()
        self._gone_at = 0.0

    def start(self) -> bool:
        """Start the process, unless it is there, and wait until it has loaded the project; returns whether it has."""
        with self._lock:
            return self._socket is not None or self._start()

    def _start(self) -> bool:
        if not os.environ.get(ENVIRONMENT_VARIABLE):
            logger.warning("paranoid mode has no second process: the settings have no module it could load")
            return False
        ours, theirs = socket.socketpair()
        environment = os.environ | {"PYTHONHASHSEED": self.seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "continuum.determinism.twin_process", str(theirs.fileno())],
                env=environment,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        self._socket, self._answers = ours, ours.makefile("rb")
        try:
            ours.settimeout(START_TIMEOUT)
            if self._answers.readline():
                ours.settimeout(ANSWER_TIMEOUT)
                logger.info("paranoid mode: histories are compared in process %d, too", self.process.pid)
                return True
        except OSError:
            pass
        self._drop("cannot load the project")
        return False

    def ask(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
        """Have a history lived through; returns the hash seed there and where it led, or None if nobody knows.

        Args:
            request: as :func:`continuum.determinism.paranoid.request` makes it.
        """
        text = json.dumps(request).encode()
        if len(text) > MOST_BYTES:
            return None
        with self._lock:
            if self._socket is None:
                self._replace()
                return None
            try:
                self._socket.sendall(text + b"\n")
                answer = self._answers.readline()
                if answer:
                    return self.seed, json.loads(answer)
            except (OSError, ValueError):
                pass
            self._drop("does not answer")
            return None

    def _replace(self) -> None:
        now = time.monotonic()
        if self._gone_at and now - self._gone_at > PAUSE:
            self._gone_at = now
            threading.Thread(target=self._start_again, name="continuum-twin", daemon=True).start()

    def _start_again(self) -> None:
        with self._lock:
            # Another thread may have been first, or nobody wants it any more.
            if self._socket is None and self._gone_at:
                self._start()

    def _drop(self, why: str) -> None:
        logger.warning("paranoid mode: the second process %s; runs go on without it for a while", why)
        self._close()
        self._gone_at = time.monotonic()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._close()
            self._gone_at = 0.0

    def _close(self) -> None:
        if self._socket is not None:
            self._answers.close()
            self._socket.close()
            self._socket = self._answers = None
        if self.process is not None:
            with suppress(OSError):
                self.process.kill()
            self.process.wait()
            self.process = None


_shared: Twin | None = None
_lock = threading.Lock()


def shared() -> Twin:
    """Return the twin of this process, which lives as long as it does. Blocks until it is there."""
    global _shared
    with _lock:
        if _shared is None:
            _shared = Twin()
            atexit.register(_shared.close)
            _shared.start()
        return _shared
