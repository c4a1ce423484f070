"""A small deterministic asyncio event loop, driven from outside.

It has no selector and no clock of its own: it runs callbacks in the order they were scheduled until none is left, and
then returns. Time is the time of the event last delivered; a timer is a command of the run, so that it is durable.
The worker's own loop drives many of these from a plain callback, by swapping the thread's running loop for as long as
a drain takes.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import weakref
from asyncio import _get_running_loop
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from hashlib import blake2b
from typing import Any

from continuum.core import py311
from continuum.core.handles import Handle, TimerHandle
from continuum.core.nesting import put_back, put_in_place
from continuum.core.refusing import refuse_on
from continuum.core.releasing import close_coroutine, collecting
from continuum.core.watching import Interrupted, Watch, guarded
from continuum.exceptions import NonDeterminismError

__all__ = ["LAST_US", "DeterministicLoop", "RunTask", "Scope", "current_task"]

logger = logging.getLogger("continuum.run")

_PY311 = sys.version_info < (3, 12)
#: What asyncio.current_task() is on Python 3.11, where it is a function in Python, short of the call.
current_task: Any = asyncio.tasks._current_tasks.get if _PY311 else asyncio.current_task  # type: ignore[attr-defined]
_no_longer_awaited: Any = getattr(asyncio, "future_discard_from_awaited_by", None)  # since Python 3.14
_WAIT_FOR = asyncio.wait_for.__code__
_ENSURE_FUTURE = {
    function.__code__
    for function in (asyncio.ensure_future, getattr(asyncio.tasks, "_ensure_future", asyncio.ensure_future))
}
# Paths up to this long stand for themselves, longer ones (tasks that start tasks that start tasks, …) as a hash.
_MAX_PATH = 100
_LAST_56_BITS = (1 << 56) - 1
# A timer that lies further ahead never fires. Roughly the end of the year 9999, where datetimes end.
LAST_US = 253_400_000_000_000_000


class Scope:
    """The identity of a task within its run: its path, and how many tasks, effects and draws it has made."""

    __slots__ = ("draws", "effects", "path", "tasks")

    def __init__(self, path: str) -> None:
        self.path = path
        self.tasks = 0
        self.effects = 0
        self.draws = 0


class RunTask(asyncio.Task):  # type: ignore[type-arg]
    """A task of a run. Hashes by seed and creation order, so that a set of tasks iterates alike in every process.

    The seed keeps runs apart: asyncio has one set for the tasks of all of them.
    """

    at_once = False  # what follows its end goes before everything else that is ready

    def __init__(self, coro: Any, *, scope: Scope, serial: int, context: Context, **options: Any) -> None:
        self.scope = scope
        self.serial = serial  # first of all: asyncio puts the task into its set from within __init__
        self.run_context = context
        super().__init__(coro, context=context, **options)

    def __hash__(self) -> int:
        return self.serial


class DeterministicLoop(asyncio.AbstractEventLoop):
    """The event loop of one run.

    Args:
        execution: the run's :class:`~continuum.core.execution.Execution`, which is told of timers.
    """

    watch = Watch()  # the driver's, if it has one

    def __init__(self, execution: Any) -> None:
        self.execution = execution
        self.time_us = 0
        self.closing = False
        self.violation: NonDeterminismError | None = None  # what the code did that no replay can repeat, caught or not
        self.refused = 0  # effects asked for while closing
        self.tasks: list[RunTask] = []
        self._ready: deque[Handle] = deque()
        self.serial = 0  # how many tasks, effects and timers there were; numbers each of them
        self._first_hash = execution.run.randomness.int & _LAST_56_BITS
        self._generators: weakref.WeakSet[Any] | None = None  # few runs have any
        self.aside: Scope | None = None  # while a function runs that a replay does not run again
        self._outside = Scope("~")  # for what is created by a callback, outside any task

    # -- driving ------------------------------------------------------------------------------------------------

    def drain(self, stretch: Callable[[], None] | None = None) -> None:
        """Run callbacks until none is ready; or a stretch of several events, which sees to that itself.

        Raises:
            WorkflowDeadlockError: whoever watches has interrupted it.
            NonDeterminismError: the code has done what cannot be replayed.
        """
        hooks = sys.get_asyncgen_hooks()
        outer = put_in_place(self)
        # The outer loop must not adopt the run's async generators: it would finalize them as tasks of its own.
        sys.set_asyncgen_hooks(self._take_generator, self._drop_generator)
        try:
            interrupted = guarded(self.watch, self, stretch or self.run_ready)
        finally:
            sys.set_asyncgen_hooks(*hooks)
            put_back(outer)
        if interrupted:
            raise self.watch.verdict()
        if self.violation is not None:
            raise self.violation

    def run_ready(self) -> None:
        """Run callbacks until none is ready, where the loop is already the running one."""
        ready = self._ready
        while ready:
            handle = ready.popleft()
            callback = handle.callback
            if callback is not None:
                args = handle.args
                try:
                    if len(args) == 1:  # what asyncio's own callbacks have; spares making another tuple
                        handle.context.run(callback, args[0])
                    else:
                        handle.context.run(callback, *args)
                except (SystemExit, KeyboardInterrupt, Interrupted):
                    raise
                except BaseException as exc:  # of a callback; what a task raises is the task's result
                    self.call_exception_handler({"message": f"{callback!r} raised", "exception": exc})

    def close_tasks(self) -> None:
        """Close every unfinished coroutine of the run, newest first, without recording anything."""
        self.closing = True
        self._ready.clear()
        if self._generators is None and all(task.done() for task in self.tasks):
            self.tasks.clear()
            return
        hooks = sys.get_asyncgen_hooks()
        outer = put_in_place(self)
        sys.set_asyncgen_hooks(None, None)
        try:
            guarded(self.watch, self, self._close_all)
        finally:
            sys.set_asyncgen_hooks(*hooks)
            put_back(outer)
            self._ready.clear()
            self.tasks.clear()

    def renewed(self) -> DeterministicLoop:
        """Close the tasks, and return a new loop for the same run, watched by the same watchdog."""
        self.close_tasks()
        loop = DeterministicLoop(self.execution)
        loop.watch = self.watch
        return loop

    def _close_all(self) -> None:
        generators = list(self._generators or ())
        for task in reversed(self.tasks):
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                self._close_task(task)
                waited_for = task._fut_waiter  # type: ignore[attr-defined]
                if waited_for is not None:
                    waited_for.cancel()  # it and the task hold each other
                    if _no_longer_awaited is not None:
                        _no_longer_awaited(waited_for, task)
        for generator in reversed(generators):
            close_coroutine(generator.aclose())

    def _close_task(self, task: RunTask) -> None:
        # As the current task: asyncio.timeout() in a finally block asks for it.
        if _PY311:
            asyncio.tasks._enter_task(self, task)
        else:
            previous = asyncio.tasks._swap_current_task(self, task)  # type: ignore[attr-defined]
        try:
            close_coroutine(task.get_coro())
        finally:
            if _PY311:
                asyncio.tasks._leave_task(self, task)
            else:
                asyncio.tasks._swap_current_task(self, previous)  # type: ignore[attr-defined]

    def _take_generator(self, generator: Any) -> None:
        self._generators = self._generators or weakref.WeakSet()
        self._generators.add(generator)

    def _drop_generator(self, generator: Any) -> None:
        # As with asyncio, a generator that is dropped half-way ends in a task of its own. But not when the garbage
        # collector finds it, which may be at any time and anywhere: then it ends without a word.
        if _get_running_loop() is self and not collecting():
            if self.closing:
                close_coroutine(generator.aclose())
            else:
                self.call_soon(lambda: self.create_task(generator.aclose()))

    # -- what tasks and futures use -----------------------------------------------------------------------------

    def time(self) -> float:
        return self.time_us / 1e6

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Handle:
        # No __init__: before Python 3.13 calling it takes longer than all the rest of this.
        handle = Handle()
        handle.callback = callback
        handle.args = args
        handle.context = copy_context() if context is None else context
        self._ready.append(handle)
        if _PY311 and args and type(args[0]) is RunTask and args[0].at_once:
            self._ready.rotate(1)
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> TimerHandle:
        return self._timer(_microseconds(delay), callback, args, context)

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> TimerHandle:
        return self._timer(max(0, _microseconds(when) - self.time_us), callback, args, context)

    def _timer(
        self, delay_us: int, callback: Callable[..., Any], args: tuple[Any, ...], context: Context | None
    ) -> TimerHandle:
        self.refuse_aside("a timer")
        when = (self.time_us + delay_us) / 1e6
        handle = TimerHandle(self, when, callback, args, copy_context() if context is None else context)
        if not self.closing:
            handle.command = self.execution.start_timer(delay_us, handle)
        return handle

    def fire(self, handle: TimerHandle) -> None:
        """Schedule the callback of a timer that is due."""
        if handle.callback is not None:
            self.call_soon(handle.callback, *handle.args, context=handle.context)
            handle.command = None  # from now on cancelling it has nothing to abandon
            handle.cancel()

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_root(self, coro: Any) -> RunTask:
        """Return the task of the workflow function: the first of the run.

        Its context is empty: nothing of the process that happens to run it may leak in.
        """
        context = Context()
        self.serial += 1
        serial = self._first_hash + self.serial
        task = RunTask(coro, scope=Scope("0"), serial=serial, context=context, loop=self, name="0")
        self.tasks.append(task)
        return task

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None, **_: Any) -> Any:
        if self.closing:
            close_coroutine(coro)
            refused = self.create_future()
            refused.cancel()
            return refused
        if self.aside is not None:
            close_coroutine(coro)
            self.refuse_aside("a task")
        parent = self.scope()
        waiting = _wait_for_frame()
        if waiting is not None:
            # wait_for wraps what it waits for in a task on Python 3.11 and does not on later ones. The wrapper shares
            # the identity of the task that waits, so that a history is good on every version.
            scope, context = parent, current_task(self).run_context  # type: ignore[union-attr]
        else:
            scope = self._new_scope(parent)
            self.serial += 1
        task = RunTask(
            coro,
            scope=scope,
            serial=self._first_hash + self.serial,
            context=copy_context() if context is None else context,
            loop=self,
            name=scope.path if name is None else name,
        )
        if waiting is not None and _PY311:
            py311.at_once(self, task, waiting)
        self.tasks.append(task)
        if len(self.tasks) > 64 and len(self.tasks) & (len(self.tasks) - 1) == 0:
            self.tasks = [t for t in self.tasks if not t.done()]
        return task

    def scope(self) -> Scope:
        """The scope of the task that is running, or the run's outer one."""
        if self.aside is not None:
            return self.aside
        task: Any = current_task(self)
        try:
            return self._outside if task is None else task.scope
        except AttributeError:
            raise NonDeterminismError(
                "a task made by asyncio.Task() has no place in its run: use asyncio.create_task() instead"
            ) from None

    def refuse_aside(self, what: str) -> None:
        """Refuse what a function given to ``side_effect`` must not do."""
        if self.aside is not None:
            raise NonDeterminismError(
                f"{what} inside a function given to side_effect(): in a replay the function does not run, so that "
                "what it does besides returning a value would be missing"
            )

    def _new_scope(self, parent: Scope) -> Scope:
        parent.tasks += 1
        path = f"{parent.path}.{parent.tasks}"
        if len(path) > _MAX_PATH:
            path = f"~{blake2b(path.encode(), digest_size=12).hexdigest()}"
        return Scope(path)

    get_debug = bool  # type: ignore[assignment]  # each future asks: False, without a call of Python

    def set_debug(self, enabled: bool) -> None: ...

    def _timer_handle_cancelled(self, handle: Any) -> None: ...

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return self.closing

    def get_task_factory(self) -> None:
        return None

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.closing and not self.execution.replaying:
            logger.warning(
                "run %s: %s", self.execution.run.id, context.get("message"), exc_info=context.get("exception")
            )

    default_exception_handler = call_exception_handler


def _wait_for_frame() -> Any:
    frame: Any = sys._getframe(2)  # whoever called create_task
    while frame is not None and frame.f_code in _ENSURE_FUTURE:
        frame = frame.f_back
    return frame if frame is not None and frame.f_code is _WAIT_FOR else None


def _microseconds(seconds: float) -> int:
    return round(min(max(seconds, 0.0) * 1e6, LAST_US))


refuse_on(DeterministicLoop)
if _PY311:
    DeterministicLoop.create_future = py311.create_future  # type: ignore[method-assign]
DeterministicLoop.__abstractmethods__ = frozenset()
