"""The shop's own tests; run ``pytest`` in ``example_project``.

Activities are called as plain functions. The processes run in memory, with mocked activities and no database, or in a
real worker inside the test; and histories that earlier versions of their code have left are replayed.
"""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from django.db import IntegrityError

import continuum
from continuum import NonRetryableError, RunCancelledError, RunNotActiveError
from continuum.models import ActivityTask, HistoryEvent, Run
from continuum.testing import assert_replays
from shop import activities, recording
from shop.activities import GatewayBusyError
from shop.demo import checks, others
from shop.models import (
    Attempt,
    Dispatched,
    Export,
    FraudReview,
    Invoice,
    LedgerEntry,
    Order,
    OrderLine,
    Shipment,
    Subscription,
)
from shop.orders import OrderFileError, by_order, place, read_lines
from shop.reviews import decide
from shop.workflows import BatchRequest, OrderRequest, batch, order_flow, subscription
from tests.conftest import database_url, url_of  # noqa: F401
from tests.waiting_for import eventually
from tests.workers import ProcessWorker

HEADER = "order_number,ordered_at,customer,country,currency,line,sku,product,quantity,unit_price_cents\n"
PROMISED = datetime(2024, 5, 1, tzinfo=UTC)


def an_order(number="1-10001", quantity=2):
    order = Order.objects.create(
        number=number, batch=1, ordered_at=PROMISED, customer="Old Mill Bakery", country="DE", currency="EUR"
    )
    OrderLine.objects.create(
        order=order, position=1, sku="FLO-RYE-1K", product="Rye flour", quantity=quantity, unit_price_cents=280
    )
    Dispatched.objects.get_or_create(batch=1, sku="FLO-RYE-1K")
    return order


@pytest.fixture
def order(db):
    return an_order()


@pytest.fixture
def lots(settings, monkeypatch):
    """What is drawn for each purpose; 1 unless the test says otherwise, so that nothing special happens."""
    settings.SHOP_LATENCY = 0
    drawn = {}
    monkeypatch.setattr(activities, "lot", lambda number, purpose: drawn.get(purpose, 1))
    return drawn


def outcomes(order, step):
    return list(order.attempts.filter(step=step).order_by("id").values_list("outcome", flat=True))


class TestOrderFile:
    def test_the_file_of_the_example_holds_300_orders(self):
        groups = by_order(read_lines())
        assert len(groups) == len({lines[0].order_number for lines in groups}) == 300
        assert all([line.line for line in lines] == list(range(1, len(lines) + 1)) for lines in groups)

    def test_a_missing_column_is_named(self, tmp_path):
        path = tmp_path / "lines.csv"
        path.write_text(HEADER.replace(",quantity", ""))
        with pytest.raises(OrderFileError, match=r"^lines\.csv: no column quantity$"):
            list(read_lines(path))

    def test_a_wrong_value_is_reported_with_its_line(self, tmp_path):
        path = tmp_path / "lines.csv"
        path.write_text(f"{HEADER}1,2024-05-01T10:00:00Z,Old Mill,DE,EUR,1,A,Tea,two,500\n")
        with pytest.raises(OrderFileError, match=r"^lines\.csv, line 2: .*'two'"):
            list(read_lines(path))

    def test_placing_keeps_the_lines_of_the_file(self, db):
        lines = by_order(read_lines())[3]
        (placed,) = place([lines], batch=7)
        assert placed.number == f"7-{lines[0].order_number}"
        assert [x.sku for x in placed.lines.all()] == [x.sku for x in lines]


