"""``continuum_env``: workflows in memory, in virtual time, without a database or a worker."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from continuum import arguments, values
from continuum.conf import settings as continuum_settings
from continuum.core.durations import seconds
from continuum.core.identity import RunIdentity
from continuum.determinism import guards
from continuum.exceptions import (
    AlreadyStartedError,
    ContinuumError,
    RunCancelledError,
    RunFailedError,
    RunNotActiveError,
    RunNotFoundError,
    RunStateError,
)
from continuum.models import Event, Run
from continuum.testing.crashes import CrashReport, check_crashes, scenario_of
from continuum.testing.memory_runs import Letter, MemoryRun, StillWaitingError, instant
from continuum.testing.mocks import Call, Mock, Mocks, target_of
from continuum.testing.world import World

__all__ = ["Environment", "StuckError"]

# Beyond so many steps without an end, a test is taken to be in a loop.
MOST_STEPS = 100_000

RunLike = MemoryRun | Run | UUID | str


class StuckError(ContinuumError, AssertionError):
    """A test waits for the end of a run that cannot come; the message says what the run waits for."""


class Environment:
    """Runs workflows in memory. What a call of ``continuum`` takes and raises, the method of that name does too.

    Time is virtual: it begins on 14 June 2024 at noon (UTC) and passes only in :meth:`advance`, and in :meth:`result`
    and the like, which skip to whatever is due next. Every method goes on as far as it can without time passing.
    Activities run one after the other, in the test's own thread.
    """

    def __init__(self) -> None:
        self._mocks = Mocks()
        self._keys: dict[tuple[str, str, str], UUID] = {}
        self._started = 0
        self._world = World(self._mocks, continuum_settings.MAX_VALUE_BYTES)
        # What a worker would stop is stopped here as well.
        self._guards = ExitStack()
        self._guards.enter_context(guards.guarding())

    def close(self) -> None:
        """Give all runs up. The fixture does so when the test has ended."""
        self._world.close()
        self._guards.close()

    # -- activities ---------------------------------------------------------------------------------------------

    def mock(self, target: Any, fn: Callable[..., Any] | None = None, **behaviour: Any) -> Mock:
        """Have something stand in for an activity, or for a workflow that is started as a child.

            continuum_env.mock(charge_card, return_value="ch_1")
            continuum_env.mock(charge_card, side_effect=[GatewayBusyError(), "ch_1"])
            continuum_env.mock(charge_card, lambda order_id, cents: f"ch_{order_id}", takes=3)

        Args:
            target: the activity or workflow, or its name.
            fn: a function, ``def`` or ``async def``, that is called with the arguments.
            return_value: what is returned each time.
            side_effect: a function; or an exception; or a list of what is returned, or raised, by one call after the
                other.
            raises: the exception that is raised each time.
            takes: seconds (or a timedelta) of virtual time that each attempt takes; 0 unless given.

        Returns:
            Mock: its ``calls``, and ``call_count``.

        Raises:
            TypeError: none of these is given, or more than one of those that exclude each other.
        """
        return self._mocks.set(target, fn, **behaviour)

    def unmock(self, target: Any) -> None:
        """Have the real thing again."""
        self._mocks.remove(target)

    def calls(self, target: Any) -> list[Call]:
        """Return the calls of an activity, or of a mocked child, oldest first: one a call, whatever it took to answer.

        Raises:
            TypeError: ``target`` is neither an activity nor a workflow.
        """
        name = target_of(target).name
        return [call for call in self._mocks.calls if call.name == name]

    # -- runs ---------------------------------------------------------------------------------------------------

    def start(
        self,
        flow: Any,
        *args: Any,
        namespace: str = "default",
        attributes: dict[str, Any] | None = None,
        idempotency_key: str | None = None,
        start_at: datetime | None = None,
        timeout: float | timedelta | None = None,
        priority: int = 0,
    ) -> MemoryRun:
        """Start a run, and let it go as far as it can without time passing. As :func:`continuum.start`."""
        definition = arguments.definition_of(flow)
        encoded = arguments.encode_input(definition, args)
        options = arguments.start_options(namespace, attributes, start_at, timeout, priority)
        now_us = self._world.clock_us
        begin_us = now_us if start_at is None else max(now_us, _microseconds(options["start_at"]))
        id_ = self._world.new_id("start", self._started)
        if idempotency_key is not None:
            place = (namespace, definition.name, arguments.text("idempotency_key", idempotency_key))
            if place in self._keys:
                raise AlreadyStartedError(self._keys[place], definition.name, idempotency_key)
            self._keys[place] = id_
        self._started += 1
        run = MemoryRun(
            definition=definition,
            identity=RunIdentity(id_, namespace, definition.version, started_us=now_us),
            input_json=encoded,
            attributes=dict(attributes or {}),
            correlation_id=id_,
            priority=priority,
            idempotency_key=idempotency_key,
            begin_us=begin_us,
            deadline_us=None if options["timeout_us"] is None else begin_us + options["timeout_us"],
        )
        self._world.add(run)
        self._settle()
        return run

    def get_or_start(self, flow: Any, *args: Any, idempotency_key: str, **options: Any) -> tuple[MemoryRun, bool]:
        """As :func:`continuum.get_or_start`."""
        try:
            return self.start(flow, *args, idempotency_key=idempotency_key, **options), True
        except AlreadyStartedError as taken:
            return self._world.runs[taken.run_id], False

    def get_run(self, run_id: RunLike, namespace: str | None = None) -> MemoryRun:
        """As :func:`continuum.get_run`; also for children, by their ids."""
        wanted = run_id.id if isinstance(run_id, MemoryRun) else arguments.run_uuid(run_id)
        run = self._world.runs.get(wanted)
        if run is None or (namespace is not None and run.namespace != namespace):
            raise RunNotFoundError(wanted)
        return run

    def runs(self, flow: Any = None) -> list[MemoryRun]:
        """Return all runs, those of children and successors too, in the order they were started; of one workflow."""
        name = None if flow is None else target_of(flow).name
        return [run for run in self._world.runs.values() if name in (None, run.workflow)]

    def signal(
        self,
        run_id: RunLike,
        name: str,
        payload: Any = None,
        *,
        delivery_id: str | None = None,
        namespace: str | None = None,
    ) -> bool:
        """Send a signal, and let things go as far as they can. As :func:`continuum.signal`."""
        run = self._world.tip(self.get_run(run_id, namespace))
        arguments.text("name", name, 200)
        if delivery_id is not None and arguments.text("delivery_id", delivery_id) in run.deliveries:
            return False
        if run.is_terminal:
            raise RunNotActiveError(run.id, run.state)
        annotation = arguments.declared_signal(run.id, run.workflow, run.version, name, payload)
        encoded = arguments.encode_value(payload, annotation, "payload")
        if delivery_id is not None:
            run.deliveries.add(delivery_id)
        self._world.send(run, Letter("signal", name, encoded))
        self._settle()
        return True

    def cancel(self, run_id: RunLike, *, reason: str = "", namespace: str | None = None) -> None:
        """Ask a run to stop, and let things go as far as they can. As :func:`continuum.cancel`."""
        if not isinstance(reason, str):
            raise TypeError(f"reason must be a string, not {reason!r}")
        run = self._world.tip(self.get_run(run_id, namespace))
        if run.is_terminal:
            raise RunNotActiveError(run.id, run.state)
        arguments.encode_value(reason, None, "reason")
        self._world.send(run, Letter("cancel", None, reason))
        self._settle()

    def retry(self, run_id: RunLike, namespace: str | None = None) -> MemoryRun:
        """Let a failed run go on from where it failed. As :func:`continuum.retry`."""
        run = self.get_run(run_id, namespace)
        if run.state != "failed":
            raise RunStateError(run.id, run.state, "failed")
        self._world.retry(run)
        self._settle()
        return run

    def fork(self, run_id: RunLike, before: str, namespace: str | None = None) -> MemoryRun:
        """Start a run that shares another's history before a command. As :func:`continuum.fork`."""
        run = self.get_run(run_id, namespace)
        other, found = self._world.fork(run, arguments.text("before", before))
        if not found and run.is_terminal:
            raise ValueError(f"before: the history of run {run.id} holds nothing about a command {before!r}")
        self._world.take_up(other)
        self._settle()
        return other

    def set_attributes(self, run_id: RunLike, attributes: dict[str, Any], namespace: str | None = None) -> None:
        """As :func:`continuum.set_attributes`."""
        run = self.get_run(run_id, namespace)
        arguments.start_options("default", attributes, None, None, 0)
        run.attributes = {**run.attributes, **attributes}

    # -- what comes of them -------------------------------------------------------------------------------------

    def result(self, run_id: RunLike, timeout: float | timedelta | None = None, namespace: str | None = None) -> Any:
        """Skip time until a run has ended, and return what it returned. As :func:`continuum.result`.

        Args:
            timeout: seconds or timedelta of virtual time it may take; any time unless given.

        Raises:
            StuckError: nothing can happen any more, and the run has not ended; says what it waits for.
            TimeoutError: it has not ended within ``timeout``.
            RunFailedError, RunCancelledError, RunNotFoundError: as in production.
        """
        run = self.wait_run(run_id, timeout, namespace)
        assert run.outcome is not None
        if run.state == "failed":
            raise RunFailedError(run.id, run.error)
        if run.state == "cancelled":
            raise RunCancelledError(run.id, (run.error or {}).get("message", ""))
        return None if run.outcome.result is None else values.decode(run.outcome.result, run.definition.returns)

    def wait_run(
        self, run_id: RunLike, timeout: float | timedelta | None = None, namespace: str | None = None
    ) -> MemoryRun:
        """Skip time until a run has ended, and return it; of a chain of continued runs, the last.

        Raises:
            StuckError, TimeoutError, RunNotFoundError: as for :meth:`result`.
        """
        first = self.get_run(run_id, namespace)
        limit = arguments.wait_seconds(timeout)
        until_us = None if limit is None else self._world.clock_us + round(limit * 1e6)
        self._not_inside("wait_run() and result()")
        for _ in range(MOST_STEPS):
            run = self._world.tip(first)
            if run.is_terminal:
                return run
            if not self._world.step(until_us):
                if until_us is not None:
                    self._world.clock_us = max(self._world.clock_us, until_us)
                    raise StillWaitingError(run.id, run.state, limit or 0.0, _waits(run))
                raise StuckError(f"{run} cannot go on: {_waits(run)}{_advice(run)}")
        raise StuckError(
            f"{self._world.tip(first)} has not ended after {MOST_STEPS:,} steps, at {self.now.isoformat()}: it goes "
            f"round in circles, or for ever; {_waits(self._world.tip(first))}"
        )

    def run_until_idle(self) -> None:
        """Skip time until nothing can happen any more: each run has ended, or waits for what only a test can send."""
        self._not_inside("run_until_idle()")
        self._steps(None, "nothing would be left to do")

    def history(self, run_id: RunLike) -> list[Event]:
        """Return the events of a run, oldest first."""
        return list(self.get_run(run_id).history())

    def waiting_on(self, run_id: RunLike) -> list[dict[str, Any]]:
        """Return what a run, of a chain the live one, waits for: each with its ``kind``, as ``Run.waiting_on``."""
        return self._world.tip(self.get_run(run_id)).waiting_on

    # -- time and trouble ---------------------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        """The virtual time, aware, in UTC."""
        return instant(self._world.clock_us)

    def advance(self, duration: float | timedelta) -> datetime:
        """Let time pass, and everything happen that is due meanwhile.

        Args:
            duration: seconds or timedelta.

        Returns:
            The time afterwards.
        """
        self._not_inside("advance()")
        until_us = self._world.clock_us + round(seconds(duration, "duration") * 1e6)
        self._steps(until_us, f"it was {instant(until_us).isoformat()}")
        self._world.clock_us = max(self._world.clock_us, until_us)
        return self.now

    def crash(self) -> None:
        """Lose the worker, with every attempt that is under way, and take the runs up in another by replaying them."""
        self._not_inside("crash()")
        self._world.crash()
        self._settle()

    def crash_everywhere(self, flow: Any, *args: Any, signals: Any = (), **options: Any) -> CrashReport:
        """Run a workflow, and prove that it survives the loss of its worker after each step it has recorded.

            continuum_env.crash_everywhere(order_flow, {"id": "o1"}, signals={"fraud_review": "approved"})

        It runs once, here; then each run of it, of its children and successors is taken up again from every place in
        its history where a worker may die, and given what came after. It must ask for the same commands with the same
        arguments, wait for the same, and end the same. Activities are not run again: their results are known.

        Args:
            flow: the workflow; or a function that is given this environment, starts runs, and brings them to an end.
            *args: the workflow's arguments.
            signals: what it is sent as soon as it stands still: a dict from names to payloads, or a list of such pairs.
            **options: as for :meth:`start`.

        Returns:
            CrashReport: ``runs``, and ``crashes``, the number of places that were tried.

        Raises:
            AssertionError: it does not survive; says where, and what it does instead.
            StuckError: it does not end.
        """
        self._not_inside("crash_everywhere()")
        before = set(self._world.runs)
        self._world.tracing = True
        try:
            scenario_of(self, flow, args, signals, options)()
        finally:
            self._world.tracing = False
        return check_crashes([run for id_, run in self._world.runs.items() if id_ not in before])

    # -- the machinery ------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        # Called by an activity, or its mock: what it has asked for happens when it has ended.
        if not self._world.stepping:
            self._steps(self._world.clock_us, "all stood still")

    def _steps(self, until_us: int | None, goal: str) -> None:
        for _ in range(MOST_STEPS):
            if not self._world.step(until_us):
                return
        waits = "; ".join(f"{run}: {_waits(run)}" for run in self.runs() if not run.is_terminal)
        raise StuckError(f"{MOST_STEPS:,} steps were made before {goal}: something goes round in circles. {waits}")

    def _not_inside(self, what: str) -> None:
        if self._world.stepping:
            raise RuntimeError(f"{what} cannot be called by an activity or its mock: it is part of what is waited for")


def _microseconds(moment: datetime) -> int:
    return (moment - instant(0)) // timedelta(microseconds=1)


def _waits(run: MemoryRun) -> str:
    """Say what a run waits for."""
    if run.state == "pending":
        return f"it begins at {instant(run.begin_us).isoformat()}"
    waits = [_wait(entry) for entry in run.waiting_on]
    if not waits:
        return "it waits for nothing that could ever happen, such as a future that nobody sets"
    return "it waits for " + " and ".join(waits)


def _wait(entry: dict[str, Any]) -> str:
    name = f" {entry['name']!r}" if "name" in entry else ""
    more = f" until {entry['until']}" if entry.get("until") else ""
    if entry["kind"] == "child":
        more = f" ({entry['id']})"
    elif entry["kind"] == "activity" and entry.get("last_error"):
        more = f" (attempt {entry['attempt']} after {entry['last_error']})"
    return f"{entry['kind']}{name}{more}"


def _advice(run: MemoryRun) -> str:
    names = [entry["name"] for entry in run.waiting_on if entry["kind"] == "signal"]
    return f". Send it with continuum_env.signal(run, {names[0]!r}, …)" if names else ""
