"""What is to be done and who does it: activities, workers, versions, schedules."""

from django.db import models

from continuum.fields import DurableJSONField, Index
from continuum.models.columns import json_column, now_column, small_column, text_column

__all__ = ["ActivityResult", "ActivityTask", "Queue", "Schedule", "Worker", "WorkflowVersion"]


class Queue(models.Model):
    """A queue with a limit that holds for the whole cluster. Whoever claims from it holds this row meanwhile.

    ``recent`` is what the rate limit counts: ``[microseconds since the epoch, number of tasks]`` of each claim that
    still falls within the limit's window. A third element is there until it is known when they have started.
    """

    id = models.BigAutoField(primary_key=True)
    name = models.TextField()
    recent = json_column(list)

    class Meta:
        db_table = "continuum_queues"
        constraints = (models.UniqueConstraint(fields=["name"], name="continuum_queues_name_key"),)

    def __str__(self) -> str:
        return self.name


class ActivityTask(models.Model):
    """An activity that waits for, or is with, a worker serving its queue.

    An activity that the run's own owner carries out has a row only once it has recorded a heartbeat: ``local``.
    """

    class State(models.TextChoices):
        """Where a task stands."""

        READY = "ready", "ready"
        RUNNING = "running", "running"
        LOCAL = "local", "local"

    pk = models.CompositePrimaryKey("run_id", "command_id")
    run_id = models.UUIDField()
    command_id = models.TextField()
    activity = models.TextField()
    queue = text_column("default")
    priority = small_column(0)
    args = DurableJSONField()
    options = json_column(dict)
    state = text_column(State.READY)
    attempt = small_column(0)
    recoveries = small_column(0)
    due_at = now_column()
    owner_id = models.BigIntegerField(null=True)
    lease_token = models.BigIntegerField(default=0, db_default=0)
    heartbeat_at = models.DateTimeField(null=True)
    heartbeat_details = json_column()
    claimed_at = models.DateTimeField(null=True)
    created_at = now_column()

    class Meta:
        db_table = "continuum_activity_tasks"
        indexes = (
            Index(
                fields=["queue", "-priority", "due_at"],
                name="continuum_activity_tasks_ready_idx",
                condition=models.Q(state="ready"),
            ),
            Index(
                fields=["owner_id"],
                name="continuum_activity_tasks_owner_idx",
                condition=models.Q(owner_id__isnull=False),
            ),
        )

    def __str__(self) -> str:
        return f"{self.activity} {self.command_id}"


class ActivityResult(models.Model):
    """A lasting record, which outlives the run it came from: at most one a command, or a key.

    For a key the row's ``run_id`` is derived from it (``ids.derived``), so that the primary key alone keeps keys
    unique, also where the tables are distributed by ``run_id``.
    """

    class Kind(models.TextChoices):
        """What the record is about."""

        ACTIVITY = "activity", "activity"
        ACTIVITY_KEY = "activity_key", "activity key"
        START_KEY = "start_key", "start key"

    pk = models.CompositePrimaryKey("run_id", "command_id")
    run_id = models.UUIDField()
    command_id = models.TextField()
    kind = text_column(Kind.ACTIVITY)
    name = text_column()
    idempotency_key = models.TextField(null=True)
    result = json_column()
    attempt = small_column(1)
    created_at = now_column()

    class Meta:
        db_table = "continuum_activity_results"

    def __str__(self) -> str:
        return f"{self.kind} {self.name} {self.command_id}"


class Worker(models.Model):
    """A worker node. The row is its lease: while it is renewed, the runs that name it are the worker's."""

    class State(models.TextChoices):
        """Where a worker stands."""

        ALIVE = "alive", "alive"
        DRAINING = "draining", "draining"
        DEAD = "dead", "dead"

    id = models.BigAutoField(primary_key=True)
    name = models.TextField()
    host = text_column()
    pid = models.IntegerField(default=0, db_default=0)
    state = text_column(State.ALIVE, choices=State.choices)
    queues = json_column(list)
    info = json_column(dict)
    session_lock = models.BooleanField(default=False, db_default=False)
    started_at = now_column()
    heartbeat_at = now_column()
    expires_at = models.DateTimeField()
    stopped_at = models.DateTimeField(null=True)
    # Which of its runs are on trial for having killed their workers: the suspects that it has claimed with this fencing
    # token or a later one; and the run, if it is alone.
    trial_token = models.BigIntegerField(null=True)
    suspect_id = models.UUIDField(null=True)
    # {workflow: {version hash: version}}; null where it is not known, as in rows that older workers have written.
    workflows = models.JSONField(null=True)

    class Meta:
        db_table = "continuum_workers"
        indexes = (Index(fields=["expires_at"], name="continuum_workers_live_idx", condition=~models.Q(state="dead")),)

    def __str__(self) -> str:
        return self.name


class WorkflowVersion(models.Model):
    """A version of a workflow that some worker has loaded, and where its code is."""

    id = models.BigAutoField(primary_key=True)
    workflow = models.TextField()
    version = models.IntegerField()
    version_hash = models.TextField()
    location = text_column()
    patch_sites = json_column(list)
    first_seen_at = now_column()
    last_seen_at = now_column()

    class Meta:
        db_table = "continuum_workflow_versions"
        constraints = (
            models.UniqueConstraint(
                fields=["workflow", "version", "version_hash"], name="continuum_workflow_versions_key"
            ),
        )

    def __str__(self) -> str:
        return f"{self.workflow} v{self.version}"


class Schedule(models.Model):
    """A workflow that is started again and again."""

    id = models.BigAutoField(primary_key=True)
    name = models.TextField()
    workflow = models.TextField()
    spec = models.TextField()
    timezone = text_column("UTC")
    input = json_column(list)
    paused = models.BooleanField(default=False, db_default=False)
    next_run_at = models.DateTimeField(null=True)
    last_run_at = models.DateTimeField(null=True)
    created_at = now_column()

    class Meta:
        db_table = "continuum_schedules"
        constraints = (models.UniqueConstraint(fields=["name"], name="continuum_schedules_name_key"),)

    def __str__(self) -> str:
        return self.name
