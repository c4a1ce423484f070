"""``continuum_runs``: what the on-call types."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from io import StringIO
from uuid import UUID

import pytest
from django.core.management import CommandError, call_command

import continuum
from continuum.ids import smallest_uuid7
from continuum.management.drawing import draw
from continuum.models import InboxMessage, Run
from continuum.redaction import HIDDEN
from continuum.timeline import timeline
from continuum.wording import duration
from tests.app.workflows import Order, echo, everything, fails
from tests.factories import HistoryEventFactory, RunFactory
from tests.test_cluster import start_worker  # noqa: F401

NOW = datetime.now(UTC)


@continuum.workflow(name="tests.runs_command.sells", signals={"order": Order, "price": Decimal, "note": str})
async def sells(): ...


def run_command(*arguments):
    out, err = StringIO(), StringIO()
    call_command("continuum_runs", *map(str, arguments), stdout=out, stderr=err, no_color=True)
    return out.getvalue()


def run_json(*arguments):
    return json.loads(run_command(*arguments, "--format", "json"))


def refused(*arguments):
    with pytest.raises(CommandError) as error:
        run_command(*arguments)
    return str(error.value)


@pytest.mark.django_db
class TestList:
    def ids(self, *arguments):
        return [run["id"] for run in run_json("list", *arguments)["runs"]]

    def test_the_newest_first_in_one_namespace_or_in_all(self):
        old = RunFactory(started_at=NOW - timedelta(hours=1))
        new = RunFactory(started_at=NOW)
        other = RunFactory(started_at=NOW - timedelta(minutes=1), namespace="billing")
        assert self.ids() == [str(new.id), str(old.id)]
        assert self.ids("--namespace", "billing") == [str(other.id)]
        assert self.ids("--all-namespaces") == [str(new.id), str(other.id), str(old.id)]

    def test_by_workflow_state_and_attributes(self):
        a = RunFactory(workflow="shop.orders", state="failed", attributes={"plan": "pro", "customer": {"id": 7}})
        b = RunFactory(workflow="shop.refunds", attributes={"plan": "free", "customer": {"id": "7"}})
        assert self.ids("--workflow", "shop.orders") == [str(a.id)]
        assert set(self.ids("--workflow", "shop.*")) == {str(a.id), str(b.id)}
        assert self.ids("--state", "failed", "--state", "cancelled") == [str(a.id)]
        assert self.ids("--attribute", "plan=free") == [str(b.id)]
        assert self.ids("--attribute", "customer.id=7") == [str(a.id)]
        assert self.ids("--attribute", 'customer.id="7"') == [str(b.id)]

    def test_page_by_page(self):
        runs = [RunFactory(started_at=NOW - timedelta(seconds=n)) for n in range(5)]
        first = run_json("list", "--limit", 2)
        rest = run_json("list", "--limit", 200, "--cursor", first["next_cursor"])
        assert [run["id"] for run in first["runs"] + rest["runs"]] == [str(run.id) for run in runs]
        assert rest["next_cursor"] is None
        assert "There are more: --cursor " in run_command("list", "--limit", 2)

    def test_more_than_a_page_of_the_query_at_once(self):
        Run.objects.bulk_create(RunFactory.build(correlation_id=smallest_uuid7(NOW)) for _ in range(230))
        assert len(self.ids("--limit", "205")) == 205

    def test_as_a_table(self):
        run = RunFactory(state="running", started_at=datetime.now(UTC) - timedelta(hours=3), attributes={"plan": "pro"})
        head, row = run_command("list").splitlines()
        assert head.split() == ["run", "state", "age", "workflow", "namespace", "attributes"]
        assert row.split() == [str(run.id), "running", "3", "h", "shop.order_flow", "default", "plan=pro"]

    def test_says_where_it_found_nothing(self):
        assert run_command("list", "--namespace", "x") == "There are no such runs in the namespace 'x'.\n"

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--state", "asleep"], "invalid choice"),
            (["--attribute", "plan"], "is not PATH=VALUE"),
            (["--attribute", "=3"], "is not PATH=VALUE"),
            (["--limit", "0"], "whole number"),
            (["--cursor", "forged"], "cursor"),
            (["--database", "nowhere"], "There is no database 'nowhere'"),
        ],
    )
    def test_wrong_usage_is_a_sentence(self, arguments, said):
        assert said in refused("list", *arguments)


@pytest.mark.django_db
class TestFindingTheRun:
    def test_by_the_beginning_of_its_id(self):
        run = RunFactory()
        assert run_json("show", str(run.id)[:23])["id"] == str(run.id)
        assert run_json("show", run.id.hex.upper())["id"] == str(run.id)

    def test_not_if_others_begin_so_or_none_does(self):
        first, _ = (RunFactory(id=UUID(int=smallest_uuid7(NOW).int + n)) for n in range(2))
        start = str(first.id)[:8]
        assert refused("show", start) == f"Several runs have ids that begin with {start!r}."
        assert refused("show", "ffffffff") == "No run has an id that begins with 'ffffffff'."

    @pytest.mark.parametrize("text", ["0123456", "0123456g", "", "a" * 33])
    def test_not_by_something_else(self, text):
        assert "is not the id of a run" in refused("show", text)

    @pytest.mark.parametrize("action", [["show"], ["history"], ["signal"], ["cancel"], ["retry"], ["fork"]])
    def test_not_in_another_namespace(self, action):
        run = RunFactory(namespace="billing", state="failed")
        more = {"signal": ["s"], "fork": ["0:1"]}.get(action[0], [])
        refused(*action, run.id, *more, "--namespace", "default")
        assert not InboxMessage.objects.exists()
        assert Run.objects.get().state == "failed"


@pytest.mark.django_db
class TestShow:
    def test_says_first_why_it_waits(self):
        run = RunFactory(
            state="suspended",
            waiting_on=[
                {"kind": "signal", "name": "fraud_review", "since": NOW.isoformat(), "until": None},
                {"kind": "activity", "name": "charge", "since": NOW.isoformat(), "attempt": 3, "last_error": "E: no"},
                {"kind": "more", "count": 7},
            ],
        )
        lines = run_command("show", run.id).splitlines()
        assert lines[0] == f"shop.order_flow  {run.id}"
        assert lines[1] == "suspended"
        assert lines[2].startswith("waits for signal fraud_review, for ")
        assert "attempt 3" in lines[3]
        assert "last error E: no" in lines[3]
        assert lines[4] == "waits for 7 more"

    def test_a_failure_with_its_traceback(self):
        error = {"type": "ValueError", "message": "no stock", "traceback": "File x\nline 3", "details": {"sku": 1}}
        run = RunFactory(state="failed", started_at=NOW, completed_at=NOW + timedelta(seconds=4), error=error)
        said = run_command("show", run.id)
        assert "failed, 4.0 s after its start\nValueError: no stock\n" in said
        assert 'error: ValueError: no stock\n  details: {"sku": 1}\n  File x\n  line 3\n' in said

    def test_its_values_and_facts(self):
        run = RunFactory(ended=True, input=["o1", 900], result={"state": "shipped"}, idempotency_key="k-1")
        said = run_command("show", run.id)
        assert "idempotency key  k-1" in said
        assert '"shipped"' in said
        told = run_json("show", run.id)
        assert (told["input"], told["result"], told["state"]) == (["o1", 900], {"state": "shipped"}, "completed")

    def test_secrets_are_hidden_by_the_projects_hook(self, settings):
        run = RunFactory(ended=True, input=["4111-1111"], result="fine")
        HistoryEventFactory(run=run, data={"result": "4111-1111"})

        def hide(value, shown):
            assert (shown.workflow, shown.run_id) == ("shop.order_flow", run.id)
            if shown.field == "result":
                raise RuntimeError
            return "***" if "4111" in json.dumps(value) else value

        settings.CONTINUUM = {"REDACT": hide}
        for said in (run_command("show", run.id), run_command("history", run.id)):
            assert "4111" not in said
            assert "***" in said
        assert run_json("show", run.id)["result"] == HIDDEN

    def test_a_class_that_is_gone_does_not_matter(self):
        from django.db import connection

        run = RunFactory(ended=True)
        with connection.cursor() as cursor:
            cursor.execute("UPDATE continuum_runs SET input = '[{\"$nonsense\": 1}]' WHERE id = %s", [run.id])
        assert run_json("show", run.id)["input"]


@pytest.mark.django_db
class TestHistory:
    def test_a_line_for_each_event(self):
        run = RunFactory(started_at=NOW)
        HistoryEventFactory(run=run, seq=1, recorded_at=NOW + timedelta(seconds=2), data={"result": 3})
        HistoryEventFactory(run=run, seq=2, recorded_at=NOW, type="patched", command_id="patch:p", name="p", data={})
        lines = run_command("history", run.id).splitlines()
        assert lines[0].split() == ["1", "+2.000", "s", "0:1", "activity", "completed", "charge"]
        assert lines[1].strip() == '{"result": 3}'
        assert lines[2].endswith("patch:p patched p")
        assert len(lines) == 3

    def test_as_json_an_event_a_line_from_where_one_likes(self, monkeypatch):
        monkeypatch.setattr("continuum.describing._PAGE", 2)
        run = RunFactory()
        for seq in range(1, 6):
            HistoryEventFactory(run=run, seq=seq)
        told = [json.loads(line) for line in run_command("history", run.id, "--format", "json").splitlines()]
        assert [event["seq"] for event in told] == [1, 2, 3, 4, 5]
        assert set(told[0]) == {"seq", "type", "command_id", "name", "recorded_at", "data"}
        rest = run_command("history", run.id, "--format", "json", "--after", 3).splitlines()
        assert [json.loads(line)["seq"] for line in rest] == [4, 5]


@pytest.mark.django_db
class TestActing:
    def test_a_signal_with_and_without_a_payload(self):
        run = RunFactory(state="suspended")
        assert run_command("signal", run.id, "go") == f"run {run.id} was sent 'go'\n"
        assert run_json("signal", run.id, "go", '{"by": "ada"}') == {"id": str(run.id), "delivered": True}
        assert [message.payload for message in InboxMessage.objects.order_by("id")] == [None, {"by": "ada"}]

    def test_a_delivery_is_made_once(self):
        run = RunFactory(state="suspended")
        run_command("signal", run.id, "go", "--delivery-id", "d")
        assert "has had this delivery before" in run_command("signal", run.id, "go", "--delivery-id", "d")
        assert InboxMessage.objects.count() == 1

    def test_a_payload_that_is_no_json_is_refused(self):
        for text in ("approved", "NaN", "[-Infinity]"):
            assert "is not JSON" in refused("signal", RunFactory().id, "go", text)
        assert not InboxMessage.objects.exists()

    def test_a_payload_is_read_as_the_type_that_is_declared(self):
        run = RunFactory(workflow=sells.name, state="suspended")
        run_command("signal", run.id, "order", '{"id": "o1", "total": {"~decimal": "1.50"}}')
        run_command("signal", run.id, "price", '{"~decimal": "1.50"}')
        run_command("signal", run.id, "note", '"as it is"')
        order, price, note = [message.payload for message in InboxMessage.objects.order_by("id")]
        assert order == {"id": "o1", "total": Decimal("1.50")}
        assert (price, note) == (Decimal("1.50"), "as it is")

    @pytest.mark.parametrize(
        ("name", "payload", "complaint"),
        [
            ("order", '{"id": "o1"}', "declares it with Order: value: Order needs total"),
            ("order", '{"id": "o1", "total": 1, "cents": 5}', "value.cents: Order has no such field"),
            ("order", "[1]", "declares it with Order, not list"),
            ("price", '"1.50"', "declares it with Decimal, not str"),
            ("note", '{"~decimal": "1.50"}', "declares it with str, not Decimal"),
        ],
    )
    def test_a_payload_that_is_not_of_that_type_is_refused(self, name, payload, complaint):
        run = RunFactory(workflow=sells.name, state="suspended")
        assert complaint in refused("signal", run.id, name, payload)
        assert not InboxMessage.objects.exists()

    def test_where_no_type_is_declared_json_stays_as_it_is(self):
        run = RunFactory(state="suspended")
        run_command("signal", run.id, "go", '{"~decimal": "1.50"}')
        assert InboxMessage.objects.get().payload == {"~decimal": "1.50"}

    def test_a_signal_to_a_run_that_has_ended_is_refused_in_a_sentence(self):
        assert "completed" in refused("signal", RunFactory(ended=True).id, "go")

    def test_cancel_asks_each_and_names_those_it_cannot(self):
        live, over = RunFactory(), RunFactory(ended=True)
        out, err = StringIO(), StringIO()
        with pytest.raises(CommandError, match="1 of 2 refused"):
            call_command("continuum_runs", "cancel", str(over.id), str(live.id), reason="r", stdout=out, stderr=err)
        assert str(over.id) in err.getvalue()
        assert out.getvalue() == f"run {live.id} was asked to stop\n"
        assert InboxMessage.objects.get().run_id == live.id

    def test_retry_lets_a_failed_run_go_on(self):
        run = RunFactory(state="failed", completed_at=NOW)
        assert run_json("retry", run.id)["state"] == "suspended"
        with pytest.raises(CommandError, match="1 of 1 refused"):
            run_command("retry", run.id)

    def test_fork_starts_another(self):
        run = continuum.start(echo, 1)
        told = run_json("fork", run.id, "0:1")
        assert told["forked_from_run_id"] == str(run.id)

    def test_nothing_without_an_action(self):
        refused()


@pytest.mark.django_db(transaction=True)
@pytest.mark.cluster
class TestRealRuns:
    def test_one_that_did_a_bit_of_all_and_one_that_failed(self, start_worker):  # noqa: F811
        start_worker()
        run, failed = continuum.start(everything, "k"), continuum.start(fails)
        continuum.signal(run, "answer", 1)
        continuum.wait_run(run, 60)
        continuum.wait_run(failed, 60)
        said = run_command("show", run.id)
        assert "completed, " in said.splitlines()[1]
        assert "timer" in said
        assert run_command("history", run.id).count("activity completed tests.app.workflows.effect") == 5
        assert "failed" in run_command("show", failed.id).splitlines()[1]


class TestDrawing:
    @pytest.mark.django_db
    @pytest.mark.parametrize("width", [40, 80, 160])
    def test_is_as_wide_as_the_terminal_and_shows_each_lane(self, width):
        run = RunFactory(started_at=NOW - timedelta(days=2), claimed_at=NOW - timedelta(days=2), state="running")
        HistoryEventFactory(run=run, seq=1, recorded_at=NOW - timedelta(days=1), data={"result": 1})
        lines = list(draw(timeline(run), width))
        assert max(map(len, lines)) <= max(width, 80)
        assert any("charge" in line for line in lines)

    @pytest.mark.parametrize(
        ("seconds", "told"),
        [(0.0123, "12 ms"), (4.21, "4.2 s"), (75, "1 min 15 s"), (3 * 3600, "3 h"), (90_000, "1 d 1 h")],
    )
    def test_lengths_are_told_in_two_units(self, seconds, told):
        assert duration(timedelta(seconds=seconds)) == told