@pytest.mark.usefixtures("lots")
class TestActivities:
    def test_reading_an_order_gives_its_total(self, order):
        basket = activities.read_order.call(order.number, uuid4())
        assert (basket.total_cents, basket.problem) == (560, "")

    def test_an_order_with_an_empty_line_has_a_problem(self, db):
        assert activities.read_order.call(an_order(quantity=0).number, uuid4()).problem == "quantity 0 of FLO-RYE-1K"

    def test_an_order_without_lines_has_a_problem(self, order):
        order.lines.all().delete()
        assert activities.read_order.call(order.number, uuid4()).problem == "the order has no lines"

    def test_a_charge_that_runs_twice_is_booked_once(self, order):
        assert {activities.charge_card.call(order.number, 560, "charge-a") for _ in range(2)} == {"charge-a"}
        assert order.ledger.get().amount_cents == 560
        assert outcomes(order, "charge_card") == ["done", "already done"]

    def test_a_charge_under_another_reference_is_refused(self, order):
        activities.charge_card.call(order.number, 560, "charge-a")
        with pytest.raises(NonRetryableError, match="is booked as charge-a, asked for charge-b"):
            activities.charge_card.call(order.number, 560, "charge-b")

    def test_a_busy_gateway_is_busy_once(self, order, lots):
        lots["gateway"] = 0
        with pytest.raises(GatewayBusyError):
            activities.charge_card.call(order.number, 560, "charge-a")
        activities.charge_card.call(order.number, 560, "charge-a")
        assert outcomes(order, "charge_card") == ["failed", "done"]

    def test_a_refused_card_is_not_tried_again(self, order, lots):
        lots["card"] = 0
        with pytest.raises(NonRetryableError, match="the bank refuses this card"):
            activities.charge_card.call(order.number, 560, "charge-a")
        assert not order.ledger.exists()

    def test_a_refund_takes_the_charge_back_once(self, order):
        activities.charge_card.call(order.number, 560, "charge-a")
        for _ in range(2):
            activities.refund.call(order.number, 560, "refund-a")
        assert sorted(order.ledger.values_list("amount_cents", flat=True)) == [-560, 560]

    def test_reading_an_order_notes_who_processes_it(self, order):
        first, second = uuid4(), uuid4()
        for run_id in (first, second):
            activities.read_order.call(order.number, run_id)
        order.refresh_from_db()
        assert order.run_id == first

    def test_an_unknown_order_fails_at_once(self, db):
        with pytest.raises(NonRetryableError, match="there is no order 1-404"):
            activities.read_order.call("1-404", uuid4())

    def test_shipping_counts_the_units(self, order):
        assert activities.ship.call(order.number, "express", PROMISED) == order.shipment.tracking
        assert Dispatched.objects.get().units == 2

    def test_opening_a_review_twice_keeps_the_first(self, order):
        for score in (90, 95):
            activities.open_review.call(order.number, score)
        assert order.review.score == 90

    def test_an_open_review_expires(self, order):
        activities.open_review.call(order.number, 90)
        assert activities.expire_review.call(order.number) == "timed out"

    def test_a_decision_at_the_last_moment_stands(self, order):
        activities.open_review.call(order.number, 90)
        FraudReview.objects.update(verdict="approved")
        assert activities.expire_review.call(order.number) == "approved"

    def test_closing_writes_the_state(self, order):
        activities.close_order.call(order.number, "declined", "no")
        order.refresh_from_db()
        assert (order.state, order.note) == ("declined", "no")

    def test_a_body_that_is_cut_off_stays_on_record(self, order):
        def body():
            with activities.attempt(order.number, "ship"):
                raise SystemExit

        with pytest.raises(SystemExit):
            body()
        assert outcomes(order, "ship") == ["running"]


def test_the_draw_depends_on_the_number_in_the_file_only():
    assert activities.lot("1-10001", "card") == activities.lot("2-10001", "card")
    assert activities.lot("1-10001", "card") != activities.lot("1-10002", "card")


