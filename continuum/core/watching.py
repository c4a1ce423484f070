"""Interrupting workflow code that does not let go. Who watches, and when it is too long, is the driver's business.

The exception is raised from another thread, so it can hit at any moment. All that keeps it inside the code it is meant
for is here: while ``active`` is set it may be raised, and when :func:`guarded` returns none is left on its way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Interrupted", "Watch", "guarded"]


class Interrupted(BaseException):
    """Ends workflow code that has run for too long. Not an Exception, so that it is not swallowed by accident."""


class Watch:
    """What tells a watchdog whether workflow code runs, and since when. This one has no watchdog.

    Attributes:
        serial: the number of the stretch of workflow code that runs, or ran last.
        active: whether it runs.
        subject: the loop it runs in, while it runs.
        raised: an interruption is on its way, or was: call ``settle`` before going on.
    """

    def __init__(self) -> None:
        self.serial = 0
        self.active = False
        self.subject: Any = None
        self.raised = False

    def settle(self) -> bool:
        """Have no interruption left on its way, and return whether there was one."""
        self.raised = False
        return False

    def verdict(self) -> Exception:
        """Return the error that says what was interrupted."""
        raise NotImplementedError


def guarded(watch: Watch, subject: Any, fn: Callable[[], None]) -> bool:
    """Call ``fn``, which may be interrupted; returns whether it was."""
    interrupted = False
    watch.subject = subject
    watch.serial += 1
    watch.active = True
    try:
        fn()
    except Interrupted:
        interrupted = True
    finally:
        # A pending exception is raised at a call, at a jump backwards or at the start of a function: not between the
        # next line, after which none is sent, and the "try" below, where the one that was sent may hit.
        watch.active = False
        while watch.raised:
            try:
                interrupted = watch.settle() or interrupted
            except Interrupted:
                interrupted = True
        watch.subject = None
    return interrupted
