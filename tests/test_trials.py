"""Trials of suspects: what is promised about killers and innocents in a simulation, and that SQL counts as it does."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings as hypothesis_settings, strategies as st

from continuum.models import Run, Worker
from continuum.worker import suspects as trials
from continuum.worker.connections import connect
from continuum.worker.leases import release_stranded
from continuum.worker.suspects import GROUPS, TRIAL, chances

patient = hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

INSTANTLY = 0.0
SOON = st.sampled_from([INSTANTLY, 0.01, 0.3, 0.9])
LONG = st.sampled_from([1.5, 3.0, 10.0])
NONE = st.just(0)
ONE = st.just(1)


def blamed(recoveries, *, at_work, on_trial, alone, anybody_on_trial, suspected, spared):
    """Return what a run's count of deaths is after the death of its worker."""
    if not at_work:
        return recoveries
    if recoveries < suspected or (on_trial and alone):
        return recoveries + 1
    if on_trial or not anybody_on_trial:
        return max(recoveries, min(recoveries + 1, spared))
    return recoveries


def group_of(recoveries, limit, *, suspected, spared):
    """Return how many runs that have lost so many workers are tried together at most."""
    if recoveries > spared:
        return limit
    if recoveries == spared:
        return 1
    place = recoveries - suspected
    return min(limit, GROUPS[place]) if place < len(GROUPS) else 1


class Life:
    """A run of the simulated cluster: in so many seconds from each claim it has got something done, or it kills."""

    def __init__(self, seconds, *, kills=False):
        self.seconds, self.kills = seconds, kills
        self.recoveries = self.killed = self.blames_alone = 0
        self.claim = None  # changes with each claim; None: nobody's
        self.state = "free"


