"""The shop's own tests; run ``pytest`` in ``example_project``. No worker runs: activities are called as functions."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from django.db import IntegrityError

import continuum
from continuum import NonRetryableError, RunNotActiveError
from continuum.models import HistoryEvent, Run
from shop import activities
from shop.activities import GatewayBusyError
from shop.demo import checks
from shop.models import Attempt, FraudReview, LedgerEntry, Order, OrderLine, Shipment
from shop.orders import OrderFileError, by_order, place, read_lines
from shop.reviews import decide
from shop.workflows import OrderRequest, order_flow

HEADER = "order_number,ordered_at,customer,country,currency,line,sku,product,quantity,unit_price_cents\n"
PROMISED = datetime(2024, 5, 1, tzinfo=UTC)


def an_order(number="1-10001", quantity=2):
    order = Order.objects.create(
        number=number, batch=1, ordered_at=PROMISED, customer="Old Mill Bakery", country="DE", currency="EUR"
    )
    OrderLine.objects.create(
        order=order, position=1, sku="FLO-RYE-1K", product="Rye flour", quantity=quantity, unit_price_cents=280
    )
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
        basket = activities.read_order.call(order.number)
        assert (basket.total_cents, basket.problem) == (560, "")

    def test_an_order_with_an_empty_line_has_a_problem(self, db):
        assert activities.read_order.call(an_order(quantity=0).number).problem == "quantity 0 of FLO-RYE-1K"

    def test_an_order_without_lines_has_a_problem(self, order):
        order.lines.all().delete()
        assert activities.read_order.call(order.number).problem == "the order has no lines"

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

    def test_shipping_twice_gives_the_same_parcel(self, order):
        codes = {activities.ship.call(order.number, "express", PROMISED) for _ in range(2)}
        assert codes == {order.shipment.tracking}
        assert outcomes(order, "ship") == ["done", "already done"]

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

    def wrong(self):
        return [sentence for sentence, offences in checks.offences(batch=1) if offences]

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

    def test_the_take_over_is_timed_from_the_kill(self, order):
        assert checks.seconds_to_take_over(pid=1, batch=1) is None
        killed_at = Attempt.objects.first().seen_recorded_at
        Attempt.objects.update(seen_recorded_at=killed_at)
        Attempt.objects.create(
            order=order, step="refund", worker_pid=2, started_at=killed_at + timedelta(seconds=1.5), outcome="done"
        )
        assert checks.seconds_to_take_over(pid=1, batch=1) == pytest.approx(1.5)
