"""Lets a worker process kill itself right before, or right after, a chosen commit of its journal."""

import os
import signal


def arm_from_environment() -> None:
    """Arm if ``CRASH`` says so: ``before:2`` or ``after:1``, commits counted from 1 in each process."""
    order = os.environ.get("CRASH")
    if not order:
        return
    from continuum.worker.journal import Journal

    moment, number = order.split(":")
    write = Journal._write
    commits = 0

    async def crashing(self, batch):
        nonlocal commits
        # Only commits with events count: others are made when a run has been quiet, which is a matter of timing.
        commits += any(entry.events for entry in batch)
        if commits == int(number) and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        lost = await write(self, batch)
        if commits == int(number) and moment == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return lost

    Journal._write = crashing
