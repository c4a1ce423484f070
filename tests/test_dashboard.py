"""The dashboard of the admin, and the facts on it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.admin import AdminSite
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from continuum import overview
from continuum.admin import DashboardAdmin, RunAdmin
from continuum.models import ActivityTask, Dashboard, Run
from continuum.worker.partitions import ensure_partitions
from tests.factories import RunFactory, WorkerFactory
from tests.test_admin import HOSTILE, Page

pytestmark = pytest.mark.django_db

NOW = datetime.now(UTC)
DASHBOARD = "admin:continuum_dashboard_changelist"
FRAGMENT = "admin:continuum_dashboard_fragment"


@pytest.fixture(autouse=True)
def now(db, monkeypatch):
    """An hour may go by from the import of this module to its tests; the month may end, too."""
    monkeypatch.setitem(globals(), "NOW", datetime.now(UTC))
    with connection.cursor() as cursor:
        ensure_partitions(cursor, NOW)


def ended(minutes, state="completed", took=1, **fields):
    at = NOW - timedelta(minutes=minutes)
    return RunFactory(state=state, started_at=at - timedelta(seconds=took), completed_at=at, **fields)


@pytest.fixture
def page(admin_client):
    def page(**query):
        response = admin_client.get(reverse(DASHBOARD), query)
        assert response.status_code == 200
        return response

    return page


class TestFacts:
    def test_live_runs_by_workflow_of_all_namespaces_the_most_first(self):
        RunFactory.create_batch(2, workflow="a", state="suspended")
        old = RunFactory(workflow="b", namespace="x", started_at=NOW - timedelta(days=1))
        RunFactory.create_batch(2, workflow="b", state="running")
        RunFactory(workflow="c", ended=True)
        first, second = overview.live()
        assert (first.workflow, first.states, first.oldest) == ("b", {"pending": 1, "running": 2}, old.started_at)
        assert (second.workflow, second.total) == ("a", 2)

    def test_what_ended_by_slice_and_by_workflow(self):
        ended(0.5, workflow="a", took=2)
        ended(0.5, workflow="a", state="failed", took=4, namespace="x")
        ended(59.5, workflow="b")
        ended(61, workflow="b")
        RunFactory(state="suspended")
        found = overview.ended(overview.RANGES["1h"], now=NOW)
        assert found.slices[-1] == {"completed": 1, "failed": 1}
        assert found.slices[0] == {"completed": 1}
        assert sum(map(len, found.slices[1:-1])) == 0
        assert found.workflows == {"a": {"completed": 1, "failed": 1}, "b": {"completed": 1}}
        assert found.seconds == {"a": 3, "b": 1}

    def test_the_oldest_waits_of_all_namespaces(self):
        runs = [
            RunFactory(state="suspended", started_at=NOW - timedelta(days=n), namespace=f"n{n % 2}") for n in range(5)
        ]
        RunFactory(state="running", started_at=NOW - timedelta(days=9))
        assert [run.id for run in overview.oldest_waits(3)] == [run.id for run in reversed(runs[2:])]

    @pytest.mark.parametrize(("ended_before", "statements"), [(5, 1), (6, 2)])
    def test_the_oldest_waits_are_sought_among_those_started_first_and_then_among_all(
        self, monkeypatch, ended_before, statements
    ):
        monkeypatch.setattr(overview, "_FRONT", 8)
        running = RunFactory(state="running", started_at=NOW - timedelta(days=9))
        for n in range(ended_before):
            ended(0, took=3600 * 24 * 8 + n, namespace=f"n{n % 2}")
        ended(0, took=3600 * 24 * 10)
        waits = [RunFactory(state="suspended", started_at=NOW - timedelta(days=n), namespace=f"n{n}") for n in (7, 6)]
        waits.append(RunFactory(state="stuck_unknown_version", started_at=NOW - timedelta(days=5)))
        waits.append(RunFactory(state="suspended", started_at=NOW - timedelta(days=4)))
        with CaptureQueriesContext(connection) as queries:
            found = overview.oldest_waits(3, since=running.started_at)
        assert [run.id for run in found] == [run.id for run in waits[:3]]
        assert sum("RECURSIVE" in query["sql"] for query in queries) == statements
        assert [run.id for run in overview.oldest_waits(9, since=running.started_at)] == [run.id for run in waits]

    def test_a_question_that_takes_too_long_is_given_up(self, monkeypatch):
        monkeypatch.setattr(overview, "_PATIENCE_MS", 20)
        monkeypatch.setattr(overview, "load", lambda name: "SELECT pg_sleep(20)")
        with pytest.raises(TimeoutError):
            overview.live()
        with connection.cursor() as cursor:
            cursor.execute("SHOW statement_timeout")
            assert cursor.fetchone() == ("0",)

    def test_the_callers_own_patience_is_put_back(self):
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL statement_timeout = '77s'")
            overview.live()
            cursor.execute("SHOW statement_timeout")
            assert cursor.fetchone() == ("77s",)


class TestPage:
    def test_is_linked_from_the_index(self, admin_client):
        assert reverse(DASHBOARD) in admin_client.get(reverse("admin:index")).content.decode()

    def test_says_first_what_is_wrong_and_leads_there(self, page):
        RunFactory(state="stuck_unknown_version")
        html = page().content.decode()
        text = str(Page(html))
        assert "2 of 13 checks found something" in text
        assert text.index("What is wrong") < text.index("no worker is at work") < text.index("Under way")
        assert "state__exact=stuck_unknown_version" in html

    def test_says_that_all_is_well(self, page):
        WorkerFactory(expires_at=NOW + timedelta(hours=1))
        assert "all is well" in str(Page(page().content.decode()))

    def test_shows_workers_queues_runs_and_waits(self, page):
        WorkerFactory(name="shop-1", expires_at=NOW + timedelta(hours=1), queues=["mail"])
        WorkerFactory(name="shop-2", state="dead")
        run = RunFactory(
            workflow="shop.orders",
            state="suspended",
            started_at=NOW - timedelta(days=3),
            waiting_on=[{"kind": "signal", "name": "review"}],
        )
        ActivityTask.objects.create(run_id=run.id, command_id="0:1", activity="a", args=[], queue="video")
        text = str(Page(page().content.decode()))
        for words in ("shop-1", "shop.orders", "the signal “review”", "3 d ago", "video", "no worker serves it"):
            assert words in text
        assert "shop-2" not in text

    def test_plots_what_ended_in_the_range_asked_for(self, page):
        ended(30)
        ended(30, state="failed")
        ended(120, state="cancelled")
        for query, totals in (({}, [1, 1, 0]), ({"range": "24h"}, [1, 1, 1]), ({"range": "nonsense"}, [1, 1, 0])):
            response = page(**query)
            assert [number for _, number, _ in response.context["plot"].totals] == totals
        heights = re.findall(
            r'continuum-bar-(\w+)" x="[\d.]+" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', html_of(page)
        )
        assert heights == [("completed", "50.00", "50.00"), ("failed", "0.00", "50.00")]

    def test_takes_the_same_few_queries_for_one_run_and_for_fifty(self, page, django_assert_max_num_queries):
        for count in (1, 50):
            for n in range(count):
                ended(n)
                RunFactory(state="suspended", workflow=f"w{n}", waiting_on=[{"kind": "timer"}])
                WorkerFactory()
            with django_assert_max_num_queries(45):
                page()

    def test_a_question_that_takes_too_long_leaves_the_rest_standing(self, page, monkeypatch):
        def slow(*args, **kwargs):
            raise TimeoutError

        for name in ("live", "ended", "oldest_waits", "queues"):
            monkeypatch.setattr(overview, name, slow)
        WorkerFactory(name="shop-1", expires_at=NOW + timedelta(hours=1))
        text = str(Page(page().content.decode()))
        assert "look at a shorter range" in text
        assert "shop-1" in text

    def test_renews_itself(self, page, admin_client):
        html = html_of(page, range="24h")
        (address,) = re.findall(r'data-continuum-fragment="([^"]*)"', html)
        assert address == reverse(FRAGMENT) + "?range=24h"
        fragment = admin_client.get(address).content.decode()
        assert "<html" not in fragment
        assert "data-continuum-live" in fragment
        headings = re.compile(r"<h2>(.*?)</h2>")
        assert headings.findall(fragment) == headings.findall(html.partition("content-main")[2])


def html_of(page, **query):
    return page(**query).content.decode()


def test_a_site_without_the_runs_is_told_of():
    site = AdminSite(name="lab")
    assert [found.id for found in DashboardAdmin(Dashboard, site).check()] == ["continuum.E013"]
    site.register(Run, RunAdmin)
    assert DashboardAdmin(Dashboard, site).check() == []


class TestSafety:
    def test_nothing_becomes_markup_and_nothing_is_inline(self, page):
        WorkerFactory(name=HOSTILE, queues=[HOSTILE])
        for state in ("suspended", "completed", "failed"):
            RunFactory(
                workflow=HOSTILE,
                state=state,
                completed_at=None if state == "suspended" else NOW,
                error={"type": HOSTILE},
                waiting_on=[{"kind": HOSTILE, "name": HOSTILE}],
            )
        run = RunFactory(state="suspended", next_wakeup_at=NOW - timedelta(hours=1), workflow=HOSTILE)
        ActivityTask.objects.create(run_id=run.id, command_id="0:1", activity="a", args=[], queue=HOSTILE)
        html = html_of(page)
        assert "<script>alert" not in html
        assert Page(html).inline == []

    def test_takes_the_permission_to_view_runs(self, client):
        user = User.objects.create_user("clerk", is_staff=True)
        client.force_login(user)
        for name in (DASHBOARD, FRAGMENT):
            assert client.get(reverse(name)).status_code == 403
        assert reverse(DASHBOARD) not in client.get(reverse("admin:index")).content.decode()
        user.user_permissions.add(Permission.objects.get(codename="view_run"))
        for name in (DASHBOARD, FRAGMENT):
            assert client.get(reverse(name)).status_code == 200

    def test_nothing_can_be_added_or_opened(self, admin_client):
        assert admin_client.get(reverse("admin:continuum_dashboard_add")).status_code == 403
