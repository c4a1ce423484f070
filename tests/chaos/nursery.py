"""A process that has everything loaded and forks workers: ``python -m tests.chaos.nursery``.

It reads orders from its standard input, one JSON object a line (``number``, ``log``, ``broken``), and says
``started NUMBER PID`` and ``ended NUMBER STATUS``. Forking saves the time it takes to start an interpreter and to load
a project, which few cores have to spare while everything breaks. At the end of its input it kills what is left.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from contextlib import suppress
from typing import Any


def serve() -> None:
    """Fork workers, and tell of their ends."""
    numbers: dict[int, int] = {}
    rest = b""
    while True:
        if select.select([0], [], [], 0.05)[0]:
            read = os.read(0, 65536)
            if not read:
                break
            *lines, rest = (rest + read).split(b"\n")
            for line in lines:
                order = json.loads(line)
                pid = _fork(order)
                numbers[pid] = order["number"]
                print("started", order["number"], pid, flush=True)
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                print("ended", numbers.pop(ended[0]), os.waitstatus_to_exitcode(ended[1]), flush=True)
    for pid in numbers:
        os.kill(pid, signal.SIGKILL)


def _fork(order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        _work(order.get("broken"))
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _work(broken: str | None) -> None:
    from django.core.management import call_command

    if broken:
        from tests.chaos.broken import break_on_purpose

        break_on_purpose(broken)
    call_command("continuum_worker", processes=1, verbosity=1, skip_checks=True)


if __name__ == "__main__":
    import django

    django.setup()
    import continuum.worker.node  # noqa: F401
    import tests.chaos.workflows  # noqa: F401

    serve()
