import copy
import pickle
from datetime import timedelta
from uuid import UUID

import pytest

from continuum import exceptions
from continuum.exceptions import (
    ActivityCancelledError,
    ActivityError,
    ActivityTimeoutError,
    AlreadyStartedError,
    ChildDepthError,
    ChildError,
    ContinuumError,
    DurableValueError,
    InvalidQueryError,
    NonDeterminismError,
    NonRetryableError,
    NotInWorkflowError,
    PoisonRunError,
    ReplayDriftError,
    RetryAfterError,
    RunCancelledError,
    RunFailedError,
    RunNotActiveError,
    RunNotFoundError,
    RunStateError,
    SignalRefusedError,
    SignalTimeoutError,
    UnknownActivityError,
    UnknownWorkflowError,
    WorkflowDeadlockError,
)

RUN = UUID("01890a5d-ac96-774b-bcce-b302099a8057")

EXAMPLES = [
    (DurableValueError("input[0].fn", "function is not durable"), "input[0].fn: function is not durable"),
    (
        ActivityError("shop.charge", 3, "CardDeclined", "no funds", {"code": 51}),
        "activity shop.charge failed after 3 attempts: CardDeclined: no funds",
    ),
    (ActivityError("shop.charge", 1, "Boom", ""), "activity shop.charge failed after 1 attempt: Boom"),
    (ChildError("shop.parcel", RUN, "failed", "Boom", "bad"), f"child shop.parcel ({RUN}) failed: Boom: bad"),
    (ChildError("shop.parcel", RUN, "cancelled"), f"child shop.parcel ({RUN}) was cancelled"),
    (ChildDepthError("shop.parcel", 100), "shop.parcel cannot be started as a child: runs are nested 100 deep already"),
    (SignalTimeoutError("fraud_review", 86400.0), "no signal 'fraud_review' came within 86400 seconds"),
    (SignalTimeoutError("fraud_review"), "no signal 'fraud_review' came in time"),
    (NonRetryableError("wrong address", {"field": "zip"}), "wrong address"),
    (RetryAfterError(2.5), "try again in 2.5 seconds"),
    (RetryAfterError(timedelta(minutes=1), "busy"), "busy"),
    (ActivityCancelledError("the run was cancelled"), "the run was cancelled"),
    (ActivityTimeoutError("shop.charge", 30.0), "shop.charge did not finish within 30 seconds"),
    (
        AlreadyStartedError(RUN, "shop.order", "o-1"),
        f"shop.order with idempotency key 'o-1' was already started as run {RUN}",
    ),
    (AlreadyStartedError(RUN), f"a run with this key was already started as run {RUN}"),
    (RunNotFoundError(RUN), f"there is no run {RUN}"),
    (RunStateError(RUN, "completed", "failed"), f"run {RUN} is completed, not failed"),
    (RunNotActiveError(RUN, "completed"), f"run {RUN} is completed, not active"),
    (SignalRefusedError(RUN, "approved", "payload must be a dict"), "payload must be a dict"),
    (RunFailedError(RUN, {"type": "Boom", "message": "bad", "traceback": "", "details": None}), "failed: Boom: bad"),
    (RunCancelledError(RUN, "changed their mind"), f"run {RUN} was cancelled: changed their mind"),
    (RunCancelledError(RUN), f"run {RUN} was cancelled"),
    (PoisonRunError(RUN, 10), "it lost its worker 10 times in a row"),
    (
        WorkflowDeadlockError(2.0, "Traceback …"),
        "the workflow ran for more than 2 seconds without waiting for anything: mend the loop, or do long computations "
        "in an activity",
    ),
    (InvalidQueryError("where[0]: unknown field 'x'"), "where[0]: unknown field 'x'"),
    (NotInWorkflowError("use .call()"), "use .call()"),
    (NonDeterminismError("open() in a workflow"), "open() in a workflow"),
    (UnknownWorkflowError("shop.ordr", ["shop.order", "shop.parcel"]), "Did you mean 'shop.order'?"),
    (UnknownActivityError("x", ["shop.charge", "shop.ship"]), "Known: shop.charge, shop.ship"),
    (UnknownActivityError("x"), "none is registered"),
    (ReplayDriftError(RUN, "0.2:3", "activity a(1)", "timer 30s"), f"replay of run {RUN} drifted at command 0.2:3"),
]


def pickled_and_back(error):
    return pickle.loads(pickle.dumps(error))


each_example = pytest.mark.parametrize(("error", "message"), EXAMPLES, ids=lambda value: type(value).__name__)


@each_example
def test_message_says_what_happened(error, message):
    assert message in str(error)


@each_example
@pytest.mark.parametrize("duplicate", [copy.copy, pickled_and_back])
def test_error_survives_copying(error, message, duplicate):
    twin = duplicate(error)
    assert type(twin) is type(error)
    assert str(twin) == str(error)
    assert vars(twin) == vars(error)


def test_each_error_class_has_an_example_here():
    assert {type(error).__name__ for error, _ in EXAMPLES} | {"ContinuumError"} == set(exceptions.__all__)


def test_every_public_error_is_a_continuum_error():
    assert all(issubclass(getattr(exceptions, name), ContinuumError) for name in exceptions.__all__)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (DurableValueError, TypeError),
        (SignalTimeoutError, TimeoutError),
        (ActivityTimeoutError, TimeoutError),
        (UnknownWorkflowError, LookupError),
        (UnknownActivityError, LookupError),
        (RunNotFoundError, LookupError),
        (InvalidQueryError, ValueError),
    ],
)
def test_error_can_be_caught_as_the_builtin_one_expects(error, builtin):
    assert issubclass(error, builtin)


def test_retry_delay_is_kept_in_seconds():
    assert RetryAfterError(timedelta(minutes=1)).delay == 60.0
    assert RetryAfterError(3).delay == 3.0


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), timedelta(seconds=-1)])
def test_retry_delay_must_be_a_time_that_can_be_waited(delay):
    with pytest.raises(ValueError, match="delay: must be"):
        RetryAfterError(delay)


def test_the_error_of_a_failed_run_always_has_its_four_keys():
    assert RunFailedError(RUN).error.keys() == {"type", "message", "traceback", "details"}
    assert RunFailedError(RUN, {"type": "Boom"}).error["type"] == "Boom"


def test_drift_shows_both_sides_below_each_other():
    text = str(ReplayDriftError(RUN, "0:1", "activity charge('o1',\n  900)", "activity charge('o1', 901)"))
    lines = text.splitlines()
    assert lines[1].index("activity") == lines[3].index("activity")
    assert lines[1].startswith("  - history holds:")
    assert lines[3].startswith("  + the code asks:")
    assert 'patched("name")' in text
