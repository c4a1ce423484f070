"""retry() and fork(): what they write, and what they refuse."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, connections, transaction

import continuum
from continuum import RunNotFoundError, RunStateError, hints
from continuum.ids import derived, uuid7
from continuum.models import ActivityResult, ActivityTask, HistoryEvent, InboxMessage, Run
from tests.concurrency import Background
from tests.factories import HistoryEventFactory, RunFactory
from tests.waiting_for import eventually

pytestmark = pytest.mark.django_db(transaction=True)

ERROR = {"type": "ValueError", "message": "no", "traceback": "", "details": None}


def record(run, *events, first=1):
    """Write a history: each event is a type, or a type, a command id and data."""
    for seq, event in enumerate(events, first):
        type_, command_id, data = (event, None, {}) if isinstance(event, str) else event
        HistoryEventFactory(run=run, seq=seq, type=type_, command_id=command_id, name=None, data=data)


def failed_run(*events, failed=(), **fields):
    """A run that has failed after these events, of these commands."""
    fields = {
        "state": "failed",
        "claimed_at": datetime.now(UTC),
        "completed_at": datetime.now(UTC),
        "retention_until": datetime.now(UTC) + timedelta(days=30),
        "error": ERROR,
        "recoveries": 3,
    } | fields
    run = RunFactory(**fields)
    record(run, *events, ("run_failed", None, {"type": "ValueError", "failed": list(failed)}))
    return run


def failed_child(parent, command_id, *events, failed=(), told=True, **fields):
    """A child that has failed; ``told``: its parent has recorded so, else the report lies in its inbox."""
    child = failed_run(
        *events, failed=failed, parent_run_id=parent.id, parent_command_id=command_id, depth=parent.depth + 1, **fields
    )
    data = {"child": str(child.id), "state": "failed", "error": ERROR}
    if not told:
        InboxMessage.objects.create(run_id=parent.id, kind="child", command_id=command_id, payload=data)
    return child, ("child_failed", command_id, data)


def types(run):
    return [event.type for event in run.history()]


def columns(run, *without):
    row = Run.objects.values().get(pk=run.pk)
    return {name: value for name, value in row.items() if name not in without}


@pytest.fixture
def ready_hints(monkeypatch):
    """The hints that were sent."""
    sent = []
    monkeypatch.setattr(
        hints, "_send", lambda alias, channel, run_id: transaction.on_commit(lambda: sent.append(channel))
    )
    return sent


class TestRetry:
    def test_marks_the_history_and_lets_the_run_go_on(self):
        run = failed_run(("activity_completed", "0:1", {}), ("activity_failed", "0:2", {}))
        before = list(run.history())
        retried = continuum.retry(run)
        assert (retried.id, retried.state, retried.owner_id) == (run.id, "suspended", None)
        assert (retried.error, retried.result, retried.completed_at, retried.retention_until) == (None,) * 4
        assert (retried.recoveries, retried.waiting_on) == (0, [])
        assert retried.next_wakeup_at <= datetime.now(UTC)
        *kept, mark = retried.history()
        assert kept == before
        assert (mark.seq, mark.type, mark.command_id, mark.data) == (4, "run_retried", None, {})
        assert mark.recorded_at >= before[-1].recorded_at

    def test_leaves_everything_else_as_it_is(self):
        run = failed_run(attributes={"plan": "pro"}, progress="half way", namespace="billing", priority=3)
        changed = ("state", "error", "completed_at", "retention_until", "recoveries", "next_wakeup_at")
        before = columns(run, *changed)
        continuum.retry(run)
        assert columns(run, *changed) == before

    def test_the_mark_is_never_older_than_what_it_follows(self):
        run = failed_run()
        HistoryEvent.objects.filter(run_id=run.id).update(recorded_at=datetime.now(UTC) + timedelta(hours=1))
        continuum.retry(run)
        first, mark = run.history()
        assert mark.recorded_at == first.recorded_at

    def test_takes_an_id_in_any_form(self):
        for form in (lambda run: run, lambda run: run.id, lambda run: str(run.id)):
            assert continuum.retry(form(failed_run())).state == "suspended"

    @pytest.mark.parametrize(
        "state", ["pending", "running", "suspended", "completed", "cancelled", "stuck_unknown_version"]
    )
    def test_refuses_a_run_that_has_not_failed(self, state):
        run = RunFactory(state=state)
        before = columns(run)
        with pytest.raises(RunStateError) as caught:
            continuum.retry(run)
        assert (caught.value.run_id, caught.value.state) == (run.id, state)
        assert str(caught.value) == f"run {run.id} is {state}, not failed"
        assert columns(run) == before
        assert types(run) == []

    def test_says_where_a_continued_run_went_on(self):
        successor = failed_run()
        run = RunFactory(ended=True, continued_to_run_id=successor.id)
        with pytest.raises(RunStateError, match=f"it was continued as run {successor.id}, so retry that"):
            continuum.retry(run)

    def test_of_an_unknown_run_or_one_of_another_namespace_finds_none(self):
        run = failed_run(namespace="billing")
        before = columns(run)
        for wanted, namespace in ((uuid4(), None), (run, "default"), (run.id, "shipping")):
            with pytest.raises(RunNotFoundError):
                continuum.retry(wanted, namespace)
        assert columns(run) == before
        assert continuum.retry(run, "billing").state == "suspended"

    @pytest.mark.parametrize("wrong", ["no uuid", 5, None])
    def test_refuses_what_is_no_run(self, wrong):
        with pytest.raises((TypeError, ValueError), match="run_id must be"):
            continuum.retry(wrong)

    def test_commits_and_rolls_back_with_the_caller(self, ready_hints):
        run = failed_run()
        before = columns(run)
        with transaction.atomic():
            continuum.retry(run)
            transaction.set_rollback(True)
        assert (columns(run), types(run), ready_hints) == (before, ["run_failed"], [])
        with transaction.atomic():
            continuum.retry(run)
            assert ready_hints == []
        assert types(run) == ["run_failed", "run_retried"]
        assert ready_hints == ["continuum_ready"]

    def test_a_refusal_leaves_the_callers_transaction_usable(self):
        run = failed_run()
        with transaction.atomic():
            with pytest.raises(RunStateError):
                continuum.retry(RunFactory(ended=True))
            continuum.retry(run)
        assert types(run) == ["run_failed", "run_retried"]

    def test_of_two_at_the_same_time_one_wins_and_the_other_is_told(self):
        run = failed_run()
        with transaction.atomic():
            continuum.retry(run)
            other = Background(continuum.retry, run.id)
            eventually(blocked, message="the second waits for the first")
            assert not other.done
        with pytest.raises(RunStateError, match="is suspended, not failed"):
            other.result()
        assert types(run) == ["run_failed", "run_retried"]

    def test_if_the_first_of_two_is_rolled_back_the_second_wins(self):
        run = failed_run()
        with transaction.atomic():
            continuum.retry(run)
            other = Background(continuum.retry, run.id)
            eventually(blocked)
            transaction.set_rollback(True)
        assert other.result().state == "suspended"
        assert types(run) == ["run_failed", "run_retried"]

    def test_can_be_done_again_after_another_failure(self):
        run = failed_run()
        continuum.retry(run)
        record(run, ("run_resumed", None, {"dropped": [1]}), ("run_failed", None, {"type": "ValueError"}), first=3)
        Run.objects.filter(id=run.id).update(state="failed", completed_at=datetime.now(UTC))
        continuum.retry(run)
        assert types(run) == ["run_failed", "run_retried", "run_resumed", "run_failed", "run_retried"]

    def test_the_time_it_stood_still_does_not_count_against_its_limit(self):
        ended = datetime.now(UTC) - timedelta(hours=2)
        run = failed_run(completed_at=ended, deadline_at=ended + timedelta(minutes=5))
        left = continuum.retry(run).deadline_at - datetime.now(UTC)
        assert timedelta(minutes=4) < left <= timedelta(minutes=5)

    def test_removes_what_the_failed_life_has_left_behind(self):
        run, other = (failed_run(("activity_completed", "0:4", {}), ("activity_failed", "0:1", {})) for _ in range(2))
        for row in (run, other):
            ActivityResult.objects.create(run_id=row.id, command_id="0:1", result=None, attempt=2)  # a fence
            ActivityResult.objects.create(run_id=row.id, command_id="0:2", result={"value": 1})  # in no history yet
            ActivityResult.objects.create(run_id=row.id, command_id="0:4", result={"value": 2})
            ActivityTask.objects.create(run_id=row.id, command_id="0:3", activity="a", args=[])
            for kind, payload in (
                ("cancel", {"reason": "too late"}),
                ("activity", {"attempt": 1, "error": ERROR, "next": None}),
                ("activity", {"attempt": 1, "result": 5}),
                ("child", {"child": str(uuid7()), "state": "cancelled", "result": None, "error": ERROR}),
                ("child", {"child": str(uuid7()), "state": "completed", "result": 6, "error": None}),
                ("signal", "go"),
            ):
                InboxMessage.objects.create(run_id=row.id, kind=kind, payload=payload)
        ActivityResult.objects.create(
            run_id=derived("activity_key", "a", "k"), command_id="key", kind="activity_key", result=None
        )
        continuum.retry(run)

        def left(row):
            return (
                list(ActivityResult.objects.filter(run_id=row.id).values_list("command_id", flat=True)),
                ActivityTask.objects.filter(run_id=row.id).count(),
                [
                    (message.kind, message.payload)
                    for message in InboxMessage.objects.filter(run_id=row.id).order_by("id")
                ],
            )

        results, tasks, mail = left(run)
        assert (results, tasks) == (["0:2"], 0)
        assert [kind for kind, _ in mail] == ["activity", "child", "child", "signal"]
        assert [payload.get("result") for _, payload in mail[:3]] == [5, None, 6]
        assert [len(part) if isinstance(part, list) else part for part in left(other)] == [3, 1, 6]
        assert ActivityResult.objects.filter(kind="activity_key").count() == 1

    def test_a_record_that_is_newer_than_what_an_earlier_retry_has_left_out_stays(self):
        """It took effect again in a life that failed before its result got into the history."""
        run = failed_run(("activity_completed", "0:1", {}), ("activity_completed", "0:2", {}))
        record(run, "run_retried", ("run_resumed", None, {"dropped": [1, 3]}), ("run_failed", None, {}), first=4)
        for command_id in ("0:1", "0:2"):
            ActivityResult.objects.create(run_id=run.id, command_id=command_id, result={"value": 1})
        continuum.retry(run)
        assert [row.command_id for row in ActivityResult.objects.filter(run_id=run.id)] == ["0:1"]


def blocked():
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return cursor.fetchone()[0]


class TestRetryWithChildren:
    """Children are retried by whoever takes their parent up again: see test_reopening_runs.py."""

    def parent_of_failed_child(self, **options):
        run = RunFactory(state="failed", completed_at=datetime.now(UTC), error=ERROR)
        child, event = failed_child(run, "0:1", **options)
        told = () if event is None or not options.get("told", True) else (event,)
        record(run, *told, ("run_failed", None, {"type": "ChildError", "failed": ["0:1"]}))
        return run, child

    def test_the_child_stays_as_it_is_until_then(self):
        run, child = self.parent_of_failed_child()
        before = columns(child)
        continuum.retry(run)
        assert columns(child) == before

    def test_a_failure_that_lies_unread_in_the_inbox_is_not_told_any_more(self):
        run, _ = self.parent_of_failed_child(told=False)
        continuum.retry(run)
        assert not InboxMessage.objects.filter(run_id=run.id).exists()

    def test_the_report_of_a_child_that_is_gone_stays(self):
        run, child = self.parent_of_failed_child(told=False)
        child.delete()
        continuum.retry(run)
        assert InboxMessage.objects.filter(run_id=run.id).count() == 1

    def test_a_child_may_be_retried_by_itself(self):
        run, child = self.parent_of_failed_child()
        continuum.retry(child)
        assert [Run.objects.get(pk=each.pk).state for each in (run, child)] == ["failed", "suspended"]


HISTORY = [
    ("activity_completed", "0:1", {"result": 1}),
    ("signal_received", None, {"payload": {"big": "x" * 100}}),
    ("timer_fired", "0:2", {"args": [1.0]}),
    ("activity_retried", "0:3", {"attempt": 1}),
    ("activity_completed", "0.1:1", {"result": 2}),
    ("activity_failed", "0:3", {"attempt": 2}),
]


class TestFork:
    def test_shares_the_history_before_the_command(self):
        run = failed_run(*HISTORY)
        fork = continuum.fork(run, before="0:3")
        shared, mark = list(fork.history())[:-1], list(fork.history())[-1]
        assert shared == list(run.history())[:3]
        assert (mark.seq, mark.type, mark.command_id) == (4, "run_forked", None)
        assert mark.data == {
            "run": str(fork.id),
            "from": str(run.id),
            "before": "0:3",
            "started": round(Run.objects.get(pk=run.pk).started_at.timestamp() * 1e6),
            "parent": None,
        }
        assert mark.recorded_at >= shared[-1].recorded_at

    def test_makes_a_run_that_is_ready(self):
        parent = uuid4()
        run = failed_run(
            *HISTORY,
            workflow="shop.order_flow",
            version=2,
            version_hash="abc",
            namespace="billing",
            attributes={"plan": "pro"},
            priority=5,
            input=[{"id": "o1", "n": 1.5}],
            correlation_id=uuid4(),
            depth=3,
            parent_run_id=parent,
            parent_command_id="0:9",
            deadline_at=datetime.now(UTC),
            continued_from_run_id=uuid4(),
            idempotency_key="o1",
            progress="done",
        )
        run.refresh_from_db()
        fork = continuum.fork(run, "0:3")
        for same in (
            *("workflow", "version", "version_hash", "namespace", "attributes", "priority", "input"),
            *("correlation_id", "depth", "claimed_at"),
        ):
            assert getattr(fork, same) == getattr(run, same), same
        for none in (
            *("owner_id", "result", "error", "progress", "completed_at", "deadline_at", "retention_until"),
            *("parent_run_id", "parent_command_id", "continued_from_run_id", "continued_to_run_id", "idempotency_key"),
        ):
            assert getattr(fork, none) is None, none
        assert (fork.state, fork.forked_from_run_id, fork.waiting_on) == ("suspended", run.id, [])
        assert fork.id != run.id
        assert fork.started_at > run.started_at
        assert fork.next_wakeup_at <= datetime.now(UTC)
        mark = list(fork.history())[-1]
        assert mark.data["parent"] == str(parent)
        assert datetime.fromtimestamp(mark.data["started"] / 1e6, UTC) == run.started_at

    def test_leaves_the_source_alone(self):
        run = failed_run(*HISTORY)
        before = columns(run), list(run.history())
        continuum.fork(run, "0:1")
        assert (columns(run), list(run.history())) == before

    def test_before_the_first_command_shares_nothing(self):
        fork = continuum.fork(failed_run(*HISTORY), "0:1")
        assert types(fork) == ["run_forked"]

    @pytest.mark.parametrize("state", ["pending", "running", "suspended"])
    def test_of_a_command_without_events_shares_everything_so_far(self, state):
        run = RunFactory(state=state, claimed_at=None if state == "pending" else datetime.now(UTC))
        events = [] if state == "pending" else HISTORY
        record(run, *events)
        fork = continuum.fork(run, "0:4")
        assert types(fork) == [*(type_ for type_, *_ in events), "run_forked"]
        assert (fork.state, fork.claimed_at) == ("suspended", continuum.get_run(run).claimed_at)

    def test_of_an_unknown_command_of_a_run_that_ended_is_refused(self):
        run = failed_run(*HISTORY)
        with pytest.raises(
            ValueError, match=f"before: the history of run {run.id} holds nothing about a command '0:4'"
        ):
            continuum.fork(run, "0:4")
        assert Run.objects.count() == 1

    def test_never_shares_an_end(self):
        run = RunFactory(ended=True)
        record(run, *HISTORY[:2], "run_completed")
        with pytest.raises(ValueError, match="before"):
            continuum.fork(run, "0:5")

    def test_leaves_out_what_a_retry_has_dropped(self):
        run = failed_run(*HISTORY)  # 1 to 6, and 7
        record(
            run,
            "run_retried",
            ("run_resumed", None, {"dropped": [4, 6, 7], "renewed": ["0:9"]}),
            ("activity_completed", "0:3", {"result": 3}),
            ("activity_completed", "0:4", {"result": 4}),
            first=8,
        )
        Run.objects.filter(id=run.id).update(state="running")
        fork = continuum.fork(run, "0:4")
        events = list(fork.history())
        assert [(event.seq, event.command_id) for event in events] == [
            (1, "0:1"), (2, None), (3, "0:2"), (4, "0.1:1"), (5, None), (6, "0:3"), (7, None),
        ]  # fmt: skip
        assert events[4].type == "run_resumed"
        # By their old numbers, they would be others now.
        assert events[4].data == {"dropped": [], "renewed": ["0:9"], "again": {}}
        assert events[5].data == {"result": 3}

    def test_before_a_command_whose_failure_was_dropped_is_before_its_next_event(self):
        run = failed_run(*HISTORY)
        record(run, "run_retried", ("run_resumed", None, {"dropped": [4, 6, 7]}), ("timer_fired", "0:3", {}), first=8)
        assert [e.command_id for e in continuum.fork(run, "0:3").history()] == [
            *("0:1", None, "0:2", "0.1:1", None),
            None,
        ]

    def test_of_a_run_that_was_retried_and_not_yet_taken_is_possible(self):
        run = failed_run(*HISTORY)
        continuum.retry(run)
        assert types(continuum.fork(run, "0:3"))[-2:] == ["timer_fired", "run_forked"]
        with pytest.raises(ValueError, match="before"):
            continuum.fork(run, "0:4")

    def test_a_fork_can_be_forked(self):
        run = failed_run(*HISTORY)
        first = continuum.fork(run, "0:3")
        record(first, ("activity_completed", "0:3", {}), first=5)
        second = continuum.fork(first, "0:4")
        assert types(second) == [
            *(type_ for type_, *_ in HISTORY[:3]),
            "run_forked",
            "activity_completed",
            "run_forked",
        ]
        marks = [event.data for event in second.history() if event.type == "run_forked"]
        assert [mark["run"] for mark in marks] == [str(first.id), str(second.id)]
        assert [mark["from"] for mark in marks] == [str(run.id), str(first.id)]
        assert second.forked_from_run_id == first.id

    def test_payloads_are_copied_to_the_letter(self):
        run = failed_run(*HISTORY)
        text = '{"payload": {"b":1e5, "a":-0.0,"~x":"\\u0000"}}'
        with connection.cursor() as cursor:
            cursor.execute("UPDATE continuum_events SET data = %s WHERE run_id = %s AND seq = 2", [text, run.id])
            fork = continuum.fork(run, "0:3")
            cursor.execute("SELECT data::text FROM continuum_events WHERE run_id = %s AND seq = 2", [fork.id])
            assert cursor.fetchone() == (text,)

    def test_namespace_guards(self):
        run = failed_run(*HISTORY, namespace="billing")
        for wanted, namespace in ((run, "default"), (uuid4(), None)):
            with pytest.raises(RunNotFoundError):
                continuum.fork(wanted, "0:3", namespace)
        assert continuum.fork(run, "0:3", "billing").namespace == "billing"

    @pytest.mark.parametrize("before", [None, 3, "", "a\x00"])
    def test_refuses_what_is_no_command(self, before):
        with pytest.raises((TypeError, ValueError), match="before must"):
            continuum.fork(failed_run(*HISTORY), before)
        assert Run.objects.count() == 1

    def test_commits_and_rolls_back_with_the_caller(self, ready_hints):
        run = failed_run(*HISTORY)
        with transaction.atomic():
            fork = continuum.fork(run, "0:3")
            transaction.set_rollback(True)
        assert not Run.objects.filter(id=fork.id).exists()
        assert not HistoryEvent.objects.filter(run_id=fork.id).exists()
        assert ready_hints == []
        continuum.fork(run, "0:3")
        assert ready_hints == ["continuum_ready"]

    def test_a_refusal_leaves_the_callers_transaction_usable(self):
        run = failed_run(*HISTORY)
        with transaction.atomic():
            with pytest.raises(ValueError, match="before"):
                continuum.fork(run, "0:77")
            fork = continuum.fork(run, "0:3")
        assert Run.objects.filter(id=fork.id).exists()


class TestTwins:
    @pytest.fixture(autouse=True)
    async def no_connection_in_the_other_thread(self):
        yield
        await sync_to_async(connections.close_all)()

    async def test_aretry_and_afork(self):
        run = await sync_to_async(failed_run)(*HISTORY)
        fork = await continuum.afork(run, "0:3")
        assert isinstance(fork.id, UUID)
        assert (await continuum.aretry(run)).state == "suspended"
        with pytest.raises(RunStateError):
            await continuum.aretry(run)


def test_a_mark_can_be_read_in_psql():
    fork = continuum.fork(failed_run(*HISTORY), "0:3")
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT data ->> 'before' FROM continuum_events WHERE run_id = %s AND type = 'run_forked'", [fork.id]
        )
        assert cursor.fetchone() == ("0:3",)
