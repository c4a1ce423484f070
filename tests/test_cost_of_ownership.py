"""What it costs a worker to keep its runs: one small update now and then, however many they are."""

from __future__ import annotations

import psycopg
import pytest
from django.db import connection

import continuum
from continuum.models import Run
from continuum.worker.sql import load
from tests.app import workflows as flows
from tests.waiting_for import eventually
from tests.workers import worker

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def renewals(monkeypatch):
    """What is said on the connection of the lease, and how many rows each statement concerns."""
    said = []
    real = psycopg.AsyncConnection.execute

    async def execute(self, query, *args, **kwargs):
        cursor = await real(self, query, *args, **kwargs)
        if "continuum lease" in self.info.get_parameters().get("application_name", ""):
            said.append((query, cursor.rowcount))
        return cursor

    monkeypatch.setattr(psycopg.AsyncConnection, "execute", execute)
    return said


def versions():
    """Return what changes when any run's row is written."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT md5(string_agg(xmin::text || ctid::text, ',' ORDER BY id)) FROM continuum_runs")
        return cursor.fetchone()[0]


@pytest.mark.parametrize("count", [10, 3000])
def test_a_lease_is_renewed_by_one_update_of_one_row_however_many_runs_are_live(renewals, settings, count):
    settings.CONTINUUM = {"LEASE_TTL": 4.5}
    with worker(concurrency=500):
        continuum.start_many(flows.listens, [None] * count)
        eventually(lambda: Run.objects.filter(state="suspended", owner_id__isnull=False).count() == count, 120)
        before = versions()
        renewals.clear()
        eventually(lambda: len(renewals) >= 2, 30)
        assert set(renewals) == {(load("worker_renew"), 1)}
        assert versions() == before
