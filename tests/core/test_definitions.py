"""What users declare: retry policies, activities and workflows, and how they are found by name."""

import functools
from datetime import date, timedelta
from enum import Enum
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from continuum.core.definitions import ActivityDefinition, WorkflowDefinition, activity, workflow
from continuum.core.options import ActivityOptions
from continuum.core.registry import Registry
from continuum.core.retry import Retry
from continuum.exceptions import (
    DurableValueError,
    NotInWorkflowError,
    UnknownActivityError,
    UnknownWorkflowError,
)
from continuum.values import encode, parse, return_annotation


@activity
def charge(order: str, cents: int = 0, *, note: str = "") -> str:
    """Take money."""
    return f"{order}/{cents}/{note}"


@activity(name="mail", retry=Retry(max_attempts=3), timeout=timedelta(seconds=30))
async def send_mail(to: str) -> str:
    return to


@workflow
async def checkout(order: str) -> str:
    return order


@workflow(name="shop.refund", version=3, retention=None, signals={"approved": dict})
async def refund(order: str) -> str:
    return order


# -- retry policies ---------------------------------------------------------------------------------------------


def test_one_attempt_is_the_default():
    assert Retry().max_attempts == 1


def test_exponential_delays_grow_by_the_factor_up_to_the_longest():
    retry = Retry(max_attempts=9, base=0.5, factor=3, max_delay=10)
    assert [retry.delay(attempt) for attempt in range(1, 6)] == [0.5, 1.5, 4.5, 10, 10]


def test_constant_delays_stay():
    retry = Retry(max_attempts=9, backoff="constant", base=timedelta(minutes=1), max_delay=timedelta(hours=1))
    assert [retry.delay(attempt) for attempt in (1, 2, 50)] == [60, 60, 60]


def test_delays_of_very_many_attempts_do_not_overflow():
    assert Retry(max_attempts=10_000, max_delay=60).delay(9_999) == 60


@pytest.mark.parametrize(("randomness", "delay"), [(0.0, 5.0), (0.5, 10.0), (0.999999, pytest.approx(15, abs=1e-3))])
def test_jitter_spreads_the_delay_evenly(randomness, delay):
    assert Retry(base=10, jitter=0.5).delay(1, randomness) == delay


def test_jitter_never_exceeds_the_longest_delay():
    assert Retry(base=60, jitter=1, max_delay=60).delay(1, 0.99) == 60


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_attempts": 0},
        {"backoff": "linear"},
        {"base": -1},
        {"base": float("nan")},
        {"factor": 0.5},
        {"factor": float("inf")},
        {"jitter": 1.5},
        {"jitter": float("nan")},
        {"max_delay": float("inf")},
    ],
)
def test_a_figure_out_of_range_is_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"Retry.{name} "):
        Retry(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"max_attempts": 1.5}, {"max_attempts": True}, {"base": "1"}, {"jitter": "much"}, {"non_retryable": 3}]
)
def test_a_figure_of_the_wrong_type_is_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(TypeError, match=f"Retry.{name} "):
        Retry(**wrong)


def test_non_retryable_errors_are_known_by_class_subclass_and_name():
    retry = Retry(max_attempts=3, non_retryable=(LookupError, "ValueError", "decimal.InvalidOperation"))
    from decimal import InvalidOperation

    assert not retry.allows(KeyError("subclass"))
    assert not retry.allows(ValueError("by name"))
    assert not retry.allows(UnicodeError("subclass of a name"))
    assert not retry.allows(InvalidOperation())
    assert retry.allows(TypeError())


def test_a_single_non_retryable_error_needs_no_tuple():
    assert Retry(non_retryable=KeyError).non_retryable == (KeyError,)
    assert Retry(non_retryable="KeyError").non_retryable == ("KeyError",)


# -- activities -------------------------------------------------------------------------------------------------


def test_an_activity_is_declared_bare_or_with_options():
    assert charge.name == f"{__name__}.charge"
    assert not charge.is_async
    assert charge.__doc__ == "Take money."
    assert send_mail.name == "mail"
    assert send_mail.is_async
    assert send_mail.default_options.retry.max_attempts == 3
    assert send_mail.default_options.timeout == 30


