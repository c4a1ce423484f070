"""Runs, their histories and their inboxes."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from django.db import models

from continuum.fields import AttributesField, GinIndex, IdentityField, Index
from continuum.ids import uuid7
from continuum.models.columns import json_column, now_column, small_column, text_column
from continuum.moments import aware

__all__ = ["Dashboard", "Event", "HistoryEvent", "InboxMessage", "Run", "RunQuerySet"]

_HISTORY_PAGE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event of a run's history, as people read it.

    Attributes:
        seq: its place in the history, from 1 on.
        type: what happened, such as ``activity_completed``.
        command_id: the path of the command it answers, such as ``"0.2:3"``; None for what came from outside.
        name: the activity, signal or child it is about.
        data: the decoded record.
        recorded_at: when it was committed: aware, in UTC, also where ``USE_TZ`` is off.
    """

    seq: int
    type: str
    command_id: str | None
    name: str | None
    data: Any
    recorded_at: datetime


class RunQuerySet(models.QuerySet):
    """Runs, by the questions people ask about them."""

    def in_namespace(self, namespace: str) -> Self:
        """Keep the runs of one namespace."""
        return self.filter(namespace=namespace)

    def active(self) -> Self:
        """Keep the runs that can still go on."""
        return self.exclude(state__in=Run.TERMINAL_STATES)

    def terminal(self) -> Self:
        """Keep the runs that have ended: completed, failed or cancelled."""
        return self.filter(state__in=Run.TERMINAL_STATES)

    def with_attributes(self, **attributes: Any) -> Self:
        """Keep the runs that bear all these attributes, JSON type included; nested dicts match in part (GIN index)."""
        return self.filter(attributes__contains=attributes)


class Run(models.Model):
    """One execution of a workflow."""

    class State(models.TextChoices):
        """Where a run stands."""

        PENDING = "pending", "pending"
        RUNNING = "running", "running"
        SUSPENDED = "suspended", "suspended"
        COMPLETED = "completed", "completed"
        FAILED = "failed", "failed"
        CANCELLED = "cancelled", "cancelled"
        STUCK_UNKNOWN_VERSION = "stuck_unknown_version", "stuck: unknown version"

    TERMINAL_STATES = (State.COMPLETED, State.FAILED, State.CANCELLED)

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    workflow = models.TextField()
    version = models.IntegerField(default=1, db_default=1)
    version_hash = text_column()
    namespace = text_column("default")
    attributes = AttributesField(default=dict, db_default=models.Value("{}"))
    state = text_column(State.PENDING, choices=State.choices)
    priority = small_column(0)
    input = json_column(list)
    result = json_column()
    error = json_column()
    progress = json_column()
    waiting_on = json_column(list)
    owner_id = models.BigIntegerField(null=True)
    lease_token = models.BigIntegerField(default=0, db_default=0)
    recoveries = small_column(0)
    started_at = now_column()
    claimed_at = models.DateTimeField(null=True)
    completed_at = models.DateTimeField(null=True)
    next_wakeup_at = models.DateTimeField(null=True)
    deadline_at = models.DateTimeField(null=True)
    retention_until = models.DateTimeField(null=True)
    parent_run_id = models.UUIDField(null=True)
    parent_command_id = models.TextField(null=True)
    depth = small_column(0)
    correlation_id = models.UUIDField()
    continued_from_run_id = models.UUIDField(null=True)
    continued_to_run_id = models.UUIDField(null=True)
    forked_from_run_id = models.UUIDField(null=True)
    seed = models.UUIDField(null=True)
    idempotency_key = models.TextField(null=True)
    # Versions as "number:hash", with spaces between: those its history did not fit, the last one last.
    tried_versions = text_column()

    objects = RunQuerySet.as_manager()

    class Meta:
        db_table = "continuum_runs"
        permissions = (
            ("signal_run", "Can signal run"),
            ("cancel_run", "Can cancel run"),
            ("retry_run", "Can retry run"),
            ("fork_run", "Can fork run"),
            ("set_attributes_run", "Can set attributes of run"),
            ("view_payload", "Can view what runs are given and give back"),
        )
        indexes = (
            Index(
                fields=["-priority", "next_wakeup_at"],
                name="continuum_runs_ready_idx",
                condition=models.Q(owner_id__isnull=True, next_wakeup_at__isnull=False),
            ),
            Index(fields=["owner_id"], name="continuum_runs_owner_idx", condition=models.Q(owner_id__isnull=False)),
            Index(
                fields=["parent_run_id"],
                name="continuum_runs_parent_idx",
                condition=models.Q(parent_run_id__isnull=False),
            ),
            Index(
                fields=["-recoveries"],
                name="continuum_runs_suspects_idx",
                condition=models.Q(owner_id__isnull=True, recoveries__gt=0),
            ),
            Index(
                fields=["workflow", "version", "version_hash", "tried_versions", "id"],
                name="continuum_runs_stuck_idx",
                condition=models.Q(owner_id__isnull=True, state="stuck_unknown_version"),
            ),
            Index(fields=["namespace", "state"], name="continuum_runs_namespace_state_idx"),
            # Every index on all rows costs each change of a run's state an entry. Most runs bear no attributes.
            GinIndex(
                fields=["attributes"],
                opclasses=["jsonb_path_ops"],
                name="continuum_runs_attributes_gin_idx",
                condition=~models.Q(attributes={}),
            ),
            # What searches read in order. Those that run are few at any time, and found by their state.
            Index(
                fields=["namespace", "started_at", "id"],
                name="continuum_runs_started_idx",
                condition=~models.Q(state="running"),
            ),
            Index(
                fields=["namespace", "workflow", "state", "started_at", "id"],
                name="continuum_runs_ended_idx",
                condition=models.Q(state__in=("completed", "failed", "cancelled")),
            ),
            Index(
                fields=["namespace", "completed_at", "id"],
                name="continuum_runs_completed_idx",
                condition=models.Q(completed_at__isnull=False)
                | models.Q(state__in=("completed", "failed", "cancelled")),
            ),
        )

    def __str__(self) -> str:
        return f"{self.workflow} {self.id}"

    def save(self, *args, **kwargs):
        """Save the run; one without a correlation id correlates what it starts itself."""
        if self.correlation_id is None:
            self.correlation_id = self.id
        super().save(*args, **kwargs)

    @property
    def is_terminal(self) -> bool:
        """Whether the run has ended."""
        return self.state in self.TERMINAL_STATES

    def history(self) -> Iterator[Event]:
        """Yield the run's events in order, read page by page, so that a long history costs no memory."""
        last = -1
        while True:
            page = HistoryEvent.objects.using(self._state.db).filter(run_id=self.pk, seq__gt=last).order_by("seq")
            rows = list(page[:_HISTORY_PAGE])
            for row in rows:
                yield row.as_event()
            if len(rows) < _HISTORY_PAGE:
                return
            last = rows[-1].seq


