"""The schema: what a run is, what happened to it, what reached it, and who works on it.

The worker reads and writes these tables with SQL of its own; the models are what application code, the admin and the
migrations see. Every default is a default of the database, so that a statement naming only some columns works too. No
foreign keys: the hot tables are written by the thousand a second, and all but workers, versions and schedules lead with
the run's id, so that the schema can be distributed by it.
"""

from continuum.models.runs import Dashboard, Event, HistoryEvent, InboxMessage, Run, RunQuerySet
from continuum.models.work import ActivityResult, ActivityTask, Queue, Schedule, Worker, WorkflowVersion

__all__ = [
    "ActivityResult",
    "ActivityTask",
    "Dashboard",
    "Event",
    "HistoryEvent",
    "InboxMessage",
    "Queue",
    "Run",
    "RunQuerySet",
    "Schedule",
    "Worker",
    "WorkflowVersion",
]
