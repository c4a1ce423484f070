"""The live runs of a worker: what happens to them, and what they want next.

Everything that touches a coroutine runs as a plain callback of the worker's loop, in slices: the deterministic loop of
a run may not be driven from inside a task, and a burst of results must not keep the listener or the lease waiting.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Callable, Iterable
from typing import Any
from uuid import UUID

from continuum.core.commands import Command
from continuum.core.execution import Execution, Outcome
from continuum.core.history import Event, EventType
from continuum.core.watching import Watch
from continuum.worker import adoption, rows, sending, setbacks, telling
from continuum.worker.activities import ActivityExecutor
from continuum.worker.attempts import Attempts
from continuum.worker.claims import ClaimedRun
from continuum.worker.clock import Clock
from continuum.worker.journal import Journal
from continuum.worker.live import Entry, LiveRun, Message, wanted
from continuum.worker.mail import Mail
from continuum.worker.pump import Pump
from continuum.worker.queued import Queued
from continuum.worker.summaries import Summaries
from continuum.worker.suspects import Suspects
from continuum.worker.timers import Timers

__all__ = ["Engine"]

logger = logging.getLogger("continuum.worker")

# Events replayed before others get a turn.
REPLAY_CHUNK = 200


class Engine:
    """Drives the live runs of one worker.

    Args:
        loop: the worker's loop; every method is to be called on it.
        clock: the worker's clock.
        timers: calls back when something is due.
        concurrency: how many runs may make progress at once.
        live_runs: how many may be in memory.
        max_value_bytes: largest value that may be journaled.
        on_room: called when there is room to claim more.
        on_done: called with the ids of runs whose end is durable, but for those told of along with the record.
        on_released: called with the ids of runs that have been given back, once that is durable.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        clock: Clock,
        timers: Timers,
        concurrency: int,
        live_runs: int,
        max_value_bytes: int | None,
        on_room: Callable[[], None],
        on_done: Callable[[list[UUID]], None],
        on_released: Callable[[list[UUID]], None],
    ) -> None:
        self._clock = clock
        self._timers = timers
        self._concurrency = concurrency
        self._live_limit = live_runs
        self._max_value_bytes = max_value_bytes
        self._on_room = on_room
        self._on_done = on_done
        self._on_released = on_released
        self.journal: Journal = None  # type: ignore[assignment]  # set by connect(): each needs the other
        self.live: dict[UUID, LiveRun] = {}
        self.active = 0
        self.draining = False
        self.finished = 0
        self._change = asyncio.Event()
        self.suspects = Suspects(loop, self._change.set)
        self.new_execution: Callable[..., Execution] = Execution
        self.watch = Watch()
        self.mail = Mail(self, clock)
        self.queued = Queued(self)
        self.attempts = Attempts(self, clock, timers, self._change.set)
        timers.wanted = wanted
        self.summaries = Summaries(lambda: self.journal, self._make_room)
        self._pump = Pump(loop, self._attend, self._change.set)
        self.post = self._pump.post

    def connect(self, journal: Journal, executor: ActivityExecutor) -> None:
        """Say where records and attempts go."""
        self.journal = journal
        self.attempts.executor = executor

    def _attend(self, fn: Callable[..., None], live: LiveRun, args: tuple[Any, ...]) -> None:
        """Call ``fn``; whatever it raises is this run's trouble, and no other's."""
        try:
            try:
                fn(live, *args)
            except Exception as error:
                setbacks.see_to(self.journal, self._clock, live, error)
                self._leave(live)
        except Exception:
            logger.critical("run %s: cannot be given back; it is taken up again in a while", live.id, exc_info=True)
            self.lose(live)

    # -- coming in ----------------------------------------------------------------------------------------------

    def room(self) -> int:
        """Return how many more runs may be claimed now."""
        full = self.draining or self.journal.held_back >= self._live_limit
        return 0 if full else max(0, self._concurrency - self.active)

    def admit(
        self,
        claimed: ClaimedRun,
        history: list[Event],
        messages: list[Message],
        queued: Iterable[str] = (),
        beats: dict[str, str] | None = None,
    ) -> None:
        """Take up a run that was just claimed.

        Args:
            queued: the ids of its commands that are out as tasks.
            beats: the last heartbeats of its activities, by command, as JSON text.
        """
        definition, identity, adopts = adoption.code_for(claimed)
        execution = self.new_execution(definition, identity, claimed.input, max_bytes=self._max_value_bytes)
        execution.loop.watch = self.watch
        live = LiveRun(claimed.identity.id, claimed.token, definition, execution, claimed.claimed_us)
        live.adopts = adopts
        live.deadline_us = claimed.deadline_us
        live.recoveries = claimed.recoveries
        live.beats = beats or {}
        live.queued.update(queued)
        if (known := self.live.get(live.id)) is not None:
            self.lose(known)
        self.live[live.id] = live
        self.set_active(live, True)
        live.replaying = True
        self.suspects.admit(live)
        live.recorded = history[-1].seq if history else 0
        live.hear(messages)
        self._make_room()
        telling.claimed(live, self.journal.worker_id, claimed.is_new)
        self.post(self._begin, live, history, messages, claimed.is_new)

    def _begin(self, live: LiveRun, history: list[Event], messages: list[Message], is_new: bool) -> None:
        self.suspects.judge(live)
        # Only of a run that nobody claimed before is it certain that its code has done nothing yet: one without history
        # may have begun an activity, and be due to clean up.
        cancelled: str | None = None
        if is_new and live.asked_to_stop is not None:
            cancelled = live.asked_to_stop.reason
            if not self.draining:  # else the run is given back unheard, and its next owner has to find the request
                self.journal.entry(live).remove(live.asked_to_stop)
        elif is_new and live.deadline_us is not None and live.deadline_us <= self._clock.now_us():
            cancelled = setbacks.TIME_IS_OVER
        if live.adopts is not None and cancelled is None:
            adoption.check(live, history)
        live.execution.begin(live.claimed_us, history, cancelled=cancelled)
        self._replay(live, messages)

    def _replay(self, live: LiveRun, messages: list[Message]) -> None:
        if self.draining:
            self.release(live)  # whoever takes it next has to replay it from the start anyway
            return
        if not live.execution.replay(REPLAY_CHUNK):
            self.post(self._replay, live, messages)
            return
        live.replaying = False
        live.asked_to_stop = None
        if live.adopts is not None:
            adoption.record(self.journal, live, self._clock.now_us())
        self.queued.drop_stale(live)
        if live.deadline_us is not None:
            self._timers.schedule(live.deadline_us, self._on_deadline, live)
        # Messages first: what they cancel must not be started once more.
        if messages:
            self.mail.hand_over(live, messages)
        else:
            self.advance(live)

    # -- what happens -------------------------------------------------------------------------------------------

    def _on_timer(self, live: LiveRun, due_us: int) -> None:
        if not live.gone and not live.leaving and live.timer_us == due_us:
            live.timer_us = None
            self.post(self._fire, live)

    def _fire(self, live: LiveRun) -> None:
        execution = live.execution
        if live.held_back:
            return  # it stands still until its record has landed
        now_us = self._clock.now_us() + 500
        while (command := execution.next_timer()) is not None and command.due_us <= now_us:
            if not execution.timer_fired(command, now_us - 500):
                break
        self.advance(live)

    def _on_deadline(self, live: LiveRun, due_us: int) -> None:
        self.post(self._expire, live)

    def _expire(self, live: LiveRun) -> None:
        live.execution.cancel_requested(setbacks.TIME_IS_OVER, self._clock.now_us())
        self.advance(live)

    # -- what follows -------------------------------------------------------------------------------------------

    def advance(self, live: LiveRun) -> None:
        """Hand over what the run wants recorded, and see to what it wants done."""
        journal, commands, abandoned, outcome, cancels = live.execution.take()
        if journal:
            entry = self.journal.entry(live)
            entry.events += journal
            for _, type_, _, _, data, _ in journal:
                entry.size += len(data)
                if type_ == EventType.CANCEL_REQUESTED:
                    # Also the children it has from the run it continues, of which its code knows nothing.
                    entry.send().cascade = live.execution.cancel_reason
            if live.recoveries:
                self.summaries.clear(live, entry)
        if abandoned:
            self.attempts.abandon(live, abandoned)
        if cancels or (commands and (len(commands) > 1 or commands[0].child is not None)):
            commands = sending.send(self.journal, live, commands, cancels)
        if outcome is not None:
            self._end(live, outcome)
            return
        if commands and (commands := self.queued.route(live, commands)):
            self.start_when_durable(live, commands)
        timer = live.execution.next_timer()
        if timer is not None and (live.timer_us is None or timer.due_us < live.timer_us):
            live.timer_us = timer.due_us
            self._timers.schedule(timer.due_us, self._on_timer, live)
        self._settle(live)

    def start_when_durable(self, live: LiveRun, commands: list[Command]) -> None:
        """Output commit: nothing outside sees an effect before all that led to it is durable."""
        if live.last_entry is not None:
            live.last_entry.commands += commands
        else:
            self.attempts.start(live, commands)

    def on_durable(self, entries: list[Entry]) -> None:
        """Go on with what waited for a commit."""
        ended: list[Entry] = []
        released: list[Entry] = []
        for entry in entries:
            live = entry.live
            live.unacknowledged -= 1
            if live.last_entry is entry:
                live.last_entry = None
            self.mail.removed(entry)
            if live.gone:
                continue
            update = entry.update
            if update is not None and not update.keep_owner:
                self._forget(live)
                (released if update.completed_us is None else ended).append(entry)
                continue
            if live.recoveries and update is not None and update.recoveries == 0:
                self.suspects.cleared(live)
            if entry.commands:
                self.attempts.start(live, entry.commands)
            if entry.wait is not None:
                self.post(self._fire, live)
            self._settle(live)
        self.finished += len(ended)
        if untold := [entry.live.id for entry in ended if not entry.told]:
            self._on_done(untold)
        if released:
            self._on_released([entry.live.id for entry in released])

    def on_refused(self, live: LiveRun, entry: Entry, error: Exception) -> None:
        """PostgreSQL refuses what a run wants recorded: the run fails, others do not notice."""
        live.unacknowledged -= 1
        if live.last_entry is entry:
            live.last_entry = None
        if live.gone:
            return
        if entry.last_resort:
            self.lose(live)  # even the report of the failure is refused: it is taken up again in a while
            return
        setbacks.record_refusal(self.journal, self._clock, live, entry, error)
        self._leave(live)

    def on_held_back(self, live: LiveRun) -> None:
        """What a run wants recorded waits for somebody else's lock: if it is the last, others get the run's place."""
        self.set_active(live, not live.leaving)

    # -- leaving ------------------------------------------------------------------------------------------------

    def _end(self, live: LiveRun, outcome: Outcome) -> None:
        entry = self.journal.entry(live)
        last = entry.events[-1] if entry.events else None
        entry.update = rows.ended(live, outcome, last.time_us if last else self._clock.now_us())
        entry.size += len(outcome.result or "")
        sending.send_end(entry, outcome)
        if live.beats:
            self.attempts.forget_beats(live, list(live.beats))
        self.set_active(live, True)  # a run that was quiet as well: who hears of its end goes on
        self._leave(live)

    def _leave(self, live: LiveRun) -> None:
        live.leaving = True
        if live.attempts or live.retries:
            self.attempts.abandon_all(live)
        live.execution.close()

    def release(self, live: LiveRun) -> None:
        """Give a run back: its row says all that another worker, or this one, needs to go on."""
        if live.gone or live.leaving:
            return
        self.journal.entry(live).update = rows.released(live)
        self._leave(live)

    def release_all(self) -> None:
        """Give every run back."""
        for live in list(self.live.values()):
            self.release(live)

    def lose(self, live: LiveRun) -> None:
        """Drop a run that is this worker's no more, without a trace."""
        if not live.gone:
            self.journal.forget(live)
            self._leave(live)
            self._forget(live)

    def lose_all(self) -> None:
        """Drop every run: the lease is lost."""
        for live in list(self.live.values()):
            self.lose(live)
        self._pump.work.clear()
        self._timers.clear()
        self.attempts.waiting = 0

    def _forget(self, live: LiveRun) -> None:
        live.gone = live.leaving = True
        if self.live.get(live.id) is live:
            del self.live[live.id]
        self.suspects.over(live)
        self.set_active(live, False)
        self._change.set()

    def _make_room(self) -> None:
        """Release the runs that have been quiet longest while there are too many in memory."""
        excess = len(self.live) - self._live_limit
        if excess <= 0:
            return
        quiet = [live for live in self.live.values() if not live.active and not live.leaving]
        # A few more than need be: choosing them costs a look at all of them.
        for live in heapq.nsmallest(excess + self._live_limit // 20, quiet, key=lambda live: live.touched):
            self.release(live)

    # -- being busy, being quiet --------------------------------------------------------------------------------

    def _settle(self, live: LiveRun) -> None:
        self.summaries.touch(live)
        self.set_active(live, bool(live.unacknowledged or live.attempts or live.replaying))
        if live.recoveries and not live.active:
            self.summaries.clear_if_quiet(live, self._clock.now_us())

    def set_active(self, live: LiveRun, active: bool) -> None:
        """Note whether a run makes progress."""
        if live.active is active:
            return
        live.active = active
        if active:
            self.active += 1
        else:
            self.active -= 1
            self._change.set()
            if self.active <= self._concurrency // 2:
                self._on_room()

    @property
    def busy(self) -> bool:
        """Whether anything is being done, or is about to be tried again."""
        waiting = self.attempts.waiting or self.suspects.trying or self.journal.held_back
        return bool(self.active or waiting or self._pump.work)

    async def idle(self) -> None:
        """Wait until no run makes progress."""
        while self.busy:
            self._change.clear()
            await self._change.wait()

    async def quiesce(self) -> None:
        """Wait until all that has come in is taken up and durable."""
        while self._pump.work:
            self._change.clear()
            await self._change.wait()
        await self.journal.flush()