class Dashboard(Run):
    """No rows of its own: what gives the dashboard its place in the admin's index."""

    class Meta:
        proxy = True
        default_permissions = ()
        verbose_name = "dashboard"
        verbose_name_plural = "dashboard"


class HistoryEvent(models.Model):
    """One row of the journal. The table is partitioned by month, on the time within the run's id."""

    pk = models.CompositePrimaryKey("run_id", "seq")
    run_id = models.UUIDField()
    seq = models.IntegerField()
    type = models.TextField()
    command_id = models.TextField(null=True)
    name = models.TextField(null=True)
    data = json_column(dict)
    recorded_at = models.DateTimeField()

    class Meta:
        db_table = "continuum_events"
        indexes = (
            # The rare events that say which code a run has been run by: what an audit reads of a history.
            Index(
                fields=["run_id"],
                name="continuum_events_versions_idx",
                condition=models.Q(type__in=["patched", "version_adopted"]),
            ),
        )

    def __str__(self) -> str:
        return f"{self.seq} {self.type}"

    def as_event(self) -> Event:
        """Return the public view of this row."""
        return Event(
            seq=self.seq,
            type=self.type,
            command_id=self.command_id,
            name=self.name,
            data=self.data,
            recorded_at=aware(self.recorded_at),
        )


class InboxMessage(models.Model):
    """A message to a run. Its owner turns it into an event; without an owner, it makes the run claimable.

    Consumed messages are deleted, except those with a ``delivery_id``, which stay to recognise a repeat.
    """

    class Kind(models.TextChoices):
        """What the message brings."""

        SIGNAL = "signal", "signal"
        CANCEL = "cancel", "cancel"
        CHILD = "child", "child"
        ACTIVITY = "activity", "activity"

    pk = models.CompositePrimaryKey("run_id", "id")
    run_id = models.UUIDField()
    id = IdentityField()
    kind = models.TextField(choices=Kind.choices)
    name = models.TextField(null=True)
    command_id = models.TextField(null=True)
    payload = json_column()
    delivery_id = models.TextField(null=True)
    created_at = now_column()
    consumed_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "continuum_inbox"
        indexes = (
            Index(fields=["run_id"], name="continuum_inbox_unread_idx", condition=models.Q(consumed_at__isnull=True)),
        )
        constraints = (
            models.UniqueConstraint(
                fields=["run_id", "delivery_id"],
                name="continuum_inbox_delivery_idx",
                condition=models.Q(delivery_id__isnull=False),
            ),
        )

    def __str__(self) -> str:
        return f"{self.kind} {self.name or ''}".rstrip()

    def save(self, *args, **kwargs):
        """Save the message; a new one is inserted at once, as the database gives it its number."""
        if self._state.adding:
            kwargs.setdefault("force_insert", True)
        super().save(*args, **kwargs)
