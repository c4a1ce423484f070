"""The admin, as an operator sees it."""

import json
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from uuid import UUID

import pytest
from django.contrib.auth.models import Permission, User
from django.contrib.staticfiles import finders
from django.db import connection
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from continuum.admin import details, filters, pagination, wording
from continuum.admin.searching import id_bounds
from continuum.ids import uuid7
from continuum.models import ActivityTask, HistoryEvent, Run, Worker, WorkflowVersion
from tests.factories import HistoryEventFactory, RunFactory

pytestmark = pytest.mark.django_db

NOW = datetime.now(UTC)


@pytest.fixture(autouse=True)
def now(monkeypatch):
    """Half a minute may go by from the import of this module to its tests."""
    monkeypatch.setitem(globals(), "NOW", datetime.now(UTC))


LIST = "admin:continuum_run_changelist"
HOSTILE = "<script>alert('x')</script>"


class Page(HTMLParser):
    """What a browser would make of a page: the text that is shown, and what a strict content policy would block."""

    def __init__(self, html):
        super().__init__()
        self.text, self.inline, self._open = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self._open.append(tag)
        if tag == "style" or (tag == "script" and "src" not in attributes):
            self.inline.append(tag)
        self.inline += [name for name in attributes if name == "style" or name.startswith("on")]

    def handle_data(self, data):
        self.text.append(data)

    def __str__(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


@pytest.fixture
def get(admin_client):
    def get(name, /, *args, **query):
        response = admin_client.get(reverse(name, args=args), query)
        assert response.status_code == 200
        return response

    return get


@pytest.fixture
def run_page(get):
    return lambda run, **query: str(Page(get("admin:continuum_run_change", run.pk, **query).content.decode()))


make_run = RunFactory


def make_events(run, count, **fields):
    HistoryEventFactory.reset_sequence(0)
    HistoryEvent.objects.bulk_create(HistoryEventFactory.build_batch(count, run=run, **{"recorded_at": NOW} | fields))


def listed(response):
    return [run.id for run in response.context["cl"].result_list]


class TestRunList:
    def test_tells_the_state_of_each_run_newest_first(self, get):
        worker = Worker.objects.create(name="shop-1", expires_at=NOW)
        older = make_run(started_at=NOW - timedelta(hours=3), attributes={"plan": "pro"}, namespace="billing")
        newer = make_run(workflow="shop.refund_flow", version=3, state="running", owner_id=worker.id)
        response = get(LIST)
        assert listed(response) == [newer.id, older.id]
        text = str(Page(response.content.decode()))
        for words in ("pending", "running", "refund_flow v3", "billing", "plan pro", "3 h ago", "shop-1"):
            assert words in text
        assert f"…{str(older.id)[-6:]}" in text
        assert reverse("admin:continuum_run_change", args=[older.id]) in response.content.decode()

    def test_tells_how_long_a_run_took(self, get):
        make_run(state="completed", started_at=NOW - timedelta(hours=9), completed_at=NOW - timedelta(hours=2))
        assert "9 h ago 7 h" in str(Page(get(LIST).content.decode()))

    def test_says_what_each_run_waits_for(self, get):
        since = (NOW - timedelta(minutes=5)).isoformat()
        until = (NOW + timedelta(hours=23, minutes=30)).isoformat()
        make_run(state="suspended", waiting_on=[{"kind": "signal", "name": "review", "since": since, "until": until}])
        make_run(state="stuck_unknown_version")
        make_run()
        make_run(next_wakeup_at=NOW + timedelta(hours=2, minutes=30))
        text = str(Page(get(LIST).content.decode()))
        for words in (
            "the signal “review”, for 5 min",
            "gives up in 23 h",
            "a worker with code that fits its history",
            "a worker to take it",
            "its start in 2 h",
        ):
            assert words in text

    @pytest.mark.parametrize("rows", [1, 50])
    def test_takes_the_same_few_queries_for_one_row_and_for_fifty(self, get, django_assert_num_queries, rows):
        worker = Worker.objects.create(name="shop-1", expires_at=NOW)
        for number in range(rows):
            make_run(owner_id=worker.id, attributes={"number": number}, waiting_on=[{"kind": "timer"}])
        # Session, user, namespaces, workflows, count, rows.
        with django_assert_num_queries(6):
            assert len(listed(get(LIST))) == rows

    def test_leaves_payloads_in_the_database(self, get):
        make_run(input=["x" * 100], result=1, error={}, progress=1)
        (run,) = get(LIST).context["cl"].result_list
        assert {"input", "result", "error", "progress", "waiting_on"} <= run.get_deferred_fields()

    def test_a_run_is_found_by_the_beginning_of_its_id(self, get):
        # Chosen, as ids of two moments may begin differently, however close these are.
        run, other = (make_run(id=UUID(f"019ca95e-0a6{n}-7f00-8000-0123456789ab")) for n in (3, 4))
        text = str(run.id)
        assert listed(get(LIST, q=text)) == [run.id]
        assert listed(get(LIST, q=text.replace("-", "").upper()[:31])) == [run.id]
        assert listed(get(LIST, q=text[:8])) == [other.id, run.id]
        assert listed(get(LIST, q="0fff")) == []

    def test_runs_are_found_by_a_part_of_their_workflows_name(self, get):
        run = make_run(workflow="shop.refund_flow")
        make_run()
        for name in ("shop.refund_flow", "shop.order_flow"):
            WorkflowVersion.objects.create(workflow=name, version=1, version_hash="a")
        assert listed(get(LIST, q="Refund")) == [run.id]
        assert listed(get(LIST, q="nothing")) == []

    def test_runs_are_found_by_their_attributes(self, get):
        a = make_run(attributes={"plan": "pro", "customer": {"id": 7}, "note": "two words", "paid": True})
        b = make_run(attributes={"plan": "free", "customer": {"id": "7"}, "nothing": None})
        WorkflowVersion.objects.create(workflow="shop.order_flow", version=1, version_hash="a")
        for term, runs in (
            ("plan:pro", [a]),
            ("plan:pro customer.id:7", [a]),
            ("customer.id:7", [b, a]),
            ("""'customer.id:"7"'""", [b]),
            ("'note:two words'", [a]),
            ("paid:true", [a]),
            ("nothing:null", [b]),
            ("plan:gold", []),
            ("plan:free order", [b]),
            ("plan:pro 'unclosed", []),
            (f"plan:pro {str(a.id)[:8]}", [a]),
        ):
            assert listed(get(LIST, q=term)) == [run.id for run in runs], term

    @pytest.mark.parametrize("value", ["pro", "two words", 7, 7.5, "7", True, None, "it's", 'a "quote"', "true", ""])
    def test_a_chip_leads_to_the_runs_with_its_attribute(self, get, admin_client, value):
        run = make_run(attributes={"key": value})
        make_run(attributes={"key": "another"})
        html = get(LIST).content.decode()
        query = next(
            each for each in re.findall(r'class="continuum-tag" href="([^"]+)"', html) if "another" not in each
        )
        assert listed(admin_client.get(query.replace("&amp;", "&"))) == [run.id]

    def test_a_chip_that_cannot_be_searched_for_is_no_link(self, get):
        make_run(attributes={"deep": {"x": 1}, "a.b": 1, "two words": 1})
        assert 'class="continuum-tag" href' not in get(LIST).content.decode()

    def test_what_does_not_look_like_an_id_is_searched_as_a_name(self):
        assert id_bounds("decade") is None
        assert id_bounds("01a2x") is None
        assert id_bounds("0" * 33) is None

    def test_filters_by_state_namespace_and_workflow(self, get):
        run = make_run(workflow="shop.refund_flow", namespace="billing", state="failed")
        make_run()
        WorkflowVersion.objects.create(workflow="shop.refund_flow", version=1, version_hash="a")
        WorkflowVersion.objects.create(workflow="shop.refund_flow", version=2, version_hash="b")
        for query in ({"state__exact": "failed"}, {"namespace": "billing"}, {"workflow": "shop.refund_flow"}):
            assert listed(get(LIST, **query)) == [run.id]
        choices = {spec.title: getattr(spec, "lookup_choices", None) for spec in get(LIST).context["cl"].filter_specs}
        assert choices["namespace"] == [("billing", "billing"), ("default", "default")]
        assert choices["workflow"] == [("shop.refund_flow", "shop.refund_flow")]

    @pytest.mark.parametrize(("most", "passes"), [(2, 1), (1, 3)])
    def test_the_live_runs_are_read_once_for_the_few_of_a_rare_workflow(self, get, monkeypatch, most, passes):
        monkeypatch.setattr(filters, "_MOST_NAMED", most)
        runs = [
            make_run(workflow="shop.refund_flow", state=state, namespace=namespace)
            for state, namespace in (
                ("running", "default"),
                ("stuck_unknown_version", "billing"),
                ("failed", "default"),
            )
        ]
        for state in Run.State.values:
            make_run(state=state)
        WorkflowVersion.objects.create(workflow="shop.refund_flow", version=1, version_hash="a")
        for query in ({"workflow": "shop.refund_flow"}, {"q": "refund"}):
            with CaptureQueriesContext(connection) as queries:
                assert listed(get(LIST, **query)) == [run.id for run in reversed(runs)]
            assert sum("suspended" in each["sql"] for each in queries) == passes
        assert listed(get(LIST, workflow="shop.refund_flow", state__exact="running")) == [runs[0].id]
        assert listed(get(LIST, workflow="shop.refund_flow", state__exact="failed")) == [runs[2].id]
        assert listed(get(LIST, workflow="shop.refund_flow", namespace="billing")) == [runs[1].id]
        assert listed(get(LIST, workflow="shop.refund_flow", state__exact="cancelled")) == []

    def test_one_namespace_needs_no_filter(self, get):
        make_run()
        assert "namespace" not in [spec.title for spec in get(LIST).context["cl"].filter_specs]

    def test_counts_no_further_than_anybody_pages(self, get, monkeypatch):
        monkeypatch.setattr(pagination.CappedPaginator, "cap", 3)
        for _ in range(3):
            make_run()
        assert "There are more" not in str(Page(get(LIST).content.decode()))
        make_run()
        response = get(LIST)
        assert response.context["cl"].result_count == 3
        assert "There are more. Only the newest 3" in str(Page(response.content.decode()))


class TestRunPage:
    def test_leads_with_what_the_run_waits_for(self, run_page):
        waiting = [
            {"kind": "activity", "name": "charge", "attempt": 3, "last_error": "ConnectionError: down"},
            {"kind": "child", "name": "refund"},
            {"kind": "more", "count": 40},
        ]
        text = run_page(make_run(state="suspended", waiting_on=waiting))
        assert "the activity charge, attempt 3, last error: ConnectionError: down" in text
        places = [text.index(words) for words in ("Waiting for", "the child refund", "40 more", "Summary")]
        assert places == sorted(places)

    def test_puts_together_what_reads_the_same(self, run_page):
        since = [(NOW - timedelta(minutes=minutes)).isoformat() for minutes in (5, 9)]
        waiting = [
            *({"kind": "child", "name": "refund", "id": str(uuid7()), "since": each} for each in since),
            {"kind": "activity", "name": "render", "attempt": 1, "queue": "reports"},
            {"kind": "activity", "name": "render", "attempt": 2, "queue": "reports"},
            *({"kind": "signal", "name": "paid"} for _ in range(2)),
        ]
        lines = wording.waits(waiting, NOW)
        assert lines == [
            "2 children refund, the first for 9 min",
            "the activity render on the queue reports",
            "the activity render on the queue reports, attempt 2",
            "2 more",
        ]

    def test_leads_to_the_children(self, get):
        parent = make_run()
        children = [make_run(parent_run_id=parent.id, completed_at=NOW), make_run(parent_run_id=parent.id)]
        html = get("admin:continuum_run_change", parent.pk).content.decode()
        assert "Children 2 , 1 of them live" in str(Page(html))
        (query,) = re.findall(r"/run/\?(parent_run_id=[0-9a-f-]+)", html)
        name, _, value = query.partition("=")
        assert listed(get(LIST, **{name: value})) == [run.id for run in reversed(children)]

    def test_shows_what_is_in_queues(self, run_page):
        run, worker = make_run(), Worker.objects.create(name="reports-1", expires_at=NOW)
        for number, fields in enumerate(
            (
                {"due_at": NOW - timedelta(minutes=5)},
                {"due_at": NOW + timedelta(minutes=5, seconds=30), "attempt": 2},
                {"state": "running", "owner_id": worker.id, "heartbeat_at": NOW - timedelta(minutes=2)},
                {"state": "local"},
            )
        ):
            ActivityTask.objects.create(
                run_id=run.id,
                command_id=f"0:{number}",
                activity="render",
                queue="reports",
                args=[],
                **{"attempt": 1} | fields,
            )
        text = run_page(run)
        assert "0:3" not in text
        for words in (
            "reports render 0:0 1 waits for a worker since 5 min",
            "reports render 0:1 2 waits for its next try in 5 min",
            "reports render 0:2 1 with reports-1 last heartbeat 2 min",
        ):
            assert words in text

    def test_a_run_that_has_ended_waits_for_nothing(self, run_page):
        assert "Waiting for" not in run_page(make_run(state="completed", completed_at=NOW))

    def test_shows_values_as_readable_json(self, get):
        run = make_run(input=[{"at": NOW, "name": "Kaffeemühle"}], result={"paid": True}, progress={"done": 3})
        pages = re.findall(r"<pre[^>]*>(.*?)</pre>", get("admin:continuum_run_change", run.pk).content.decode(), re.S)
        shown = [text.replace("&quot;", '"') for text in pages]
        assert f'[\n  {{\n    "at": "{NOW.isoformat()}",\n    "name": "Kaffeemühle"\n  }}\n]' in shown
        assert '{\n  "paid": true\n}' in shown
        assert '{\n  "done": 3\n}' in shown

    def test_keeps_the_lines_of_a_traceback(self, get):
        traceback = 'Traceback (most recent call last):\n  File "flow.py", line 3, in flow\nKeyError: 1\n'
        error = {"type": "KeyError", "message": "1", "traceback": traceback, "details": {"code": 7}}
        html = get("admin:continuum_run_change", make_run(state="failed", error=error).pk).content.decode()
        assert traceback.replace('"', "&quot;") in html
        text = str(Page(html))
        assert "KeyError: 1" in text
        assert '"code": 7' in text

    def test_keeps_the_columns_of_a_drift(self, get):
        message = "run 1 cannot go on\n\nWhere:  command 0:1\n\n  event  history  code\n>     1  a        <b>"
        error = {"type": "ReplayDriftError", "message": message, "traceback": "", "details": None}
        run = make_run(state="stuck_unknown_version", error=error)
        html = get("admin:continuum_run_change", run.pk).content.decode()
        assert '<p class="continuum-error-line">ReplayDriftError: run 1 cannot go on</p>' in html
        columns = "Where:  command 0:1\n\n  event  history  code\n&gt;     1  a        &lt;b&gt;</pre>"
        assert f'<pre tabindex="0">{columns}' in html

    def test_tells_the_history_in_order(self, run_page):
        run = make_run(started_at=NOW - timedelta(seconds=90))
        make_events(run, 2, data={"result": "ch_1"})
        text = run_page(run)
        assert re.search(r'1 \+1 min 30 s activity_completed charge 0:1 { "result": "ch_1" } 2 \+1 min', text)

    def test_draws_the_timeline_with_a_way_to_each_event(self, get):
        run = make_run(started_at=NOW - timedelta(seconds=90), claimed_at=NOW - timedelta(seconds=89))
        child = uuid7()
        HistoryEventFactory.reset_sequence(0)
        HistoryEventFactory(run=run, name="shop.charge")
        HistoryEventFactory(run=run, type="child_failed", command_id="0:2", name="refund", data={"child": str(child)})
        HistoryEventFactory(run=run, type="run_failed", command_id=None, name=None, data={"type": "ValueError"})
        html = get("admin:continuum_run_change", run.pk).content.decode()
        lanes = re.findall(r'aria-label="(shop\.charge|refund): ([^"]*)"', html)
        assert {name for name, _ in lanes} == {"shop.charge", "refund"}
        assert dict(lanes)["shop.charge"].startswith("completed, +1 min")
        assert html.count('href="#event-1"') == html.count('id="event-1"') == 1
        assert reverse("admin:continuum_run_change", args=[child]) in html
        assert "failed: ValueError" in str(Page(html))

    def test_a_run_without_a_history_has_no_timeline(self, run_page):
        assert "Timeline" not in run_page(make_run())

    @pytest.mark.parametrize("state", ["running", "completed"])
    def test_the_page_of_a_live_run_renews_itself(self, get, admin_client, state):
        run = make_run(state=state, completed_at=NOW if state == "completed" else None)
        make_events(run, 3)
        html = get("admin:continuum_run_change", run.pk, before="3").content.decode()
        (address,) = re.findall(r'data-continuum-fragment="([^"]*)"', html)
        assert address == reverse("admin:continuum_run_fragment", args=[run.pk]) + "?before=3"
        assert ("data-continuum-live" in html) == (state == "running")
        fragment = admin_client.get(address)
        assert fragment.status_code == 200
        assert [row.event.seq for row in fragment.context["history"].rows] == [1, 2]
        assert "<html" not in fragment.content.decode()
        headings = re.compile(r"<h2>(.*?)</h2>")
        assert headings.findall(fragment.content.decode()) == headings.findall(html.partition("content-main")[2])

    def test_shows_the_newest_events_of_a_long_history_and_leads_to_the_older(self, get):
        run = make_run()
        make_events(run, 1_201)
        seen = []
        query = {}
        while True:
            page = get("admin:continuum_run_change", run.pk, **query).context["history"]
            seen = [row.event.seq for row in page.rows] + seen
            if page.older is None:
                break
            query = {"before": page.older}
        assert seen == list(range(1, 1_202))
        assert len(page.rows) == 201

    def test_shows_only_the_events_asked_for(self, get):
        run = make_run()
        HistoryEventFactory.reset_sequence(0)
        HistoryEventFactory(run=run, name="shop.charge")
        HistoryEventFactory(run=run, name="shop.ship", type="activity_retried", command_id="0.2:1")
        HistoryEventFactory(run=run, name=None, type="timer_fired", command_id="0:3")

        def shown(**query):
            page = get("admin:continuum_run_change", run.pk, **query).context["history"]
            return [row.event.seq for row in page.rows]

        assert shown(kind="failures") == [2]
        assert shown(kind="timer_fired") == [3]
        assert shown(name="SHIP") == [2]
        assert shown(name="0:3") == [3]
        assert shown(kind="timer_fired", name="ship") == []
        assert shown(kind="nonsense") == [1, 2, 3]

    def test_pages_of_chosen_events_stay_chosen(self, get, monkeypatch):
        monkeypatch.setattr(details, "HISTORY_LIMIT", 2)
        run = make_run()
        make_events(run, 5, name="a&b")
        html = get("admin:continuum_run_change", run.pk, name="a&b", kind="activity_completed").content.decode()
        assert 'href="?before=4&amp;kind=activity_completed&amp;name=a%26b"' in html

    def test_a_history_can_be_downloaded(self, get, admin_client, client):
        run = make_run()
        make_events(run, 3, data={"result": "Kaffeemühle"})
        assert (
            reverse("admin:continuum_run_events", args=[run.pk])
            in get("admin:continuum_run_change", run.pk).content.decode()
        )
        response = admin_client.get(reverse("admin:continuum_run_events", args=[run.pk]))
        assert response["Content-Disposition"] == f'attachment; filename="{run.pk}.jsonl"'
        lines = [json.loads(line) for line in b"".join(response.streaming_content).decode().splitlines()]
        assert [(line["seq"], line["data"]["result"]) for line in lines] == [(n, "Kaffeemühle") for n in (1, 2, 3)]
        assert admin_client.get(reverse("admin:continuum_run_events", args=[uuid7()])).status_code == 404

    def test_downloading_takes_the_permission_to_see_payloads(self, client):
        user = User.objects.create_user("operator", is_staff=True)
        user.user_permissions.add(Permission.objects.get(codename="view_run"))
        client.force_login(user)
        run = make_run()
        assert client.get(reverse("admin:continuum_run_events", args=[run.pk])).status_code == 403
        page = client.get(reverse("admin:continuum_run_change", args=[run.pk])).content.decode()
        assert "events.jsonl" not in page

    @pytest.mark.parametrize("before", ["x", "-1", "99999999999999999999", ""])
    def test_a_meaningless_page_is_the_newest_one(self, get, before):
        run = make_run()
        make_events(run, 2)
        assert len(get("admin:continuum_run_change", run.pk, before=before).context["history"].rows) == 2

    def test_cuts_what_is_too_long_and_says_so(self, run_page):
        run = make_run(input=["x" * 300_000])
        make_events(run, 1, data={"result": "y" * 300_000})
        text = run_page(run)
        assert "The beginning of 300004 characters." in text
        assert "The beginning of 300013 characters." in text
        assert len(text) < 150_000

    def test_shows_what_this_process_cannot_decode(self, run_page):
        run = make_run()
        Run.objects.filter(id=run.id).update(progress=None)
        make_events(run, 1)
        with connection.cursor() as cursor:
            cursor.execute("""UPDATE continuum_runs SET result = '{"~enum": ["gone.module:Colour", "RED"]}'""")
            cursor.execute("""UPDATE continuum_events SET data = '{"~datetime": 7}'""")
        text = run_page(run)
        assert "Colour" in text
        assert "~datetime" in text

    def test_takes_the_same_few_queries_for_any_history(self, get, django_assert_num_queries):
        for count in (1, 300):
            run = make_run(owner_id=7, parent_run_id=uuid7())
            make_events(run, count)
            # Session, user, run, children, timeline, tasks, log, payloads, events.
            with django_assert_num_queries(9):
                get("admin:continuum_run_change", run.pk)

    def test_an_unknown_or_malformed_id_leads_back(self, admin_client):
        for run_id in (uuid7(), "nonsense"):
            assert admin_client.get(reverse("admin:continuum_run_change", args=[run_id])).status_code == 302


class TestSafety:
    def test_nothing_a_run_holds_becomes_markup(self, get):
        run = make_run(
            workflow=HOSTILE,
            namespace=HOSTILE,
            state="suspended",
            attributes={HOSTILE: HOSTILE},
            input=[HOSTILE],
            result=HOSTILE,
            progress=HOSTILE,
            idempotency_key=HOSTILE,
            version_hash=HOSTILE,
            parent_run_id=uuid7(),
            parent_command_id=HOSTILE,
            error={"type": HOSTILE, "message": HOSTILE, "traceback": HOSTILE, "details": HOSTILE},
            waiting_on=[{"kind": HOSTILE, "name": HOSTILE, "last_error": HOSTILE, "attempt": 2}],
            owner_id=Worker.objects.create(name=HOSTILE, host=HOSTILE, expires_at=NOW).id,
        )
        make_events(run, 1, type=HOSTILE, name=HOSTILE, command_id=HOSTILE, data=HOSTILE)
        make_run(namespace="other")
        WorkflowVersion.objects.create(workflow=HOSTILE, version=1, version_hash="h")
        for page in (get(LIST), get("admin:continuum_run_change", run.pk), get("admin:continuum_worker_changelist")):
            html = page.content.decode()
            assert "<script>alert" not in html
            assert "&lt;script&gt;alert" in html

    def test_pages_work_under_a_strict_content_security_policy(self, get):
        run = make_run(state="failed", error={"type": "E", "message": "m", "traceback": "t"}, attributes={"a": 1})
        make_events(run, 1)
        for page in (get(LIST), get("admin:continuum_run_change", run.pk), get("admin:continuum_worker_changelist")):
            assert Page(page.content.decode()).inline == []

    def test_the_style_sheet_is_there(self, get):
        assert finders.find("continuum/admin.css")
        assert finders.find("continuum/live.js")
        assert "continuum/admin.css" in get(LIST).content.decode()

    @pytest.mark.parametrize("model", ["run", "worker"])
    def test_nothing_can_be_added_changed_or_deleted(self, admin_client, model):
        row = make_run() if model == "run" else Worker.objects.create(name="w", expires_at=NOW)
        assert admin_client.get(reverse(f"admin:continuum_{model}_add")).status_code == 403
        assert admin_client.get(reverse(f"admin:continuum_{model}_delete", args=[row.pk])).status_code == 403
        assert admin_client.post(reverse(f"admin:continuum_{model}_change", args=[row.pk]), {}).status_code == 403
        page = admin_client.get(reverse(f"admin:continuum_{model}_changelist"))
        offered = page.context["action_form"]
        names = [name for name, _ in offered.fields["action"].choices if name] if offered else []
        assert names == (["signal", "cancel", "retry", "set_attributes"] if model == "run" else [])

    def test_payloads_take_a_permission_of_their_own(self, client):
        user = User.objects.create_user("operator", is_staff=True)
        user.user_permissions.add(Permission.objects.get(codename="view_run"))
        client.force_login(user)
        secret = "4111-1111"
        run = make_run(
            state="suspended",
            input=[secret],
            result=secret,
            progress=secret,
            error={"type": "E", "message": secret, "traceback": secret},
            waiting_on=[{"kind": "activity", "name": "charge", "attempt": 2, "last_error": secret}],
        )
        make_events(run, 1, data={"result": secret})
        address = reverse("admin:continuum_run_change", args=[run.pk])
        html = client.get(address).content.decode() + client.get(reverse(LIST)).content.decode()
        assert secret not in html
        assert "the activity charge, attempt 2" in html
        user.user_permissions.add(Permission.objects.get(codename="view_payload"))
        assert secret in client.get(address).content.decode()

    def test_the_projects_hook_sees_every_value_first(self, get, settings):
        secret = "4111-1111"
        run = make_run(
            state="suspended",
            input=[secret],
            result=secret,
            progress="x" * 200_000 + secret,
            error={"type": "E", "message": secret, "traceback": secret},
            waiting_on=[{"kind": "activity", "name": "charge", "attempt": 2, "last_error": secret}],
        )
        make_events(run, 2, data={"result": secret})
        seen = set()

        def hide(value, shown):
            seen.add((shown.field, shown.type, shown.name))
            assert (shown.run_id, shown.workflow) == (run.id, "shop.order_flow")
            return "***"

        settings.CONTINUUM = {"REDACT": hide}
        html = get("admin:continuum_run_change", run.pk).content.decode()
        assert secret not in html
        assert "x" * 20 not in html
        assert "too long to be redacted" in html
        assert {field for field, _, _ in seen} == {"input", "result", "error", "waiting_on", "event"}
        assert ("event", "activity_completed", "charge") in seen
        assert secret not in get("admin:continuum_dashboard_changelist").content.decode()

    def test_runs_take_the_permission_to_view_them(self, client):
        client.force_login(User.objects.create_user("clerk", is_staff=True))
        assert client.get(reverse(LIST)).status_code == 403
        assert client.get(reverse("admin:continuum_run_fragment", args=[make_run().pk])).status_code == 403

    def test_a_fragment_of_no_run_is_not_found(self, admin_client):
        for run_id in (uuid7(), "nonsense"):
            assert admin_client.get(reverse("admin:continuum_run_fragment", args=[run_id])).status_code == 404


class TestWorkerList:
    def test_tells_who_is_alive_and_how_many_runs_each_holds(self, get, django_assert_num_queries):
        alive = Worker.objects.create(name="shop-1", expires_at=NOW + timedelta(hours=1))
        Worker.objects.create(name="shop-2", expires_at=NOW - timedelta(minutes=1))
        Worker.objects.create(name="shop-3", state="dead", expires_at=NOW - timedelta(days=1), stopped_at=NOW)
        for _ in range(3):
            make_run(owner_id=alive.id)
        with django_assert_num_queries(4):
            response = get("admin:continuum_worker_changelist")
        assert [(worker.name, worker.live) for worker in response.context["cl"].result_list] == [
            ("shop-3", 0),
            ("shop-2", 0),
            ("shop-1", 3),
        ]
        text = str(Page(response.content.decode()))
        for words in ("alive", "lease lapsed", "dead"):
            assert words in text

    def test_a_workers_page_opens(self, get):
        worker = Worker.objects.create(name="shop-1", expires_at=NOW, queues=["default"], info={"threads": 16})
        text = str(Page(get("admin:continuum_worker_change", worker.pk).content.decode()))
        for words in ("shop-1", '"default"', '"threads": 16'):
            assert words in text


class TestWording:
    @pytest.mark.parametrize(
        ("seconds", "words"),
        [
            (0.0042, "4 ms"),
            (1.25, "1.2 s"),
            (59, "59 s"),
            (60, "1 min"),
            (61, "1 min 1 s"),
            (3_600 * 3 + 720, "3 h 12 min"),
            (86_400 * 2, "2 d"),
        ],
    )
    def test_lengths_of_time(self, seconds, words):
        assert wording.duration(timedelta(seconds=seconds)) == words

    def test_moments_before_at_and_after_now(self):
        said = [wording.ago(NOW + timedelta(seconds=offset), NOW) for offset in (-300, 0, 300)]
        assert said == ["5 min ago", "now", "in 5 min"]

    @override_settings(TIME_ZONE="Europe/Oslo")
    def test_the_full_time_is_given_in_the_projects_time_zone(self):
        when = datetime(2026, 1, 2, 12, 0, 0, 123456, tzinfo=UTC)
        assert 'title="2026-01-02 13:00:00.123 CET"' in wording.moment(when, NOW)

    @pytest.mark.parametrize("odd", [None, 7, "x", {}, [7], [None], [{"kind": None}], [{"until": 7, "since": "x"}]])
    def test_what_it_does_not_understand_it_says_as_it_is(self, odd):
        assert all(isinstance(line, str) for line in wording.waits(odd, NOW))
