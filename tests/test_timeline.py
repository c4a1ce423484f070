"""A run's story as lanes, spans and a scale."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import continuum
from continuum.ids import derived_child, uuid7
from continuum.models import HistoryEvent, Run
from continuum.timeline import Lane, Span, _scale, timeline
from tests.app.workflows import everything
from tests.factories import RunFactory
from tests.test_cluster import start_worker  # noqa: F401

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)


def at(seconds):
    return T0 + timedelta(seconds=seconds)


def micros(seconds):
    return round((at(seconds) - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1e6)


@pytest.fixture
def story(db):
    """Make a run with these events, ``(seconds, type, command, name, data)``, and return its timeline."""

    def story(*events, now=100, **fields):
        fields = {"state": "running", "started_at": T0, "claimed_at": at(0.1)} | fields
        run = RunFactory(**fields)
        HistoryEvent.objects.bulk_create(
            HistoryEvent(run_id=run.id, seq=n, type=type_, command_id=command, name=name, data=data, recorded_at=at(s))
            for n, (s, type_, command, name, data) in enumerate(events, 1)
        )
        return timeline(Run.objects.get(pk=run.pk), now=at(now))

    return story


def only(drawn):
    (lane,) = drawn.lanes
    return lane


class TestLanes:
    def test_an_activity_lasts_from_its_start_to_its_record(self, story):
        lane = only(story((5, "activity_completed", "0:1", "charge", {"took": 3_000_000, "result": 1})))
        assert (lane.kind, lane.name, lane.command_id) == ("activity", "charge", "0:1")
        (span,) = lane.spans
        assert (span.start, span.end, span.outcome, span.attempt, span.seq) == (at(2), at(5), "completed", 1, 1)

    def test_attempts_of_an_activity_share_a_lane(self, story):
        error = {"type": "OSError", "message": "no"}
        lane = only(
            story(
                (2, "activity_retried", "0:1", "charge", {"took": 1_000_000, "attempt": 1, "error": error}),
                (5, "activity_retried", "0:1", "charge", {"took": 1_000_000, "attempt": 2, "error": error}),
                (9, "activity_failed", "0:1", "charge", {"took": 1_000_000, "attempt": 3, "error": error}),
            )
        )
        assert [(s.attempt, s.outcome, s.error) for s in lane.spans] == [
            (1, "retried", "OSError"),
            (2, "retried", "OSError"),
            (3, "failed", "OSError"),
        ]

    def test_an_activity_that_waits_for_its_next_attempt_goes_on_in_its_lane(self, story):
        lane = only(
            story(
                (2, "activity_retried", "0:1", "charge", {"took": 1_000_000, "attempt": 1, "error": {"type": "E"}}),
                waiting_on=[
                    {
                        "kind": "activity",
                        "name": "charge",
                        "since": at(1).isoformat(),
                        "attempt": 2,
                        "next_try": at(60).isoformat(),
                    }
                ],
            )
        )
        assert (lane.spans[1].start, lane.spans[1].end, lane.spans[1].until) == (at(2), None, at(60))
        assert lane.spans[1].outcome == "waiting"

    @pytest.mark.parametrize(
        ("args", "start"),
        [("[30.0]", 20), ('["2026-03-01T12:00:50+00:00"]', 0.1), ("[1e300]", 0.1)],
        ids=["a length", "a moment", "nonsense"],
    )
    def test_a_timer_lasts_its_length_or_from_when_the_code_last_went_on(self, story, args, start):
        import json

        (span,) = only(story((50, "timer_fired", "0:1", None, {"args": json.loads(args)}))).spans
        assert (span.start, span.end) == (at(start), at(50))

    def test_a_wait_for_a_signal_that_timed_out_is_a_failed_wait(self, story):
        lane = only(story((50, "timer_fired", "0:1", "approval", {"args": [30.0]})))
        assert (lane.kind, lane.name, lane.spans[0].outcome) == ("signal", "approval", "failed")

    def test_a_child_begins_when_its_id_was_made(self, story):
        parent = uuid7()
        child = derived_child(parent, "0:1", time_us=micros(3))
        lane = only(story((9, "child_completed", "0:1", "other", {"child": str(child), "state": "completed"})))
        assert (lane.kind, lane.child, lane.spans[0].start) == ("child", str(child), at(3))

    def test_a_failed_child_tells_its_error_and_a_cancelled_one_its_state(self, story):
        drawn = story(
            (9, "child_failed", "0:1", "other", {"child": "?", "state": "failed", "error": {"type": "ValueError"}}),
            (9, "child_failed", "0:2", "other", {"child": "?", "state": "cancelled", "error": None}),
        )
        assert sorted(lane.spans[0].error for lane in drawn.lanes) == ["ValueError", "cancelled"]

    def test_signals_that_nobody_waits_for_have_lanes_of_their_own(self, story):
        drawn = story(
            (3, "signal_received", None, "note", {"payload": 1}), (4, "signal_received", None, "note", {"payload": 2})
        )
        assert [lane.spans[0].is_point for lane in drawn.lanes] == [True, True]

    def test_what_the_run_waits_for_is_open(self, story):
        waits = [
            {"kind": "signal", "name": "ok", "since": at(5).isoformat(), "until": at(500).isoformat()},
            {"kind": "child", "name": "other", "since": at(6).isoformat(), "id": "abc"},
            {"kind": "more", "count": 7},
            {"kind": "timer", "since": "nonsense"},
        ]
        drawn = story(waiting_on=waits)
        assert [(lane.kind, lane.child, lane.spans[0].end) for lane in drawn.lanes] == [
            ("signal", None, None),
            ("child", "abc", None),
        ]
        assert drawn.lanes[0].spans[0].until == at(500)
        assert story(waiting_on=waits, state="completed", completed_at=at(9)).lanes == ()

    def test_the_run_as_a_whole_has_marks(self, story):
        drawn = story(
            (3, "cancel_requested", None, None, {"reason": "r"}),
            (4, "run_failed", None, None, {"type": "ValueError"}),
            state="failed",
            completed_at=at(4),
        )
        assert [mark.label for mark in drawn.marks] == ["cancel requested", "failed: ValueError"]
        assert (drawn.start, drawn.end) == (T0, at(4))

    def test_of_a_long_history_the_newest_part_is_drawn(self, story, django_assert_num_queries):
        drawn = story(*((n, "side_effect", f"0:{n}", "f", {"result": n}) for n in range(1, 31)))
        assert drawn.left_out == 0
        run = Run.objects.get()
        with django_assert_num_queries(1):
            assert timeline(run, now=at(100), limit=10).left_out == 20

    @pytest.mark.django_db(transaction=True)
    @pytest.mark.cluster
    def test_a_real_run_can_be_drawn(self, start_worker):  # noqa: F811
        start_worker()
        run = continuum.start(everything, "k")
        continuum.signal(run, "answer", 1)
        continuum.wait_run(run, 60)
        drawn = timeline(Run.objects.get(pk=run.pk))
        kinds = {lane.kind for lane in drawn.lanes}
        assert {"activity", "timer"} <= kinds
        assert drawn.marks[-1].type == "run_completed"
        for span in (span for lane in drawn.lanes for span in lane.spans):
            assert drawn.start <= span.start <= span.end <= drawn.end


def lane_of(*spans, kind="activity"):
    return Lane(
        kind=kind,
        name="a",
        command_id="0:1",
        spans=tuple(Span(start=at(a), end=None if b is None else at(b), outcome="completed") for a, b in spans),
    )


class TestScale:
    def test_without_idle_stretches_it_is_proportional(self):
        scale = _scale(at(0), at(10), [lane_of((0, 4), (4, 10))], [])
        assert [scale.place(at(s)) for s in (0, 1, 4, 10)] == [0, 0.1, 0.4, 1]
        assert scale.gaps == ()

    def test_a_long_wait_is_shortened_and_said_to_be(self):
        day = 86_400
        scale = _scale(
            at(0), at(day + 2), [lane_of((0, 1), (day + 1, day + 2)), lane_of((1, day + 1), kind="timer")], []
        )
        (gap,) = scale.gaps
        assert gap.length == timedelta(days=1)
        assert scale.place(gap.end) - scale.place(gap.start) < 0.2
        assert scale.place(at(1)) > 0.4

    def test_an_open_activity_is_busy_until_now(self):
        scale = _scale(at(0), at(100), [lane_of((0, None))], [])
        assert scale.place(at(50)) == 0.5

    def test_moments_outside_lie_at_the_ends(self):
        scale = _scale(at(0), at(10), [], [])
        assert (scale.place(at(-5)), scale.place(at(50))) == (0, 1)

    def test_a_run_that_took_no_time_has_a_scale(self):
        assert _scale(at(0), at(0), [lane_of((0, 0))], []).place(at(0)) == 0

    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        st.lists(
            st.tuples(st.floats(0, 1e6), st.floats(0, 1e6), st.sampled_from(["activity", "timer", "child"])),
            max_size=20,
        ),
        st.floats(0, 1e6),
    )
    def test_later_is_never_to_the_left(self, drawn, length):
        lanes = [lane_of((min(a, b), max(a, b)), kind=kind) for a, b, kind in drawn]
        scale = _scale(at(0), at(length), lanes, [])
        moments = sorted({at(0), at(length), *(s.start for lane in lanes for s in lane.spans)})
        places = [scale.place(moment) for moment in moments]
        assert places == sorted(places)
        assert all(0 <= place <= 1 for place in places)
