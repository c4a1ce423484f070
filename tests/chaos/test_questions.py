"""What chaos asks of the database afterwards: what is right is not accused, and what is wrong is."""

import pytest
from django.db import connection

import continuum
from continuum import NonRetryableError, Retry
from continuum.models import HistoryEvent
from tests.chaos.questions import QUESTIONS
from tests.workers import run_until_idle

pytestmark = pytest.mark.django_db(transaction=True)

to_come = []


@continuum.activity(name="tests.chaos.stumbles", retry=Retry(max_attempts=3, base=0.01))
def stumbles():
    if error := to_come.pop(0):
        raise error


@continuum.workflow(name="tests.chaos.goes_over_stones")
async def goes_over_stones():
    await stumbles()


def recorded_twice():
    with connection.cursor() as cursor:
        cursor.execute(QUESTIONS["attempts recorded twice"])
        return [(run_id, attempt) for run_id, _, attempt, _ in cursor.fetchall()]


def test_a_run_that_was_retried_may_have_an_attempt_of_the_same_number_again():
    to_come[:] = [ConnectionError("cut"), NonRetryableError("the gate is shut"), ConnectionError("cut"), None]
    run = continuum.start(goes_over_stones)
    run_until_idle()
    continuum.retry(run)
    run_until_idle()
    history = list(continuum.get_run(run).history())
    tried = [(event.type, event.data.get("attempt")) for event in history if event.type.startswith("activity_")]
    assert tried == [
        ("activity_retried", 1),
        ("activity_failed", 2),
        ("activity_retried", 1),
        ("activity_completed", 2),
    ]
    assert recorded_twice() == []
    again = HistoryEvent.objects.filter(run_id=run.pk, type="activity_retried").order_by("seq").last()
    HistoryEvent.objects.create(
        run_id=run.pk,
        seq=history[-1].seq + 1,
        type=again.type,
        command_id=again.command_id,
        name=again.name,
        data=again.data,
        recorded_at=again.recorded_at,
    )
    assert recorded_twice() == [(run.pk, "1")]
