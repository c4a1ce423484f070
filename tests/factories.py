"""Rows for tests that look at the tables rather than run anything."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import factory

from continuum.models import HistoryEvent, Run, Worker


class RunFactory(factory.django.DjangoModelFactory):
    """A run nobody has taken yet; with ``ended=True``, one that has run to its end."""

    class Meta:
        model = Run

    class Params:
        ended = factory.Trait(
            state="completed",
            claimed_at=factory.LazyFunction(lambda: datetime.now(UTC)),
            completed_at=factory.LazyFunction(lambda: datetime.now(UTC)),
        )

    workflow = "shop.order_flow"


class WorkerFactory(factory.django.DjangoModelFactory):
    """A worker with a fresh lease."""

    class Meta:
        model = Worker

    name = factory.Sequence(lambda n: f"shop-{n}")
    expires_at = factory.LazyFunction(lambda: datetime.now(UTC) + timedelta(seconds=30))


class HistoryEventFactory(factory.django.DjangoModelFactory):
    """A record in the history of ``run``."""

    class Meta:
        model = HistoryEvent

    class Params:
        run = None

    run_id = factory.LazyAttribute(lambda event: event.run.id)
    seq = factory.Sequence(lambda n: n + 1)
    type = "activity_completed"
    command_id = "0:1"
    name = "charge"
    recorded_at = factory.LazyFunction(lambda: datetime.now(UTC))
