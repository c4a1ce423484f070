"""Lets a worker process kill itself at a chosen moment: around a commit of its journal, or of an activity's own."""

import os
import signal


def arm_from_environment() -> None:
    """Arm if ``CRASH`` says so: ``before:2`` or ``after:1``, commits of the journal counted from 1 in each process.

    ``transaction:recorded`` is when a transactional activity has all written but the commit, ``transaction:committed``
    when the commit is made and the worker does not know yet.
    """
    order = os.environ.get("CRASH")
    if not order:
        return
    if order.startswith("transaction:"):
        _arm_transactions("_record" if order == "transaction:recorded" else "_commit")
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


def _arm_transactions(method: str) -> None:
    from continuum.worker.transactional import Transactions

    real = getattr(Transactions, method)

    def crashing(self, *args):
        real(self, *args)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(Transactions, method, crashing)
