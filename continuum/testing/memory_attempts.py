"""Attempts of activities in virtual time: mocked or real, at once or spread over time, one after the other."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any

from continuum import values
from continuum.core.activity_context import current_attempt
from continuum.core.commands import Command
from continuum.core.failures import describe_exception
from continuum.core.loop import LAST_US
from continuum.exceptions import ActivityTimeoutError
from continuum.testing.memory_keys import Claim, Keys
from continuum.testing.mocks import Call, Mock, MockExhaustedError
from continuum.testing.virtual_loop import VirtualLoop, outside_any_loop
from continuum.worker import instances
from continuum.worker.attempt import Attempt
from continuum.worker.attempt_errors import failure
from continuum.worker.retries import next_attempt_us

if TYPE_CHECKING:
    from continuum.testing.memory_runs import MemoryRun
    from continuum.testing.world import World

__all__ = ["Attempts"]

# What the jitter of a retry policy draws from: the middle, so that delays are what the policy names.
_NO_JITTER = 0.5


class _VirtualAttempt(Attempt):
    """An attempt whose heartbeats are told in virtual time."""

    beaten_us = 0
    clock: Callable[[], int] = staticmethod(lambda: 0)

    def beat(self, details: Any) -> None:
        super().beat(details)
        self.beaten_us = self.clock()

    @property
    def due_us(self) -> tuple[int, int]:
        """By when it has to end, and to send a heartbeat, microseconds since the epoch."""
        timeout = LAST_US if self.timeout is None else self.started_us + round(self.timeout * 1e6)
        silence = LAST_US if self.heartbeat_timeout is None else self.beaten_us + round(self.heartbeat_timeout * 1e6)
        return timeout, silence


class Attempts:
    """Makes the attempts that the runs of a world ask for.

    Args:
        world: the world.
        max_bytes: largest result, in bytes of JSON text.
    """

    def __init__(self, world: World, max_bytes: int | None) -> None:
        self._world = world
        self._max_bytes = max_bytes
        self._loop: VirtualLoop | None = None
        self._tasks: dict[tuple[Any, str], tuple[asyncio.Task[Any], _VirtualAttempt]] = {}
        self._keys = Keys()
        self._calls: dict[tuple[Any, str, int], Call] = {}
        self._broken: BaseException | None = None

    # -- activities ---------------------------------------------------------------------------------------------

    def start(self, run: MemoryRun, commands: Iterable[Command]) -> None:
        """Start what a run asks for."""
        for command in commands:
            due_us = max(command.not_before_us or 0, self._world.clock_us)
            self._world.at(due_us, self._start, run, run.execution, command)

    def _start(self, run: MemoryRun, execution: Any, command: Command) -> None:
        if run.execution is not execution or command.answered:
            return
        if command.key is not None and not self._take_key(run, execution, command):
            return
        options = command.options
        attempt = _VirtualAttempt(
            run.id,
            command.id,
            command.definition,
            command.args,
            command.attempt,
            options.timeout,
            retry=options.retry,
            idempotency_key=command.key,
            heartbeat_timeout=options.heartbeat_timeout,
        )
        if (details := run.beats.get(command.id)) is not None:
            attempt.heartbeat_details = values.decode(details)
        attempt.clock = lambda: self._world.clock_us  # type: ignore[method-assign]
        attempt.started_us = attempt.beaten_us = self._world.clock_us
        self._note_call(run, command)
        run.under_way.add(command.id)
        mock = self._world.mocks.get(command.name or "")

        def ended(result: str | None, error: BaseException | None) -> None:
            self._ended(run, execution, command, attempt, result, error)

        work: Any
        if mock is not None and mock.takes:
            work = self._later(attempt, mock)
        elif mock is None and command.definition.is_async:
            work = self._real_async(attempt)
        else:
            work, error = self._now(self._real if mock is None else partial(self._mocked, mock), attempt)
            if not inspect.isawaitable(work):
                ended(work, error)
                return
            work = self._awaited(attempt, work)
        self._spawn((execution, command.id), attempt, work, ended)
        self._watch(execution, attempt)

    @staticmethod
    def _now(call: Callable[[_VirtualAttempt], Any], attempt: _VirtualAttempt) -> tuple[Any, BaseException | None]:
        try:
            with outside_any_loop():
                return Context().run(call, attempt), None
        except (MockExhaustedError, KeyboardInterrupt):
            raise
        except BaseException as error:
            return None, error

    def _real(self, attempt: _VirtualAttempt) -> str:
        current_attempt.set(attempt)
        args, kwargs = instances.load(attempt, *attempt.arguments())
        return self._encode(attempt, attempt.definition.fn(*args, **kwargs))

    async def _real_async(self, attempt: _VirtualAttempt) -> str:
        current_attempt.set(attempt)
        args, kwargs = await instances.aload(attempt, *attempt.arguments())
        return self._encode(attempt, await attempt.definition.fn(*args, **kwargs))

    def _mocked(self, mock: Mock, attempt: _VirtualAttempt) -> Any:
        current_attempt.set(attempt)
        args, kwargs = attempt.arguments()
        value = mock.behave(*args, **kwargs)
        return value if inspect.isawaitable(value) else self._encode(attempt, value)

    async def _awaited(self, attempt: _VirtualAttempt, value: Any) -> str:
        current_attempt.set(attempt)
        return self._encode(attempt, await value)

    async def _later(self, attempt: _VirtualAttempt, mock: Mock) -> str:
        await asyncio.sleep(mock.takes)
        value = self._mocked(mock, attempt)
        return await self._awaited(attempt, value) if inspect.isawaitable(value) else value

    def _encode(self, attempt: _VirtualAttempt, value: Any) -> str:
        return values.encode(value, attempt.definition.returns, path="result", max_bytes=self._max_bytes)

    # -- in time ------------------------------------------------------------------------------------------------

    def _spawn(self, place: tuple[Any, str], attempt: _VirtualAttempt, work: Any, ended: Callable[..., None]) -> None:
        if self._loop is None:
            self._loop = VirtualLoop(lambda: self._world.clock_us, self._world.pass_time)
        task = self._loop.create_task(work, context=Context())
        self._tasks[place] = task, attempt

        def done(task: asyncio.Task[Any]) -> None:
            if self._tasks.get(place, (None,))[0] is not task:
                if not task.cancelled():
                    task.exception()  # of no interest to anybody
                return
            del self._tasks[place]
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            if isinstance(error, MockExhaustedError | KeyboardInterrupt | SystemExit):
                self._broken = error
                return
            result = None if error is not None else task.result()
            self._world.at(self._world.clock_us, ended, result, error)

        task.add_done_callback(done)

    def _watch(self, execution: Any, attempt: _VirtualAttempt) -> None:
        """Look at an attempt again when it may have taken too long."""
        due_us = min(attempt.due_us)
        if due_us < LAST_US:
            self._world.at(due_us, self._check_timeout, execution, attempt, rank=2)

    def _check_timeout(self, execution: Any, attempt: _VirtualAttempt) -> None:
        place = (execution, attempt.command_id)
        task, current = self._tasks.get(place, (None, None))
        if current is not attempt or task is None:
            return
        overdue, silent = (self._world.clock_us >= due_us for due_us in attempt.due_us)
        if not overdue and not silent:
            self._watch(execution, attempt)
            return
        del self._tasks[place]
        attempt.timed_out = True
        task.cancel()
        limit = attempt.timeout if overdue else attempt.heartbeat_timeout
        assert limit is not None
        run = self._world.runs[attempt.run_id]
        command = execution.pending.get(attempt.command_id)
        if command is not None:
            error = ActivityTimeoutError(attempt.definition.name, limit, not overdue)
            self._ended(run, execution, command, attempt, None, error)

    @property
    def next_due_us(self) -> int | None:
        """When the first of those under way goes on, microseconds since the epoch, or None."""
        return self._loop.next_due_us() if self._loop is not None and self._tasks else None

    def run_until_quiet(self) -> None:
        """Let those under way go on until each of them waits for a later time."""
        if self._loop is not None and self._tasks:
            with outside_any_loop():
                self._loop.run_until_quiet()
            if self._broken is not None:
                broken, self._broken = self._broken, None
                raise broken

    # -- ends ---------------------------------------------------------------------------------------------------

    def _ended(
        self,
        run: MemoryRun,
        execution: Any,
        command: Command,
        attempt: _VirtualAttempt,
        result: str | None,
        error: BaseException | None,
    ) -> None:
        attempt.settled = True
        if run.execution is not execution or command.answered:
            return
        run.under_way.discard(command.id)
        now_us = self._world.clock_us
        call = self._calls[(run.id, command.id, run.retries)]
        if attempt.details_json is not None:
            run.beats[command.id] = attempt.details_json
        if error is None:
            text = result or "null"
            call.state, call.result = "completed", values.decode(text, command.definition.returns)
            execution.activity_completed(command, text, attempt.started_us, now_us)
            run.beats.pop(command.id, None)
            self._give_key(run, command, text)
        else:
            reported = failure(attempt, error)
            call.error = described = {key: reported[key] for key in ("type", "message", "traceback", "details")}
            next_us = next_attempt_us(command, reported, now_us, _NO_JITTER)
            if next_us is None:
                call.state = "failed"
                execution.activity_failed(command, described, attempt.started_us, now_us)
                run.beats.pop(command.id, None)
                self._give_key(run, command, None)
            else:
                execution.activity_retried(command, described, attempt.started_us, now_us, next_us)
                self.start(run, [command])
        self._world.advance(run)

    def abandon(self, run: MemoryRun, commands: Iterable[Command]) -> None:
        """Forget attempts whose results nobody wants any more."""
        for command in commands:
            self._drop((run.execution, command.id))
            run.under_way.discard(command.id)
            if call := self._calls.get((run.id, command.id, run.retries)):
                call.state = "abandoned"
            self._give_key(run, command, None)

    def abandon_all(self, execution: Any) -> None:
        """Forget all attempts of an execution that is given up."""
        for place in [place for place in self._tasks if place[0] is execution]:
            self._drop(place)

    def _drop(self, place: tuple[Any, str]) -> None:
        task, attempt = self._tasks.pop(place, (None, None))
        if task is not None and attempt is not None:
            attempt.settled = True
            task.cancel()
            with outside_any_loop():
                assert self._loop is not None
                self._loop.run_until_quiet()

    def _note_call(self, run: MemoryRun, command: Command) -> None:
        place = (run.id, command.id, run.retries)
        call = self._calls.get(place)
        if call is None:
            args, kwargs = command.definition.decode_arguments(command.args)
            call = Call(command.name or "", tuple(args), kwargs, 0, run.id, command.id, command.key)
            self._calls[place] = call
            self._world.mocks.calls.append(call)
        call.attempts += 1

    def _take_key(self, run: MemoryRun, execution: Any, command: Command) -> bool:
        """Whether a call may run its body; else it gets the result that is there, or waits for it."""
        world = self._world
        place = (command.name or "", command.key or "")

        def again() -> None:
            world.at(world.clock_us, self._start, run, execution, command)

        claim = self._keys.ask(place, (run.id, command.id), again)
        if claim is Claim.DONE:
            execution.activity_completed(command, self._keys.results[place], world.clock_us, world.clock_us)
            world.advance(run)
        return claim is Claim.OURS

    def _give_key(self, run: MemoryRun, command: Command, result: str | None) -> None:
        if command.key is not None:
            self._keys.give((command.name or "", command.key), (run.id, command.id), result)

    # -- children that are mocked -------------------------------------------------------------------------------

    def stand_in(self, run: MemoryRun, mock: Mock, ended: Callable[[str | None, dict[str, Any] | None], None]) -> None:
        """Have a mock do what a child would."""
        args, kwargs = run.definition.decode_arguments(run.input_json)
        call = Call(run.workflow, tuple(args), kwargs, 1, run.id, run.reply_to or "")
        self._world.mocks.calls.append(call)

        async def work() -> str:
            if mock.takes:
                await asyncio.sleep(mock.takes)
            value = mock.behave(*args, **kwargs)
            value = await value if inspect.isawaitable(value) else value
            return values.encode(value, run.definition.returns, path="result", max_bytes=self._max_bytes)

        def done(result: str | None, error: BaseException | None) -> None:
            if run.outcome is not None:
                call.state = "abandoned"
                return
            described = None if error is None else describe_exception(error)
            call.state, call.error = ("completed" if error is None else "failed"), described
            call.result = None if result is None else values.decode(result, run.definition.returns)
            ended(result, described)

        attempt = _VirtualAttempt(run.id, "", run.definition, run.input_json, 1)  # type: ignore[arg-type]
        self._spawn((run, ""), attempt, work(), done)

    def close(self) -> None:
        """End what is under way, and the loop."""
        for place in list(self._tasks):
            self._drop(place)
        if self._loop is not None:
            with outside_any_loop():
                self._loop.run_until_complete(self._loop.shutdown_asyncgens())
                self._loop.close()
            self._loop = None