class TestProcesses:
    """In memory: what is decided, in what order, and when."""

    def test_an_order_is_shipped_once_it_is_packed(self, continuum_env):
        recording.shop(continuum_env)
        run = continuum_env.start(order_flow, OrderRequest("1-10001"))
        result = continuum_env.result(run)
        assert (result.state, result.tracking) == ("shipped", "PX000000001")
        (parcel,) = continuum_env.calls(activities.ship)
        number, service, promised_for = parcel.args
        assert (number, service) == ("1-10001", "express")
        assert promised_for.date() == (continuum_env.now + timedelta(days=2)).date()

    def test_a_carrier_that_does_not_answer_is_not_waited_for(self, continuum_env):
        recording.order_shipped_by_the_standard_service_as_the_carrier_is_slow(continuum_env)
        assert continuum_env.calls(activities.ship)[0].args[1] == "standard"
        assert continuum_env.calls(activities.ask_carrier)[0].state == "abandoned"

    def test_a_review_is_waited_for_a_day(self, continuum_env):
        recording.shop(continuum_env, score=90)
        run = continuum_env.start(order_flow, OrderRequest("1-10001"))
        continuum_env.advance(timedelta(hours=23))
        assert run.progress == "waiting for a fraud review (score 90)"
        assert continuum_env.waiting_on(run)[0]["name"] == "fraud_review"
        continuum_env.advance(timedelta(hours=1, seconds=1))
        assert continuum_env.result(run).note == "fraud review: timed out"
        assert len(continuum_env.calls(activities.refund)) == 1

    def test_a_busy_gateway_is_tried_again_and_the_refund_knows_nothing_of_it(self, continuum_env):
        recording.order_shipped_although_the_gateway_was_busy(continuum_env)
        assert continuum_env.calls(activities.charge_card)[0].attempts == 2
        assert continuum_env.calls(activities.refund) == []

    def test_a_subscription_is_billed_with_the_plan_of_the_day(self, continuum_env):
        run = recording.subscription_continued(continuum_env)
        assert continuum_env.result(run) == 6
        plans = [call.args[2] for call in continuum_env.calls("shop.subscriptions.charge_period")]
        assert plans == ["basic", *["plus"] * 5]
        assert len(continuum_env.runs(subscription)) == 2

    @pytest.mark.parametrize("name", recording.SCENARIOS)
    def test_a_worker_may_die_at_any_step(self, continuum_env, name):
        assert continuum_env.crash_everywhere(recording.SCENARIOS[name]).crashes


class TestHistories:
    def test_those_of_every_version_of_the_code_replay(self):
        assert {path.name.partition(".")[0] for path in assert_replays(None, recording.HISTORIES)} == set(
            recording.SCENARIOS
        )

    def test_what_was_recorded_once_is_never_rewritten(self, monkeypatch, tmp_path):
        monkeypatch.setattr(recording, "HISTORIES", tmp_path)
        path = recording.record("order_shipped")
        path.write_text("kept")
        assert recording.record("order_shipped") is None
        assert path.read_text() == "kept"


@pytest.fixture
def at_work(transactional_db, settings, lots, continuum_worker):
    """A worker in the background, for the length of the test, in a warehouse that packs at once."""
    settings.SHOP_PACKING_SECONDS = 0
    return continuum_worker.start(threads=8)


