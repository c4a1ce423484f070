"""What the page of one run shows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from django.db.models import Count, OuterRef, Q, QuerySet, Subquery
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html

from continuum.admin import wording
from continuum.admin.payloads import Payload, payload_of, with_payloads
from continuum.core.history import EventType
from continuum.models import ActivityTask, HistoryEvent, Run, Worker
from continuum.moments import aware
from continuum.redaction import Shown

__all__ = [
    "EventRow",
    "HistoryPage",
    "Payloads",
    "TaskRow",
    "facts",
    "history_page",
    "payload_sections",
    "tasks",
    "waiting_lines",
    "waits_of",
]

HISTORY_LIMIT = 500
_PAYLOAD_LIMIT = 100_000
_EVENT_LIMIT = 4_000
_MOST_CHILDREN = 10_000
_MOST_TASKS = 50
_FAILURES = ("activity_failed", "activity_retried", "child_failed", "run_failed")
_KINDS = ("failures", *sorted(value for key, value in vars(EventType).items() if key.isupper()))


@dataclass(frozen=True, slots=True)
class Payloads:
    """What went in and what came out."""

    input: Payload | None
    result: Payload | None
    error: Payload | None
    progress: Payload | None

    @property
    def traceback(self) -> str | None:
        """The traceback of the error, where there is one."""
        error = self.error.value if self.error else None
        text = error.get("traceback") if isinstance(error, dict) else None
        return text if isinstance(text, str) else None

    @property
    def error_line(self) -> str | None:
        """Type and message of the error, if the message is longer than a line that line."""
        error = self.error.value if self.error else None
        if not isinstance(error, dict) or "type" not in error:
            return None
        return f"{error['type']}: {_message_of(error)[0]}"

    @property
    def error_text(self) -> str | None:
        """What a longer message says after its first line, laid out in columns perhaps."""
        error = self.error.value if self.error else None
        return _message_of(error)[1] or None if isinstance(error, dict) else None

    @property
    def error_details(self) -> str | None:
        """What else the error carries, as pretty JSON."""
        error = self.error.value if self.error else None
        details = error.get("details") if isinstance(error, dict) else None
        return None if details is None else json.dumps(details, indent=2, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class EventRow:
    """A line of the history: ``at`` is when it was recorded (aware), ``offset`` the time since the run was started."""

    event: HistoryEvent
    at: datetime
    offset: str
    data: Payload | None


@dataclass(frozen=True, slots=True)
class TaskRow:
    """An activity that is in a queue: where it stands, in words, and when something was last known of it."""

    activity: str
    command_id: str
    queue: str
    attempt: int
    where: str
    seen: str


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """A part of the history, oldest first.

    Attributes:
        rows: the events.
        older: what to ask for as ``before`` to see the page before this one; None at the beginning.
        is_newest: whether this is the end of the history.
        kinds: the kinds of events to choose from, each with whether it is the one chosen.
        name: the part of a name or command that was asked for.
        query: what was asked for, for links to other pages.
    """

    rows: list[EventRow]
    older: int | None
    is_newest: bool
    kinds: list[tuple[str, bool]]
    name: str
    query: str

    @property
    def is_filtered(self) -> bool:
        """Whether only some events are shown."""
        return bool(self.query)


def waiting_lines(run: Run, *, with_errors: bool = False) -> list[str]:
    """Return why a run does not go on just now, a line for each reason; none when it is at work or has ended."""
    now = datetime.now(UTC)
    if run.is_terminal:
        return []
    if run.state == Run.State.STUCK_UNKNOWN_VERSION:
        return ["a worker with code that fits its history"]
    if run.state == Run.State.PENDING:
        begins = aware(run.next_wakeup_at)
        later = begins is not None and begins > now
        return [f"its start {wording.ago(begins, now)}" if later else "a worker to take it"]
    waiting = waits_of(run)
    if waiting is None:
        return []
    return ["many things"] if waiting.cut else wording.waits(waiting.value, now, with_errors=with_errors)


def facts(run: Run, site: str) -> list[tuple[str, Any]]:
    """Return labels and values of what is known about a run, leaving out what does not apply."""
    now = datetime.now(UTC)
    took = (aware(run.completed_at) or now) - aware(run.started_at)
    shown = [
        ("Run", format_html("<code>{}</code>", run.id)),
        ("Namespace", run.namespace),
        ("Version", format_html('{} <span class="continuum-quiet">{}</span>', run.version, run.version_hash)),
        ("Started", wording.moment(run.started_at, now)),
        ("First claimed", run.claimed_at and wording.moment(run.claimed_at, now)),
        ("Ended", run.completed_at and wording.moment(run.completed_at, now)),
        ("Took" if run.completed_at else "Age", wording.duration(took)),
        ("Worker", run.owner_id and (run.owner_name or f"worker {run.owner_id}")),
        ("Next wake-up", run.next_wakeup_at and wording.moment(run.next_wakeup_at, now)),
        ("Deadline", run.deadline_at and wording.moment(run.deadline_at, now)),
        ("Kept until", run.retention_until and wording.moment(run.retention_until, now)),
        ("Priority", run.priority),
        ("Recoveries", run.recoveries),
        ("Idempotency key", run.idempotency_key),
        ("Parent", _link(run.parent_run_id, site, run.parent_command_id)),
        ("Children", _children(run, site)),
        ("Correlation", None if run.correlation_id == run.id else _link(run.correlation_id, site)),
        ("Continued from", _link(run.continued_from_run_id, site)),
        ("Continued to", _link(run.continued_to_run_id, site)),
        ("Forked from", _link(run.forked_from_run_id, site)),
    ]
    return [(label, value) for label, value in shown if value not in (None, "", 0)]


def tasks(run: Run) -> list[TaskRow]:
    """Return the activities of a run that wait in a queue, or that a worker is at, the oldest first."""
    now = datetime.now(UTC)
    found = _same_database(ActivityTask.objects, run).filter(run_id=run.id).exclude(state=ActivityTask.State.LOCAL)
    found = found.annotate(worker=Subquery(Worker.objects.filter(id=OuterRef("owner_id")).values("name")))
    fields = ("activity", "command_id", "queue", "state", "attempt", "worker", "owner_id", "due_at", "heartbeat_at")
    return [_task_row(task, now) for task in found.order_by("created_at").values(*fields)[:_MOST_TASKS]]


def _task_row(task: dict[str, Any], now: datetime) -> TaskRow:
    if task["state"] == ActivityTask.State.RUNNING:
        where = f"with {task['worker'] or 'worker {}'.format(task['owner_id'])}"
        seen = task["heartbeat_at"] and format_html("last heartbeat {}", wording.moment(task["heartbeat_at"], now))
    elif aware(task["due_at"]) > now:
        where, seen = "waits for its next try", wording.moment(task["due_at"], now)
    else:
        where, seen = "waits for a worker", format_html("since {}", wording.moment(task["due_at"], now))
    return TaskRow(task["activity"], task["command_id"], task["queue"], task["attempt"], where, seen or "")


def payload_sections(run: Run) -> Payloads:
    """Read what went into a run and what came out of it."""
    names = ("input", "result", "error", "progress")
    row = with_payloads(_same_database(Run.objects, run).only("id"), *names, limit=_PAYLOAD_LIMIT).get(id=run.id)
    return Payloads(**{name: payload_of(row, name, _shown(run, name)) for name in names})


def waits_of(run: Run) -> Payload | None:
    """Return what a run waits for, as far as it may be seen."""
    return payload_of(run, "waiting_on", _shown(run, "waiting_on"))


def _shown(run: Run, field: str, event: HistoryEvent | None = None) -> Shown:
    more = {} if event is None else {"type": event.type, "name": event.name or ""}
    return Shown(field=field, run_id=run.id, workflow=run.workflow, namespace=run.namespace, **more)


def history_page(run: Run, asked: Mapping[str, str], *, with_data: bool) -> HistoryPage:
    """Read the newest events of a run.

    Args:
        run: the run.
        asked: ``before``, to read the newest before the event of that number; ``kind``, for events of one type, or
            ``failures``; ``name``, a part of a name or the beginning of a command.
        with_data: read their records as well.
    """
    before, kind, name = (asked.get(key, "") for key in ("before", "kind", "name"))
    kind = kind if kind in _KINDS else ""
    events = _same_database(HistoryEvent.objects, run).filter(run_id=run.id).order_by("-seq")
    if kind:
        events = events.filter(type__in=_FAILURES if kind == "failures" else [kind])
    if name:
        events = events.filter(Q(name__icontains=name) | Q(command_id__startswith=name))
    is_newest = not (before and before.isdecimal() and len(before) < 10)
    if not is_newest:
        events = events.filter(seq__lt=int(before))
    events = with_payloads(events, "data", limit=_EVENT_LIMIT) if with_data else events.defer("data")
    found = list(events[: HISTORY_LIMIT + 1])
    shown = found[:HISTORY_LIMIT]
    started = aware(run.started_at)
    rows = [
        EventRow(
            event=event,
            at=(at := timezone.localtime(aware(event.recorded_at))),
            offset=f"+{wording.duration(at - started)}",
            data=payload_of(event, "data", _shown(run, "event", event)) if with_data else None,
        )
        for event in reversed(shown)
    ]
    return HistoryPage(
        rows,
        shown[-1].seq if len(found) > HISTORY_LIMIT else None,
        is_newest,
        [(each, each == kind) for each in _KINDS],
        name,
        urlencode({key: value for key, value in (("kind", kind), ("name", name)) if value}),
    )


def _message_of(error: dict[str, Any]) -> tuple[str, str]:
    first, _, rest = str(error.get("message", "")).partition("\n")
    return first, rest.strip("\n")


def _same_database(manager, run: Run) -> QuerySet:
    return manager.using(run._state.db)


def _children(run: Run, site: str) -> str | None:
    found = _same_database(Run.objects, run).filter(parent_run_id=run.id)[:_MOST_CHILDREN]
    number, live = found.aggregate(all=Count("id"), live=Count("id", filter=Q(completed_at=None))).values()
    if not number:
        return None
    more = "+" if number == _MOST_CHILDREN else ""
    address = reverse(f"{site}:continuum_run_changelist") + f"?parent_run_id={run.id}"
    return format_html('<a href="{}">{}{}</a>{}', address, number, more, f", {live} of them live" if live else "")


def _link(run_id: Any, site: str, command_id: str | None = None) -> str | None:
    if run_id is None:
        return None
    address = reverse(f"{site}:continuum_run_change", args=[run_id])
    return format_html('<a href="{}"><code>{}</code></a>{}', address, run_id, f" at {command_id}" if command_id else "")
