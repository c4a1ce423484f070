"""A run that is live in this process, and what is on its way to the journal for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

from continuum import values
from continuum.core.commands import Command
from continuum.core.execution import Execution
from continuum.core.history import Event
from continuum.worker.outbox import Outbox

__all__ = ["Entry", "LiveRun", "Message", "RowUpdate", "wanted"]


class Message(NamedTuple):
    """One unread row of the inbox. ``payload`` is JSON text."""

    run_id: UUID
    id: int
    kind: str
    name: str | None
    command_id: str | None
    payload: str | None
    delivery_id: str | None

    @property
    def reason(self) -> str:
        """Why, in a request to cancel."""
        return str(values.decode(self.payload or "{}").get("reason") or "")


class RowUpdate(NamedTuple):
    """New values of a run's row: JSON as text, times in microseconds.

    None is NULL, or "as it is" for progress and recoveries. ``first_in_line`` in place of ``next_wakeup_us``: it can go
    on now, and before all that has not begun.
    """

    state: str
    keep_owner: bool
    waiting_on: str = "[]"
    next_wakeup_us: int | None = None
    progress: str | None = None
    result: str | None = None
    error: str | None = None
    completed_us: int | None = None
    retention_us: int | None = None
    recoveries: int | None = 0
    first_in_line: bool = False


class Entry:
    """What one run wants written in one commit, and what waits for that commit.

    Attributes:
        doubtful: a commit of it may have taken place without our knowing.
        told: whoever waits for the end of the run has been told.
        wait: since when it waits for somebody else's lock and for how long between two attempts, in seconds; or None.
    """

    __slots__ = (
        "commands",
        "consumed",
        "doubtful",
        "events",
        "kept",
        "last_resort",
        "live",
        "outbox",
        "size",
        "told",
        "update",
        "wait",
    )

    def __init__(self, live: LiveRun) -> None:
        self.live = live
        self.events: list[Event] = []
        self.consumed: list[int] = []
        self.kept: list[int] = []
        self.update: RowUpdate | None = None
        self.commands: list[Command] = []
        self.outbox: Outbox | None = None
        self.size = 0
        self.last_resort = False
        self.doubtful = False
        self.told = False
        self.wait: tuple[float, float] | None = None

    def remove(self, message: Message) -> None:
        """Have a message that is taken up by this entry disappear from the inbox.

        One with a delivery id stays, marked, so that a repeat of it is recognised.
        """
        (self.consumed if message.delivery_id is None else self.kept).append(message.id)

    def send(self) -> Outbox:
        """Return what is sent along with this entry, to add to."""
        if self.outbox is None:
            self.outbox = Outbox()
        return self.outbox


class LiveRun:
    """A claimed run with its coroutine in memory.

    Attributes:
        token: the fencing token of the claim; every write carries it.
        open_entry: what the next commit will take along for this run, or None.
        last_entry: the newest entry that is not durable yet, or None.
        unacknowledged: entries handed to the journal that are not durable yet.
        attempts: running or queued local attempts by command id.
        retries: ids of the commands that wait for their next attempt.
        beats: by command id, the details of the last heartbeat, as JSON text: what has a row, or may have one.
        queued: ids of the commands that are out as tasks, for whichever worker serves their queue.
        seen: inbox ids that were taken up and that a read may still show.
        timer_us: the earliest instant the timers will call back for this run.
        touched: when it last did something, by ``time.monotonic()``.
        summary: what its row last said while the run was live.
        gone: it was released, ended or lost; whatever still arrives for it is dropped.
        held_back: what it wants recorded waits for somebody else's lock, and so does what it wants recorded after that.
        recorded: the number of the last event it was claimed with.
        recoveries: how often in a row it has lost its worker, as its row says.
        asked_to_stop: an unread request to cancel that it was claimed with, or None.
        adopts: the version and hash it was claimed with, if its code is to adopt it from another, or None.
    """

    __slots__ = (
        "__weakref__",
        "active",
        "adopts",
        "asked_to_stop",
        "attempts",
        "beats",
        "claimed_us",
        "deadline_us",
        "definition",
        "execution",
        "gone",
        "held_back",
        "hex",
        "id",
        "last_entry",
        "leaving",
        "open_entry",
        "queued",
        "recorded",
        "recoveries",
        "replaying",
        "retries",
        "seen",
        "summary",
        "timer_us",
        "token",
        "touched",
        "unacknowledged",
        "waiting_for_summary",
    )

    def __init__(self, run_id: UUID, token: int, definition: Any, execution: Execution, claimed_us: int) -> None:
        self.id = run_id
        self.hex = run_id.hex
        self.token = token
        self.definition = definition
        self.execution = execution
        self.claimed_us = claimed_us
        self.deadline_us: int | None = None
        self.open_entry: Entry | None = None
        self.last_entry: Entry | None = None
        self.unacknowledged = 0
        self.attempts: dict[str, Any] = {}
        self.retries: set[str] = set()
        self.beats: dict[str, str] = {}
        self.queued: set[str] = set()
        self.seen: set[int] = set()
        self.timer_us: int | None = None
        self.touched = 0.0
        self.summary: tuple[Any, ...] | None = None
        self.waiting_for_summary = False
        self.recorded = 0
        self.recoveries = 0
        self.asked_to_stop: Message | None = None
        self.adopts: tuple[int, str] | None = None
        self.active = False
        self.replaying = False
        self.leaving = False
        self.gone = False
        self.held_back = False

    def hear(self, messages: Sequence[Message]) -> None:
        """Take note of the unread messages it was claimed with."""
        if messages:
            self.seen.update(message.id for message in messages)
            self.asked_to_stop = next((message for message in messages if message.kind == "cancel"), None)


def wanted(subject: Any) -> bool:
    """Tell whether a timer about a run, or about a command of one, still means something."""
    if isinstance(subject, LiveRun):
        return not subject.gone
    live, command = subject
    return command.id in live.retries