@pytest.mark.usefixtures("at_work")
class TestOrders:
    def run(self, order):
        order.run_id = continuum.start(order_flow, OrderRequest(order.number)).id
        order.save()
        return order.run_id

    def books(self, order):
        """The order's state, what was booked for it, its parcels and the units that were counted."""
        order.refresh_from_db()
        booked = sorted(order.ledger.values_list("amount_cents", flat=True))
        return order.state, booked, Shipment.objects.count(), Dispatched.objects.get().units

    def test_an_order_is_charged_and_shipped(self):
        order = an_order()
        assert continuum.result(self.run(order), timeout=30).state == "shipped"
        assert self.books(order) == ("shipped", [560], 1, 2)

    def test_what_cannot_be_delivered_is_refunded(self, lots):
        lots["address"] = 0
        order = an_order()
        assert continuum.result(self.run(order), timeout=30).note == "the carrier does not deliver to this address"
        assert self.books(order) == ("refunded", [-560, 560], 0, 0)

    def test_what_a_person_rejects_is_refunded(self, lots):
        lots["fraud"] = 99
        order = an_order()
        run = self.run(order)
        review = eventually(lambda: FraudReview.objects.first(), 30)
        assert decide(review, "rejected")
        assert continuum.result(run, timeout=30).note == "fraud review: rejected"
        assert self.books(order) == ("refunded", [-560, 560], 0, 0)

    def test_a_refused_card_leaves_nothing_to_refund(self, lots):
        lots["card"] = 0
        order = an_order()
        assert continuum.result(self.run(order), timeout=30).state == "declined"
        assert self.books(order) == ("declined", [], 0, 0)

    def test_cancelling_an_order_gives_the_money_back(self, lots):
        lots["fraud"] = 99
        order = an_order()
        run = self.run(order)
        eventually(lambda: FraudReview.objects.exists(), 30)
        continuum.cancel(run, reason="the customer called")
        with pytest.raises(RunCancelledError, match="the customer called"):
            continuum.result(run, timeout=30)
        assert self.books(order) == ("cancelled", [-560, 560], 0, 0)


@pytest.mark.usefixtures("at_work")
class TestBatch:
    def test_a_batch_goes_on_when_an_order_of_it_fails(self):
        numbers = [an_order(f"1-{n}").number for n in range(10001, 10006)]
        an_order("1-10006", quantity=0)
        run = continuum.start(batch, BatchRequest([*numbers, "1-404", "1-10006"]))
        result = continuum.result(run, timeout=30)
        assert result.states == {"shipped": 5, "failed": 1, "invalid": 1}
        assert list(result.failures) == ["1-404"]
        assert "there is no order 1-404" in result.failures["1-404"]
        assert Run.objects.filter(parent_run_id=run.id).count() == 7
        assert Run.objects.with_attributes(order="1-404").get().state == "failed"
        assert Order.objects.get(number="1-10001").run_id == Run.objects.with_attributes(order="1-10001").get().id

    def test_cancelling_a_batch_cancels_its_orders(self, lots):
        lots["fraud"] = 99
        run = continuum.start(batch, BatchRequest([an_order(f"1-{n}").number for n in range(3)]))
        eventually(lambda: FraudReview.objects.count() == 3, 30)
        continuum.cancel(run)
        assert continuum.wait_run(run, timeout=30).state == "cancelled"
        eventually(lambda: set(Order.objects.values_list("state", flat=True)) == {"cancelled"}, 30)
        assert LedgerEntry.objects.filter(kind="refund").count() == 3


@pytest.mark.usefixtures("at_work")
class TestSubscription:
    def test_a_customer_is_charged_once_a_period_by_a_chain_of_runs(self):
        opened = others.start_subscription(1, "Old Mill Bakery", period_seconds=0.05)
        eventually(lambda: Invoice.objects.filter(plan="plus", period__gt=6).exists(), 30)
        continuum.signal(opened.run_id, "cancel", "moved away")
        periods = continuum.result(opened.run_id, timeout=30)
        opened.refresh_from_db()
        assert opened.state == "cancelled"
        assert list(opened.invoices.values_list("period", flat=True)) == list(range(1, periods + 1))
        assert Run.objects.filter(correlation_id=opened.run_id).count() == 1 + (periods - 1) // 5
        assert checks.offences(batch=1)[8] == (TestChecks.CHAIN, 0)

    def test_a_period_that_somebody_else_has_charged_is_not_charged_again(self):
        opened = Subscription.objects.create(customer="Old Mill Bakery")
        runs = [
            continuum.start("shop.subscriptions.subscription", opened, others.Terms(period_seconds=60)) for _ in "ab"
        ]
        for run in runs:
            continuum.signal(run, "cancel", "")
        assert [continuum.result(run, timeout=30) for run in runs] == [1, 1]

    def test_an_unknown_signal_is_refused(self):
        opened = others.start_subscription(1, "Old Mill Bakery", period_seconds=60)
        with pytest.raises(continuum.SignalRefusedError):
            continuum.signal(opened.run_id, "upgrade", "plus")