async def test_call_runs_the_plain_function():
    assert charge.call("o1", note="n") == "o1/0/n"
    assert await send_mail.call("me") == "me"


def test_an_activity_called_outside_a_workflow_says_what_to_do():
    with pytest.raises(NotInWorkflowError, match=r"charge\.call\(\.\.\.\).*continuum\.start\(\.\.\.\)"):
        charge("o1")
    with pytest.raises(NotInWorkflowError, match=r"charge\.call"):
        charge.options(timeout=3)("o1")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"retries": 3}, TypeError),
        ({"retry": 3}, TypeError),
        ({"timeout": "soon"}, TypeError),
        ({"timeout": 0}, ValueError),
        ({"timeout": -1}, ValueError),
    ],
)
def test_wrong_options_are_refused_when_they_are_given(options, error):
    with pytest.raises(error, match=next(iter(options))):
        activity(**options)
    with pytest.raises(error, match=next(iter(options))):
        charge.options(**options)


def test_one_key_for_all_calls_of_an_activity_is_refused():
    with pytest.raises(TypeError, match=r"idempotency_key must be a function of the arguments, not 'order_id'"):
        activity(idempotency_key="order_id")
    with pytest.raises(NotInWorkflowError):  # for a single call it is what is wanted
        charge.options(idempotency_key="o1")("o1")


@pytest.mark.parametrize("thing", [3, int, functools.partial(print, 1)])
def test_only_a_function_can_be_an_activity(thing):
    with pytest.raises(TypeError, match="an activity must be a function"):
        activity(thing)


def test_attributes_that_others_put_on_a_function_do_not_get_in_the_way():
    def fn():
        return 1

    fn.name, fn.fn, fn.options = "evil", None, None
    definition = ActivityDefinition(fn, options=charge.default_options)
    assert definition.name.endswith(".fn")
    assert definition.call() == 1


def test_the_same_call_is_the_same_in_the_journal_however_it_is_written():
    texts = {
        charge.encode_arguments(("o1", 5), {}),
        charge.encode_arguments(("o1",), {"cents": 5}),
        charge.encode_arguments((), {"cents": 5, "order": "o1"}),
    }
    assert texts == {'["o1",5]'}
    assert charge.encode_arguments(("o1",), {"note": "n"}) == '{"args":["o1"],"kwargs":{"note":"n"}}'
    assert charge.decode_arguments('{"args":["o1"],"kwargs":{"note":"n"}}') == (["o1"], {"note": "n"})


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), (("a", 1, 2), {}), (("a",), {"order": "b"}), (("a",), {"x": 1})]
)
def test_arguments_that_do_not_fit_name_the_function(args, kwargs):
    with pytest.raises(TypeError, match=r"test_definitions\.charge\(\): "):
        charge.encode_arguments(args, kwargs)


def test_an_argument_that_is_not_durable_is_named_by_its_path():
    with pytest.raises(DurableValueError, match=r"^input\[0\]\.lines\[1\]: function is not durable$"):
        charge.encode_arguments(({"lines": [1, print]},), {})
    with pytest.raises(DurableValueError, match=r"^input\.note: "):
        charge.encode_arguments(("o",), {"note": object()})


class Color(Enum):
    RED = "red"


def one(number: int) -> int: ...
def optional(name: str, color: Color = Color.RED) -> Color: ...
def unannotated(a, b=None): ...
def rest(number: int, *colors: Color) -> None: ...
def any_number(*numbers: int) -> Any: ...


# How long an example takes says what else the machine does.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
ARGUMENTS = st.lists(
    st.sampled_from(
        [0, -(10**20), True, None, 2.5, "", "red", "~a", "\0", [1], {"~x": 1}, {"a": 1}, Color.RED, date.max]
    ),
    max_size=3,
).map(tuple)


