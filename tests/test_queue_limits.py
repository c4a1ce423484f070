"""What the limits of queues allow, without a database."""

from __future__ import annotations

import random

from continuum.worker.queues import Queues, RateLog

SECOND = 1_000_000


class TestQueues:
    def test_a_worker_serves_its_queues_or_all(self):
        assert Queues(None, {}).serves("anything")
        assert Queues(("a", "b"), {}).serves("b")
        assert not Queues(("a", "b"), {}).serves("default")

    def test_limits_of_queues_it_does_not_serve_are_not_its_own(self):
        assert not Queues(("a",), {"b": {"concurrency": 1}}).is_limited("b")

    def test_a_queue_without_limits_is_unlimited(self):
        queues = Queues(None, {"a": {}})
        assert not queues.is_limited("a")
        assert queues.room("a", 7) == 7

    def test_concurrency_counts_what_is_under_way_here(self):
        queues = Queues(None, {"a": {"concurrency": 2}})
        assert queues.room("a", 7) == 2
        queues.begun("a")
        queues.begun("b")
        assert (queues.room("a", 7), queues.room("a", 0), queues.room("b", 7)) == (1, 0, 7)
        queues.begun("a")
        assert queues.room("a", 7) == 0
        queues.ended("a")
        assert queues.room("a", 7) == 1

    def test_only_limits_for_the_cluster_are_shared(self):
        queues = Queues(None, {"a": {"concurrency": 2}, "b": {"rate": (1, 1.0)}, "c": {"cluster_concurrency": 1}})
        assert [queues.is_shared(queue) for queue in "abc"] == [False, True, True]


class TestRateLog:
    def test_what_is_claimed_counts_until_its_window_is_over(self):
        log = RateLog("[]", (3, 10.0))
        assert log.allowed(0) == 3
        log.claimed(0, 2, "m")
        log.noted("m", 5)
        assert log.allowed(9 * SECOND) == 1
        assert log.allowed(11 * SECOND) == 3

    def test_it_counts_from_the_start_and_not_from_the_claim(self):
        log = RateLog("[]", (1, 1.0))
        log.claimed(0, 1, "m")
        log.noted("m", SECOND // 2)
        assert log.allowed(SECOND + SECOND // 4) == 0
        assert log.allowed(2 * SECOND) == 1

    def test_what_has_not_started_yet_counts_for_longer(self):
        log = RateLog("[]", (1, 1.0))
        log.claimed(0, 1, "m")
        assert log.allowed(2 * SECOND) == 0
        assert log.free_us(2 * SECOND) is None
        # Its worker has died: nobody will ever note it.
        assert log.allowed(10 * SECOND) == 1

    def test_it_tells_when_there_is_room_again(self):
        log = RateLog("[]", (2, 1.0))
        log.claimed(0, 1, "m")
        log.noted("m", 100)
        assert log.free_us(200) is None
        log.claimed(300, 1, "n")
        free_us = log.free_us(400)
        assert log.allowed(free_us - 1) == 0
        assert log.allowed(free_us) == 1

    def test_it_survives_as_text(self):
        log = RateLog("[]", (3, 10.0))
        log.claimed(0, 2, "m")
        log.claimed(7, 1, "n")
        log.noted("n", 9)
        again = RateLog(str(log), (3, 10.0))
        assert str(again) == str(log)
        again.noted("m", 8)
        assert str(again) == "[[8,2],[9,1]]"

    def test_no_window_ever_holds_more_than_the_rate(self):
        chance = random.Random(7)
        for _ in range(50):
            count, seconds = chance.randint(1, 9), chance.choice([0.2, 1.0, 7.0])
            log, now, starts, late = RateLog("[]", (count, seconds)), 0, [], []
            for mark in range(200):
                now += chance.randint(0, round(seconds * 2e5))
                while late and chance.random() < 0.7:
                    log.noted(*late.pop())
                if number := min(log.allowed(now), chance.randint(0, count)):
                    log.claimed(now, number, str(mark))
                    started = now + chance.randint(0, 100_000)
                    starts += [started] * number
                    if started <= now + 1000:
                        log.noted(str(mark), started)
                    else:
                        late.append((str(mark), started))
            starts.sort()
            window = seconds * SECOND
            assert all(after - before >= window for before, after in zip(starts, starts[count:], strict=False))
            assert starts