class Simulation:
    """Workers that claim runs by the rules, and die of some.

    Args:
        runs: the runs.
        most: ``MAX_RECOVERIES``.
        chance: decides about all that is left open.
        workers: how many there are; each that dies is replaced at once.
        room: how many runs one has room for.
        accidents: when one dies that nobody has killed.
    """

    def __init__(self, runs, most, chance, *, workers=1, room=200, accidents=()):
        self.runs, self.most, self.chance, self.room = runs, most, chance, room
        self.suspected, self.spared = max(1, min(trials.INNOCENT, most - 2)), most - 1
        self.at_work = [set() for _ in range(workers)]
        self.on_trial = [set() for _ in range(workers)]
        self._free = {}  # how many deaths: the runs that nobody has
        for run in runs:
            self._release(run)
        self.named = [None] * workers  # who is on trial, as the worker's row says: the whole group, until the next
        self.now = 0.0
        self.deaths = self.escapes = 0
        self._events, self._numbers = [], itertools.count()
        for at in accidents:
            self._at(at, "accident", None)

    def run(self):
        """Let all happen that does."""
        self._claim_everywhere()
        while self._events:
            self.now, _, what, subject = heapq.heappop(self._events)
            if what == "accident":
                self._die(self.chance.randrange(len(self.at_work)), None)
            elif what == "its time" or what == "trial over":
                run, claim, worker = subject
                if run.claim != claim:
                    continue
                if what == "trial over":
                    self._leave_trial(worker, run)
                elif run.kills:
                    run.killed += 1
                    self._die(worker, run)
                else:
                    run.state, run.recoveries, run.claim = "done", 0, None
                    self.at_work[worker].discard(run)
                    self._leave_trial(worker, run)
            self._claim_everywhere()
            assert self.deaths < 100 * self.most, "no end of it"

    def _at(self, seconds, what, subject):
        # What falls together happens in any order.
        heapq.heappush(self._events, (seconds, (self.chance.random(), next(self._numbers)), what, subject))

    def _leave_trial(self, worker, run):
        self.on_trial[worker].discard(run)

    def _claim_everywhere(self):
        workers = list(range(len(self.at_work)))
        self.chance.shuffle(workers)
        for worker in workers:
            self._claim(worker)

    def _release(self, run):
        run.claim, run.state = None, "free"
        self._free.setdefault(run.recoveries, []).append(run)

    def _take(self, recoveries, most):
        """Take any of those that have lost so many workers."""
        free = self._free[recoveries]
        self.chance.shuffle(free)
        taken, self._free[recoveries] = free[:most], free[most:]
        if not self._free[recoveries]:
            del self._free[recoveries]
        return taken

    def _claim(self, worker):
        room = self.room - len(self.at_work[worker])
        if room <= 0:
            return
        if not self.on_trial[worker]:
            top = max(self._free, default=0)
            group = []
            if top >= self.suspected:
                most = group_of(top, max(1, room // 2), suspected=self.suspected, spared=self.spared)
                group = self._take(top, most)
            self.named[worker] = set(group) or None
            for run in group:
                self._begin(worker, run)
            room -= len(group)
        for recoveries in [recoveries for recoveries in self._free if recoveries < self.suspected]:
            for run in self._take(recoveries, room) if room > 0 else ():
                self._begin(worker, run)
                room -= 1

    def _begin(self, worker, run):
        run.claim, run.state = next(self._numbers), "claimed"
        if run.recoveries >= self.most:
            run.state, run.claim = "condemned", None
            self._at(self.now, "room", None)
            return
        self.at_work[worker].add(run)
        subject = (run, run.claim, worker)
        if run.recoveries >= self.suspected:
            self.on_trial[worker].add(run)
            if run.recoveries < self.spared:
                self._at(self.now + TRIAL * 2 ** (run.recoveries - self.suspected), "trial over", subject)
        self._at(self.now + run.seconds, "its time", subject)

    def _die(self, worker, killer):
        self.deaths += 1
        named = self.named[worker] or set()
        for run in self.at_work[worker]:
            before = run.recoveries
            run.recoveries = blamed(
                before,
                at_work=True,
                on_trial=run in named,
                alone=len(named) == 1,
                anybody_on_trial=bool(named),
                suspected=self.suspected,
                spared=self.spared,
            )
            run.blames_alone += run.recoveries > before and named == {run}
            self.escapes += run is killer and run.recoveries == before
            self._release(run)
        self.at_work[worker], self.on_trial[worker], self.named[worker] = set(), set(), None


@st.composite
def worlds(draw, killers, delay=SOON, accidents=NONE, fewest=1):
    count = draw(st.integers(0, 40)) * draw(st.sampled_from([1, 10]))
    seconds = draw(st.lists(SOON | LONG, min_size=1, max_size=4))
    innocents = [Life(seconds[n % len(seconds)]) for n in range(count)]
    guilty = [Life(draw(delay), kills=True) for _ in range(draw(killers))]
    chance = random.Random(draw(st.integers(0, 2**32)))
    return innocents, guilty, Simulation(
        innocents + guilty,
        draw(st.integers(fewest, 12)),
        chance,
        workers=draw(st.integers(1, 3)),
        room=draw(st.sampled_from([1, 3, 60, 200, 1000])),
        accidents=[chance.uniform(0, 30) for _ in range(draw(accidents))],
    )  # fmt: skip


class TestPromises:
    @given(worlds(killers=ONE, fewest=2))
    @patient
    def test_one_killer_takes_as_many_workers_as_it_may_and_nobody_else_is_condemned(self, world):
        innocents, [killer], simulation = world
        simulation.run()
        assert (killer.state, killer.killed) == ("condemned", simulation.most)
        assert {run.state for run in innocents} <= {"done"}

    @given(worlds(killers=st.integers(2, 6), accidents=st.integers(0, 3)))
    @patient
    def test_several_killers_take_no_more_than_each_may(self, world):
        _, killers, simulation = world
        simulation.run()
        for killer in killers:
            assert killer.state == "condemned"
            # One that another died with before it could kill has been blamed for less than it did, or for more.
            assert killer.killed <= simulation.most
        assert {run.state for run in simulation.runs} <= {"done", "condemned"}

    @given(worlds(killers=st.integers(1, 6), accidents=st.integers(0, 3), fewest=10))
    @patient
    def test_with_the_chances_there_are_out_of_the_box_no_innocent_comes_near_its_end(self, world):
        innocents, _, simulation = world
        simulation.run()
        assert {run.state for run in innocents} <= {"done"}

    @given(worlds(killers=ONE, delay=SOON | LONG, fewest=3))
    @patient
    def test_one_that_takes_its_time_is_found_as_well(self, world):
        _, [killer], simulation = world
        simulation.run()
        assert killer.state == "condemned"
        assert killer.killed == simulation.most + simulation.escapes
        if killer.seconds < TRIAL:
            assert not simulation.escapes

    @pytest.mark.parametrize("most", range(1, 13))
    @pytest.mark.parametrize("size", [1, 2, 5, 33, 257])
    def test_whoever_is_claimed_last_is_found_as_well(self, most, size):
        """Without any chance: the killer is the last of its equals each time, and the first."""
        for chance in (Orderly(), Orderly(backwards=True)):
            killer = Life(INSTANTLY, kills=True)
            others = [Life(0.1) for _ in range(size - 1)]
            Simulation([*others, killer], most, chance, room=600).run()
            assert (killer.state, killer.killed) == ("condemned", most)
            assert {run.state for run in others} <= ({"done"} if most > 1 else {"done", "condemned"})

    def test_thousands_of_innocents_are_through_within_seconds(self):
        """They lost two workers to chance, and take longer than any trial lasts."""
        runs = [Life(1.5) for _ in range(5000)]
        for run in runs:
            run.recoveries = 2
        simulation = Simulation(runs, 10, random.Random(1), workers=4, room=1000)
        simulation.run()
        assert simulation.now < 8
        assert {run.state for run in runs} == {"done"}

    def test_those_that_have_lived_through_their_trial_are_not_blamed_for_what_a_later_group_does(self):
        killer, innocents = Life(INSTANTLY, kills=True), [Life(50.0) for _ in range(600)]
        for run in [*innocents, killer]:
            run.recoveries = 2
        seen = []

        class Watched(Simulation):
            def _die(self, worker, killer):
                super()._die(worker, killer)
                seen.append([run.recoveries for run in innocents])

        Watched([*innocents, killer], 10, Orderly(), room=2000).run()
        assert seen[0] == [2] * 512 + [3] * 88

    def test_of_those_that_a_killer_takes_along_few_are_left_after_each_death(self):
        killer, innocents = Life(INSTANTLY, kills=True), [Life(0.1) for _ in range(1000)]
        seen = []

        class Watched(Simulation):
            def _die(self, worker, killer):
                super()._die(worker, killer)
                seen.append(sum(run.recoveries == killer.recoveries for run in innocents))

        Watched([*innocents, killer], 10, random.Random(2), room=2000).run()
        assert seen[:2] == [1000, 1000]
        assert [bound >= count for bound, count in zip([255, 31, 3, 0, 0, 0, 0, 0], seen[2:], strict=True)] == [
            True
        ] * 8


class Orderly(random.Random):
    """Leaves everything in the order it is in, or turns it round."""

    def __init__(self, *, backwards=False):
        super().__init__(0)
        self._backwards = backwards

    def shuffle(self, items):
        if self._backwards:
            items.reverse()


@pytest.mark.django_db(transaction=True)
class TestBlameInTheDatabase:
    SITUATIONS = ("nobody", "one", "several", "an older worker's one")

    @pytest.mark.parametrize("situation", SITUATIONS)
    @pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 10])
    def test_is_that_of_the_simulation(self, settings, most, situation):
        settings.CONTINUUM = {"MAX_RECOVERIES": most}
        worker = Worker.objects.create(name="dead", state="dead", expires_at="2020-01-01T00:00:00Z")
        cases, expected = [], {}
        for recoveries, state in itertools.product(range(most + 1), ("running", "suspended")):
            for when in ("before", "on trial"):
                # Only suspects are on trial; others are claimed at any time.
                on_trial = when == "on trial" and recoveries >= chances()["suspected"]
                token = 100 if when == "on trial" else 50
                fields = {"workflow": "f", "state": state, "recoveries": recoveries, "lease_token": token}
                run = Run(id=uuid4(), owner_id=worker.id, **fields)
                run.correlation_id = run.id
                cases.append((run, on_trial))
        tried = [run for run, on_trial in cases if on_trial]
        if situation in ("one", "an older worker's one"):
            # Each in turn.
            rounds = [[run] for run in tried]
        else:
            rounds = [tried if situation == "several" else []]
        for group in rounds:
            Run.objects.all().delete()
            runs = [run for run, on_trial in cases if not on_trial or run in group or situation == "nobody"]
            Run.objects.bulk_create(runs)
            alone = group[0].id if len(group) == 1 else None
            token = 100 if group and situation != "an older worker's one" else None
            Worker.objects.filter(id=worker.id).update(suspect_id=alone, trial_token=token)
            for run in runs:
                expected[run.id] = blamed(
                    run.recoveries,
                    at_work=run.state == "running",
                    on_trial=run in group,
                    alone=len(group) == 1,
                    anybody_on_trial=bool(group),
                    **chances(),
                )
            assert self.release() == len(runs)
            found = Run.objects.in_bulk([run.id for run in runs])
            assert {run_id: run.recoveries for run_id, run in found.items()} == {
                run.id: expected[run.id] for run in runs
            }
            assert {(run.owner_id, run.state) for run in found.values()} == {(None, "suspended")}

    def release(self):
        async def look():
            async with await connect("default", application_name="test") as connection:
                return await release_stranded(connection)

        return asyncio.run(look())
