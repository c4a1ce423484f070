"""What a worker does to a run at its end, done by hand, for tests without a worker."""

from django.db import connection

from continuum import values
from continuum.models import Run

__all__ = ["announce", "finish"]


def finish(run, state="completed", *, result=None, error=None, successor=None, announced=True):
    """Bring a run to its end, and tell those who wait for it unless ``announced`` is False."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE continuum_runs SET state = %s, result = %s, error = %s, continued_to_run_id = %s,"
            " completed_at = now(), next_wakeup_at = NULL WHERE id = %s",
            [
                state,
                values.encode(result) if state == "completed" else None,
                None if error is None else values.encode(error),
                successor and successor.pk,
                run.pk,
            ],
        )
    assert Run.objects.get(pk=run.pk).state == state
    if announced:
        announce(run)


def announce(*runs):
    """Send the notification that these runs have ended."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_notify('continuum_done', %s)", [",".join(run.pk.hex for run in runs)])
