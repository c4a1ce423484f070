"""A worker that kills itself right before, or right after, a chosen commit of its journal.

    python -m tests.kill_at_commit --commit 3 --when after -- --burst

What stands after ``--`` goes to ``continuum_worker``. With ``--serve`` the process is no worker itself: it reads orders
from its standard input, one JSON list of such arguments a line, forks a worker for each, and prints its process id and
then its exit status. Forking saves the time it takes to start an interpreter and to load a project.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from typing import NoReturn


def arm(commit: int, when: str) -> None:
    """Have this process killed at the commit of its journal with this number, counted from 1; 0 stands for never."""
    from continuum.worker.journal import Journal

    execute = Journal._execute
    commits = 0

    async def dying(self, connection, batch):
        nonlocal commits
        commits += 1
        fatal = commits == commit
        if fatal and when == "before":
            die()
        rows = await execute(self, connection, batch)
        if fatal:
            die()
        return rows

    Journal._execute = dying


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def work(arguments: list[str]) -> None:
    """Be the worker that these arguments describe."""
    from django.core.management import call_command

    parser = argparse.ArgumentParser(prog="python -m tests.kill_at_commit")
    parser.add_argument("--commit", type=int, required=True)
    parser.add_argument("--when", choices=["before", "after"], required=True)
    parser.add_argument("worker", nargs="*")
    options = parser.parse_args(arguments)
    arm(options.commit, options.when)
    call_command("continuum_worker", "--processes=1", *options.worker)


def serve() -> None:
    """Fork a worker for each order."""
    import continuum.worker.node  # noqa: F401  (so that no worker has to load it)

    for order in sys.stdin:
        pid = os.fork()
        if not pid:
            status = 1
            try:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(2, 1)
                work(json.loads(order))
                status = 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 1
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(status)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    import django

    django.setup()
    import tests.app.everything_workflows  # noqa: F401

    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        work(sys.argv[1:])
