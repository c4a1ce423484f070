"""Projects with ``USE_TZ = False``: fields are naive and local, as Django has them, and no hour is mistaken."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from io import StringIO
from zoneinfo import ZoneInfo

import pytest
from django.core.management import call_command
from django.urls import reverse

import continuum
from continuum import audit, health, overview, retention, surroundings
from continuum.exceptions import InvalidQueryError
from continuum.models import Run
from continuum.testing import dump_history
from continuum.timeline import timeline
from tests.app.workflows import five_steps
from tests.factories import HistoryEventFactory, RunFactory, WorkerFactory
from tests.hosts import host as host
from tests.test_admin import Page

NEW_YORK = ZoneInfo("America/New_York")
# Half past one comes twice in New York: half an hour before clocks go back, and half an hour after.
FIRST = datetime(2026, 11, 1, 5, 30, tzinfo=UTC)
SECOND = FIRST + timedelta(hours=1)
HALF_PAST_ONE = datetime(2026, 11, 1, 1, 30)


@pytest.fixture
def naive(transactional_db, settings):
    """The settings of such a project; Django sets the time zone of connections anew when they change."""
    settings.USE_TZ, settings.TIME_ZONE = False, "America/New_York"


@pytest.fixture
def runs(naive):
    """A run of each of the half hours."""
    return [RunFactory(started_at=moment, ended=True) for moment in (FIRST, SECOND)]


def test_settings_suit(naive):
    assert surroundings.project_misfits() == []


class TestFields:
    def test_are_naive_and_local_however_a_run_is_come_by(self, naive):
        started = continuum.start(five_steps, 1)
        (many,) = continuum.start_many(five_steps, [1])
        found = continuum.query(where=[("eq", "id", started.id)]).entries
        for run in (started, many, continuum.get_run(started.id), *found):
            assert run.started_at.tzinfo is None
            assert abs(run.started_at - datetime.now()) < timedelta(minutes=10)

    def test_say_which_of_two_hours_is_meant(self, runs):
        by_model = list(Run.objects.order_by("id").values_list("started_at", flat=True))
        by_search = [run.started_at for run in continuum.query(order_by=("asc", "id")).entries]
        for moments in (by_model, by_search):
            assert moments == [HALF_PAST_ONE, HALF_PAST_ONE]
            assert [moment.fold for moment in moments] == [0, 1]

    def test_the_history_is_aware(self, naive):
        run = RunFactory()
        HistoryEventFactory(run=run, recorded_at=SECOND)
        (event,) = continuum.get_run(run).history()
        assert (event.recorded_at, event.recorded_at.tzinfo) == (SECOND, UTC)


class TestWhatCallersGive:
    @pytest.mark.parametrize(
        "moment", [datetime(2999, 7, 1, 12, 0), datetime(2999, 7, 1, 12, 0, tzinfo=NEW_YORK)], ids=["naive", "aware"]
    )
    def test_a_start_is_put_off_until_a_local_time(self, moment, naive):
        run = continuum.start(five_steps, 1, start_at=moment)
        assert run.next_wakeup_at == continuum.get_run(run).next_wakeup_at == datetime(2999, 7, 1, 12, 0)
        Run.objects.filter(next_wakeup_at=datetime(2999, 7, 1, 16, 0, tzinfo=UTC)).get()

    @pytest.mark.parametrize("fold", [0, 1])
    def test_searches_compare_with_the_hour_that_is_meant(self, fold, runs):
        for moment in (HALF_PAST_ONE.replace(fold=fold), [FIRST, SECOND][fold], runs[fold].started_at):
            (found,) = continuum.query(where=[("eq", "started_at", moment)]).entries
            assert found.id == runs[fold].id
            later = continuum.query(where=[("gt", "started_at", moment)]).entries
            assert [run.id for run in later] == [run.id for run in runs[fold + 1 :]]

    def test_pages_go_through_both_hours(self, runs):
        for direction, expected in (("asc", runs), ("desc", runs[::-1])):
            seen, cursor = [], None
            while len(seen) < 5:
                page = continuum.query(order_by=(direction, "started_at"), per_page=1, cursor=cursor)
                seen += [run.id for run in page.entries]
                if (cursor := page.next_cursor) is None:
                    break
            assert seen == [run.id for run in expected]

    def test_with_time_zones_a_naive_moment_is_refused(self, db):
        with pytest.raises(ValueError, match="start_at must be an aware datetime"):
            continuum.start(five_steps, 1, start_at=HALF_PAST_ONE)
        with pytest.raises(InvalidQueryError, match="an aware datetime"):
            continuum.query(where=[("eq", "started_at", HALF_PAST_ONE)])


class TestWhoReads:
    """An hour lies between the two moments, and not none."""

    @pytest.fixture
    def run(self, naive):
        run = RunFactory(state="completed", started_at=FIRST, claimed_at=FIRST, completed_at=SECOND)
        HistoryEventFactory(run=run, recorded_at=SECOND, data={"took_us": 0})
        return run

    def test_the_timeline(self, run):
        drawn = timeline(continuum.get_run(run))
        assert (drawn.start, drawn.end) == (FIRST, SECOND)

    def test_the_admin(self, run, admin_client):
        listed = admin_client.get(reverse("admin:continuum_run_changelist")).content.decode()
        assert '<td class="field-took">1 h</td>' in listed
        shown = admin_client.get(reverse("admin:continuum_run_change", args=[run.pk])).content.decode()
        assert "+1 h" in str(Page(shown))
        assert 'title="2026-11-01 01:30:00.000 EDT"' in shown
        assert 'datetime="2026-11-01T01:30:00-05:00" title="2026-11-01 01:30:00.000000"' in shown

    def test_commands(self, run):
        def told(*arguments):
            out = StringIO()
            call_command("continuum_runs", *arguments, stdout=out)
            return out.getvalue()

        assert json.loads(told("show", str(run.id), "--format", "json"))["started_at"] == FIRST.isoformat()
        assert json.loads(told("history", str(run.id), "--format", "json"))["recorded_at"] == SECOND.isoformat()
        assert "completed, 1 h after its start" in told("show", str(run.id))
        assert str(run.id) in told("list")

    def test_histories_in_files(self, run, tmp_path):
        data = json.loads(dump_history(run, tmp_path / "history.json").read_text())
        assert (data["run"]["started_at"], data["events"][0]["recorded_at"]) == (FIRST.isoformat(), SECOND.isoformat())

    def test_overview_health_audit_and_retention_tell_aware_moments(self, naive):
        began = datetime.now(UTC) - timedelta(hours=2)
        RunFactory(state="stuck_unknown_version", started_at=began, claimed_at=began)
        RunFactory(started_at=began, next_wakeup_at=began)
        ended = RunFactory(ended=True, retention_until=began)
        WorkerFactory()
        (live,) = overview.live()
        assert live.oldest == began
        assert [run.state for run in overview.oldest_waits(since=live.oldest)]
        late = next(check for check in health.examine().checks if check.name == "overdue")
        assert "due for up to 2 h " in late.message
        (stuck,) = audit.audit().stuck_unknown_version_runs
        assert stuck.started_at == began
        survey = retention.survey()
        assert (survey.may_go.total(), survey.now.tzinfo) == (1, UTC)
        assert retention.prune().runs == 1
        assert not Run.objects.filter(pk=ended.pk).exists()


@pytest.mark.django_db(transaction=True)
def test_a_project_that_has_never_had_time_zones(host):
    project = host("USE_TZ, TIME_ZONE = False, 'America/New_York'")
    assert project.manage("check", "--database", "default", "--fail-level", "WARNING")
    project.run(
        """
        from datetime import UTC, datetime, timedelta

        run = continuum.start(five_steps, 1, start_at=datetime.now() - timedelta(seconds=1))
        later = continuum.start(five_steps, 1, start_at=datetime.now() + timedelta(hours=1))
        work()
        assert continuum.result(run, timeout=60) == 6
        assert continuum.get_run(later).state == "pending"
        run = continuum.get_run(run)
        for moment in (run.started_at, run.claimed_at, run.completed_at, later.next_wakeup_at):
            assert moment.tzinfo is None and abs(moment - datetime.now()) < timedelta(hours=2), moment
        events = list(run.history())
        assert events and all(event.recorded_at.tzinfo is UTC for event in events)
        page = continuum.query(where=[("lte", "completed_at", datetime.now()), ("gte", "started_at", run.started_at)])
        assert [found.id for found in page.entries] == [run.id]
        visit(f"/admin/continuum/run/{later.id}/change/")
        continuum.cancel(later)
        work()
        call_command("continuum_prune", "--older-than", "0s", "--execute")
        a_day()
        """
    )