class TestExport:
    @pytest.fixture(autouse=True)
    def exports(self, settings, tmp_path):
        settings.SHOP_EXPORTS_DIR = tmp_path / "exports"
        settings.SHOP_LATENCY = 0.05

    @pytest.fixture
    def lines(self, transactional_db):
        """The ids of some 150 order lines."""
        place(by_order(read_lines())[:50], batch=1)
        return list(OrderLine.objects.order_by("pk").values_list("pk", flat=True))

    def test_an_export_goes_on_where_the_killed_worker_stood(
        self,
        lines,
        database_url,  # noqa: F811
        tmp_path,
        continuum_worker,
    ):
        environment = os.environ | {
            "DATABASE_URL": database_url,
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "EXAMPLE_DATA_DIR": str(tmp_path),
            "SHOP_LATENCY": "0.3",
        }
        made = others.start_export(1)
        victim = ProcessWorker(environment, log=tmp_path / "worker.log", cwd=Path(__file__).parent.parent)
        try:
            eventually(lambda: checks.exporter(batch=1), 30)
        finally:
            victim.close()
        continuum_worker.start()
        assert continuum.result(made.run_id, timeout=30) == len(lines)
        made.refresh_from_db()
        assert (made.state, made.lines) == ("done", len(lines))
        assert 0 < made.resumed_after < made.lines
        assert others.exported(1) == lines

    def test_a_cancelled_export_leaves_no_file(self, lines, tmp_path, continuum_worker):
        made = others.start_export(1)
        continuum_worker.start()
        eventually(lambda: list((tmp_path / "exports").glob("*.part")), 30)
        continuum.cancel(made.run_id)
        assert continuum.wait_run(made.run_id, timeout=30).state == "cancelled"
        eventually(lambda: not ActivityTask.objects.exists(), 30)
        continuum_worker.stop()
        assert Export.objects.get().state == "cancelled"
        assert list((tmp_path / "exports").iterdir()) == []


class TestConstraints:
    """A doubled effect that came past the activities would be an error, not a wrong number."""

    def test_an_order_is_charged_once(self, order):
        LedgerEntry.objects.create(order=order, kind="charge", amount_cents=560, reference="a")
        with pytest.raises(IntegrityError):
            LedgerEntry.objects.create(order=order, kind="charge", amount_cents=560, reference="b")

    def test_a_refund_is_negative(self, order):
        with pytest.raises(IntegrityError):
            LedgerEntry.objects.create(order=order, kind="refund", amount_cents=560, reference="a")

    def test_an_order_is_shipped_once(self, order):
        Shipment.objects.create(order=order, tracking="a", service="express", promised_for=PROMISED)
        with pytest.raises(IntegrityError):
            Shipment.objects.create(order=order, tracking="b", service="express", promised_for=PROMISED)


class TestReviews:
    @pytest.fixture
    def review(self, order):
        order.run_id = continuum.start(order_flow, OrderRequest(order.number)).id
        order.save()
        return FraudReview.objects.create(order=order, score=90)

    def test_a_review_is_decided_once(self, review):
        assert decide(review, "approved")
        assert not decide(review, "rejected")
        assert FraudReview.objects.get().verdict == "approved"

    def test_a_review_of_an_ended_run_stays_undecided(self, review):
        Run.objects.update(state="completed")
        with pytest.raises(RunNotActiveError):
            decide(review, "approved")
        assert FraudReview.objects.get().verdict == ""


