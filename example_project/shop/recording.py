"""The ways that processes of the shop can take, each played in memory: what their recorded histories are made of.

Activities are mocked here, so that nothing is charged and no database is needed. ``manage.py record_histories`` keeps
the histories in files, and the tests replay those of all versions the code has ever had.
"""

from collections.abc import Callable
from pathlib import Path

from continuum import ModelRef, NonRetryableError
from continuum.testing import Environment, dump_history
from shop import activities, exports, subscriptions
from shop.activities import Basket, BasketLine, GatewayBusyError
from shop.subscriptions import Terms
from shop.workflows import BatchRequest, OrderRequest, OrderResult, batch, export, order_flow, subscription

HISTORIES = Path(__file__).parent / "histories"

NUMBER = "1-10001"
CUSTOMER = ModelRef("shop.Subscription", 7, "default")
FILE = ModelRef("shop.Export", 3, "default")

SCENARIOS: dict[str, Callable[[Environment], object]] = {}
"""Name → what starts runs in an environment, brings them to an end, and returns the one whose history counts."""


def scenario(play: Callable[[Environment], object]) -> Callable[[Environment], object]:
    """Put a way into the table, under its function's name."""
    SCENARIOS[play.__name__] = play
    return play


def shop(env: Environment, *, score: int = 10, basket: Basket | None = None) -> None:
    """Let everything go well, but for what the scenario says."""
    basket = basket or Basket("EUR", "DE", [BasketLine("FLO-RYE-1K", 2, 560)])
    env.mock(activities.read_order, return_value=basket)
    env.mock(activities.score_fraud, return_value=score)
    env.mock(activities.ask_carrier, return_value="express", takes=0.15)
    env.mock(activities.charge_card, lambda number, cents, reference: reference, takes=0.15)
    env.mock(activities.refund, lambda number, cents, reference: reference)
    env.mock(activities.open_review, return_value=None)
    env.mock(activities.expire_review, return_value="timed out")
    env.mock(activities.ship, return_value="PX000000001", takes=0.15)
    env.mock(activities.close_order, return_value=None)
    env.mock(subscriptions.charge_period, lambda customer, period, plan: f"subscription-7-{period}")
    env.mock(subscriptions.end_subscription, return_value=6)
    env.mock(exports.write_order_lines, return_value=150, takes=4)
    env.mock(exports.finish_export, return_value=None)
    env.mock(exports.discard_export, return_value=None)


def an_order(env: Environment):
    """Process an order to its end."""
    run = env.start(order_flow, OrderRequest(NUMBER))
    env.wait_run(run)
    return run


@scenario
def order_shipped(env):
    shop(env)
    return an_order(env)


@scenario
def order_shipped_although_the_gateway_was_busy(env):
    shop(env)
    env.mock(activities.charge_card, side_effect=[GatewayBusyError("try again"), "charge-1"])
    return an_order(env)


@scenario
def order_shipped_by_the_standard_service_as_the_carrier_is_slow(env):
    shop(env)
    env.mock(activities.ask_carrier, return_value="express", takes=30)
    return an_order(env)


@scenario
def order_invalid(env):
    shop(env, basket=Basket("EUR", "DE", [], problem="the order has no lines"))
    return an_order(env)


@scenario
def order_declined(env):
    shop(env)
    env.mock(activities.charge_card, raises=NonRetryableError("the bank refuses this card"))
    return an_order(env)


@scenario
def order_refunded_as_it_cannot_be_delivered(env):
    shop(env)
    env.mock(activities.ship, raises=NonRetryableError("the carrier does not deliver to this address"))
    return an_order(env)


@scenario
def order_approved(env):
    shop(env, score=90)
    run = env.start(order_flow, OrderRequest(NUMBER))
    env.advance(60)
    env.signal(run, "fraud_review", "approved")
    return env.wait_run(run)


@scenario
def order_rejected(env):
    shop(env, score=90)
    run = env.start(order_flow, OrderRequest(NUMBER))
    env.advance(60)
    env.signal(run, "fraud_review", "rejected")
    return env.wait_run(run)


@scenario
def order_nobody_reviewed(env):
    shop(env, score=90)
    return an_order(env)


@scenario
def order_cancelled_while_it_was_reviewed(env):
    shop(env, score=90)
    run = env.start(order_flow, OrderRequest(NUMBER))
    env.advance(60)
    env.cancel(run, reason="the customer called")
    return env.wait_run(run)


@scenario
def order_cancelled_while_it_was_charged(env):
    shop(env)
    env.mock(activities.charge_card, lambda number, cents, reference: reference, takes=5)
    run = env.start(order_flow, OrderRequest(NUMBER))
    env.advance(2)
    env.cancel(run, reason="the customer called")
    return env.wait_run(run)


def order_of_a_batch(request: OrderRequest) -> OrderResult:
    """What stands in for the run of an order."""
    if request.number.endswith("404"):
        raise NonRetryableError(f"there is no order {request.number}")
    return OrderResult(request.number, "shipped", tracking="PX000000001")


@scenario
def batch_with_an_order_that_fails(env):
    shop(env)
    env.mock(order_flow, order_of_a_batch)
    run = env.start(batch, BatchRequest(["1-10001", "1-404", "1-10002"]))
    return env.wait_run(run)


@scenario
def batch_cancelled(env):
    shop(env, score=90)
    run = env.start(batch, BatchRequest(["1-10001", "1-10002"]))
    env.advance(60)
    env.cancel(run)
    env.run_until_idle()
    return run


@scenario
def subscription_continued(env):
    """The first run of a chain: the customer changes the plan, and stays."""
    shop(env)
    run = env.start(subscription, CUSTOMER, Terms())
    env.signal(run, "change_plan", "plus")
    env.advance(5 * 30 * 86_400)
    env.signal(run, "cancel", "moved away")
    env.wait_run(run)
    return run


@scenario
def subscription_ended(env):
    """The last run of a chain."""
    return env.wait_run(subscription_continued(env))


@scenario
def export_finished(env):
    shop(env)
    run = env.start(export, FILE)
    return env.wait_run(run)


@scenario
def export_cancelled(env):
    shop(env)
    run = env.start(export, FILE)
    env.advance(1)
    env.cancel(run, reason="nobody wants it")
    return env.wait_run(run)


def file_of(name: str, version_hash: str) -> Path:
    """Where the history of a scenario is kept, as the code of that version writes it."""
    return HISTORIES / f"{name}.{version_hash}.json"


def record(name: str) -> Path | None:
    """Record a scenario with the code as it is now; None if that is done already. Nothing is ever rewritten."""
    env = Environment()
    try:
        run = SCENARIOS[name](env)
        path = file_of(name, run.version_hash)
        return None if path.exists() else dump_history(run, path)
    finally:
        env.close()