@patient
@given(st.sampled_from([one, optional, unannotated, rest, any_number]), ARGUMENTS)
def test_arguments_are_written_one_by_one_as_their_annotations_say(fn, args):
    definition = ActivityDefinition(fn, options=ActivityOptions())
    try:
        definition.signature.bind(*args)
    except TypeError:
        with pytest.raises(TypeError, match=fn.__name__):
            definition.encode_arguments(args, {})
        return
    annotation = definition.parameters.at
    texts = [encode(value, annotation(index)) for index, value in enumerate(args)]
    assert definition.encode_arguments(args, {}) == f"[{','.join(texts)}]"
    longest = max(map(len, texts), default=0)
    assert definition.encode_arguments(args, {}, max_bytes=longest) == f"[{','.join(texts)}]"
    if longest > 1:
        with pytest.raises(DurableValueError, match="limit"):
            definition.encode_arguments(args, {}, max_bytes=longest - 1)


@patient
@given(
    st.sampled_from([one, optional, unannotated, rest, any_number]), ARGUMENTS.filter(bool).map(lambda args: args[0])
)
def test_a_result_is_restored_as_its_annotation_says(fn, value):
    definition = ActivityDefinition(fn, options=ActivityOptions())
    text = encode(value, return_annotation(fn))
    restored = definition.restore_result(parse(text))
    assert (type(restored), restored) == (type(value), value)


# -- workflows --------------------------------------------------------------------------------------------------


def test_a_workflow_is_declared_bare_or_with_options():
    assert (checkout.name, checkout.version, checkout.retention) == (f"{__name__}.checkout", 1, timedelta(days=30))
    assert (refund.name, refund.version, refund.retention) == ("shop.refund", 3, None)
    assert refund.signals == {"approved": dict}


async def test_a_workflow_has_a_plain_call_too():
    assert await checkout.call("o1") == "o1"


def test_a_workflow_called_outside_a_workflow_says_what_to_do():
    with pytest.raises(NotInWorkflowError, match=r"continuum\.start\(checkout, \.\.\.\).*checkout\.call\(\.\.\.\)"):
        checkout("o1")


def test_a_workflow_must_be_async():
    with pytest.raises(TypeError, match="must be an async def function"):
        workflow(lambda: None)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"name": ""}, ValueError),
        ({"version": 0}, ValueError),
        ({"version": "1"}, ValueError),
        ({"retention": 30}, TypeError),
        ({"retention": timedelta(days=-1)}, ValueError),
        ({"signals": ["a"]}, TypeError),
    ],
)
def test_a_wrong_workflow_option_is_refused(options, error):
    with pytest.raises(error, match=next(iter(options))):

        @workflow(**options)
        async def flow():
            pass


# -- finding them -----------------------------------------------------------------------------------------------


def make_workflow(name, version):
    async def flow():
        pass

    return WorkflowDefinition(flow, name=name, version=version)


def test_a_workflow_is_found_by_version_or_else_the_highest_one():
    registry = Registry()
    first, second = make_workflow("w", 1), make_workflow("w", 2)
    registry.add_workflow(second)
    registry.add_workflow(first)
    assert registry.workflow("w") is second
    assert registry.workflow("w", 1) is first
    assert registry.workflow("w", 7) is second
    assert registry.workflows() == [first, second]


def test_an_unknown_name_lists_what_is_known():
    registry = Registry()
    registry.add_workflow(make_workflow("shop.checkout", 1))
    registry.add_activity(charge)
    with pytest.raises(UnknownWorkflowError, match=r"Did you mean 'shop\.checkout'\? Known: shop\.checkout"):
        registry.workflow("shop.chekout")
    with pytest.raises(UnknownActivityError, match=r"Known: .*charge"):
        registry.activity("refund")


def test_two_functions_cannot_share_a_name():
    registry = Registry()
    registry.add_activity(ActivityDefinition(charge.fn, name="x", options=charge.default_options))
    with pytest.raises(ValueError, match=r"two functions want to be the activity 'x'.*charge.*send_mail"):
        registry.add_activity(ActivityDefinition(send_mail.fn, name="x", options=charge.default_options))


def test_the_same_function_again_is_a_reload():
    registry = Registry()
    for _ in range(2):
        registry.add_activity(ActivityDefinition(charge.fn, name="x", options=charge.default_options))
    assert len(registry.activities()) == 1