class TestChecks:
    """Each of the demo's checks notices what it is there for."""

    ENDED = "every order has ended, and its run completed with the same result"
    ONE_END = "every run has one terminal event, and it is the last"
    NO_GAP = "no history has a gap"
    CHARGED = "every shipped order was charged its total once, and every refunded one got it back"
    PARCELS = "every shipped order is one parcel, and no other order is"
    UNITS = "the units counted by product are those of the shipped orders, each once"
    BATCHES = "every batch has ended with an outcome for each order of its file, and one failure"
    EXPORT = "the exported file holds each order line once"
    CHAIN = "every period of the subscription was charged once, by a chain of runs that has ended"
    NOT_AGAIN = "no activity whose result was recorded when the worker was killed has run again"
    RECORDED = "results were recorded when the worker was killed, and every history holds the first and the last step"

    NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)

    @pytest.fixture(autouse=True)
    def run(self, order):
        """The run of a shipped order, with books in which nothing is wrong."""
        run = Run.objects.create(
            workflow=order_flow.name,
            state="completed",
            correlation_id=uuid4(),
            result={"state": "shipped"},
            completed_at=self.NOW,
        )
        Order.objects.update(state="shipped", run_id=run.id)
        LedgerEntry.objects.create(order=order, kind="charge", amount_cents=560, reference="a")
        Shipment.objects.create(order=order, tracking="a", service="express", promised_for=PROMISED)
        Dispatched.objects.update(units=2)
        for seq, step in enumerate(("read_order", "charge_card", "ship", "close_order"), 1):
            self.attempt(order, step, self.NOW)
            self.event(run, seq, "activity_completed", f"shop.activities.{step}")
        self.event(run, 5, "run_completed")
        assert checks.mark_recorded(batch=1) == 4
        return run

    def attempt(self, order, step, started_at):
        Attempt.objects.create(order=order, step=step, outcome="done", worker_pid=1, started_at=started_at)

    def event(self, run, seq, kind, name=None):
        HistoryEvent.objects.create(run_id=run.id, seq=seq, type=kind, name=name, recorded_at=self.NOW)

    def wrong(self, exported=None):
        exported = OrderLine.objects.values_list("pk", flat=True) if exported is None else exported
        return [sentence for sentence, offences in checks.offences(1, exported) if offences]

    def test_good_books_pass(self):
        assert self.wrong() == []

    def test_a_run_that_has_not_ended(self):
        Run.objects.update(state="suspended")
        assert self.wrong() == [self.ENDED]

    def test_a_result_unlike_the_order(self):
        Run.objects.update(result={"state": "refunded"})
        assert self.wrong() == [self.ENDED]

    def test_an_order_without_a_run(self):
        Order.objects.update(run_id=None)
        assert self.ENDED in self.wrong()

    def test_a_second_end(self, run):
        self.event(run, 6, "run_completed")
        assert self.wrong() == [self.ONE_END]

    def test_an_event_after_the_end(self, run):
        self.event(run, 6, "signal_received", "fraud_review")
        assert self.wrong() == [self.ONE_END]

    def test_a_gap(self):
        HistoryEvent.objects.filter(seq=2).delete()
        assert self.wrong() == [self.NO_GAP]

    def test_a_missing_charge(self):
        LedgerEntry.objects.all().delete()
        assert self.wrong() == [self.CHARGED]

    def test_a_charge_of_another_amount(self):
        LedgerEntry.objects.update(amount_cents=561)
        assert self.wrong() == [self.CHARGED]

    def test_a_refund_of_a_shipped_order(self, order):
        LedgerEntry.objects.create(order=order, kind="refund", amount_cents=-560, reference="b")
        assert self.wrong() == [self.CHARGED]

    def test_a_missing_parcel(self):
        Shipment.objects.all().delete()
        assert self.wrong() == [self.PARCELS]

    def test_units_that_were_counted_twice(self):
        Dispatched.objects.update(units=4)
        assert self.wrong() == [self.UNITS]

    @pytest.mark.parametrize("times", [0, 2])
    def test_a_line_that_is_not_in_the_file_once(self, order, times):
        assert self.wrong(exported=[order.lines.get().pk] * times) == [self.EXPORT]

    def test_a_line_in_the_file_that_is_none(self, order):
        assert self.wrong(exported=[order.lines.get().pk, 0]) == [self.EXPORT]

    def a_batch(self, run, **result):
        made = {
            "workflow": "shop.workflows.batch",
            "state": "completed",
            "correlation_id": uuid4(),
            "attributes": {"file": "batch-1"},
            "input": [{"numbers": ["1-404"]}],
            "result": {"states": {"failed": 1}, "failures": {"1-404": "unknown"}} | result,
        }
        parent = Run.objects.create(**made)
        Run.objects.filter(pk=run.pk).update(parent_run_id=parent.pk)
        return parent

    def test_a_batch_that_is_as_it_should_be(self, run):
        self.a_batch(run)
        assert self.wrong() == []

    @pytest.mark.parametrize(
        "result", [{"states": {"failed": 2}}, {"failures": {}}, {"failures": {"1-404": "", "1-10001": ""}}]
    )
    def test_a_batch_with_another_outcome(self, run, result):
        self.a_batch(run, **result)
        assert self.wrong() == [self.BATCHES]

    def test_a_batch_that_lacks_a_child(self, run):
        self.a_batch(run)
        Run.objects.filter(pk=run.pk).update(parent_run_id=None)
        assert self.wrong() == [self.BATCHES]

    @pytest.mark.parametrize(("periods", "runs"), [((1, 2), 2), ((1, 3), 2), ((1, 2, 2), 2), ((), 2), ((1, 2), 1)])
    def test_a_subscription_that_is_not_charged_once_a_period(self, periods, runs):
        opened = Subscription.objects.create(batch=1, customer="Old Mill", state="cancelled", run_id=uuid4())
        before = None
        for _ in range(runs):
            before = Run.objects.create(
                workflow="subscription", state="completed", correlation_id=opened.run_id, continued_from_run_id=before
            ).id
        for number, period in enumerate(periods):
            Invoice.objects.create(
                subscription=opened, period=period, plan="basic", amount_cents=900, reference=str(number)
            )
        assert self.wrong() == ([] if (periods, runs) == ((1, 2), 2) else [self.CHAIN])

    def test_an_activity_that_ran_again(self, order):
        self.attempt(order, "charge_card", datetime.now(UTC) + timedelta(hours=1))
        assert self.wrong() == [self.NOT_AGAIN]

    def test_nothing_seen_recorded(self):
        Attempt.objects.update(seen_recorded_at=None)
        assert self.wrong() == [self.RECORDED]

    def test_a_history_without_activities(self):
        HistoryEvent.objects.filter(type="activity_completed", seq__in=(1, 4)).update(type="timer_fired")
        assert self.wrong() == [self.RECORDED]

    def test_what_is_not_recorded_yet_is_not_marked(self, order):
        self.attempt(order, "refund", self.NOW)
        assert checks.mark_recorded(batch=1) == 4

    def test_the_take_over_is_timed_from_the_kill(self, run):
        assert checks.seconds_to_take_over([run.id], batch=1) is None
        killed_at = Attempt.objects.first().seen_recorded_at
        Attempt.objects.update(seen_recorded_at=killed_at)
        for seq, seconds in enumerate((2.5, 1.5), 6):
            HistoryEvent.objects.create(
                run_id=run.id, seq=seq, type="timer_fired", recorded_at=killed_at + timedelta(seconds=seconds)
            )
        assert checks.seconds_to_take_over([run.id], batch=1) == pytest.approx(1.5)
        assert checks.seconds_to_take_over([uuid4()], batch=1) is None
