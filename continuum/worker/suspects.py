"""Finding the run that kills its workers, among the many that die with them.

When a process dies nobody can say which of its runs did it. Each run's row counts the deaths in a row it may be to
blame for, and ``MAX_RECOVERIES`` of them condemn it. Four rules keep that fair and bounded:

* A death counts only for runs that were at work: claimed and not quiet since, or with an activity under way. Thousands
  of runs that sleep are never blamed. A killer may escape being counted once, if what wakes it kills at once; but what
  woke it is durable, and comes first when it is claimed again.
* Whatever a run journals clears it, in the same commit; so does going quiet, and being given back in good order.
* A run that lost two workers (one, if it may lose three at most) is a suspect. A worker has one group of suspects on
  trial, all with the same number of deaths, those with most of them first: hundreds at the first trial, an eighth after
  each further death, and soon each alone (``GROUPS``). The next group's turn comes when each of the one on trial is
  cleared, or gone, or has lived through its trial, which begins when the run and its activities do and is longer the
  more workers it has lost. All others go on meanwhile. If the worker dies, those on trial are blamed, and suspects that
  were tried before are not.
* The last chance is taken only from a run on trial alone, and that trial lasts until the run is cleared or gone.

Bounded: a killer takes ``MAX_RECOVERIES`` workers with it and no more. It does something only when it is claimed. Until
it is a suspect, each death counts for all that were at work. From then on it is claimed only in a group that goes on
trial, and each death counts for the whole group; at its last chance that is the killer and nobody else. Being among
those with most deaths it is claimed before all others, so that nothing comes between it and its end. One that takes
longer to kill than its trial lasts is blamed as well, unless others are on trial by then: it escapes, but trials grow
twice as long with each death, and the last one has no end.

Fair: a group that the killer is not in is through, within its first trial mostly, however many there are. Of those that
shared a trial with it all but an eighth are tried without it the next time, so that after a few deaths it is on its
own. A run that is innocent is condemned only if others killed its worker each time it was at work, without its getting
anything done in between: in company first, then, at the last half of its chances (out of the box), each time in the
very moment when it was on trial alone. The fewer chances there are, the fewer of them are spent in company.

Who is on trial is said by one number in the worker's row, written by the claim itself: fencing tokens only grow, and a
claim of suspects draws one for each, so those on trial are the worker's suspects that have this token or a later one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from continuum.conf import settings as continuum_settings
from continuum.exceptions import PoisonRunError
from continuum.worker.live import LiveRun

__all__ = ["GROUPS", "Suspects", "chances"]

# So many deaths may be chance: a worker dies for many reasons, and runs share it.
INNOCENT = 2
# How many are tried together at most: at their first trial, at their second, and so on; from then on each is alone.
GROUPS = (256, 32, 4)
# How long the first trial of a run lasts, in seconds; each death doubles it, since what kills may take its time.
TRIAL = 1.0
# So many times as long a trial may last for a run whose activities wait in line: others wait for its end.
LONGEST = 10


def chances() -> dict[str, int]:
    """Return from how many deaths on a run is a suspect, and how many it survives unless it is on trial alone."""
    most = continuum_settings.MAX_RECOVERIES
    return {"suspected": max(1, min(INNOCENT, most - 2)), "spared": most - 1}


@dataclass(slots=True)
class _Trial:
    """The trial of one run.

    Attributes:
        patience: seconds it lasts once everything it asks for is under way.
        since: when that was, by ``time.monotonic()``; now, while something has yet to begin.
        until: when it ends however that is.
    """

    patience: float
    since: float
    until: float

    def look(self, live: LiveRun, now: float) -> float:
        """Return how many seconds of it are left, as far as can be said now."""
        attempts = live.attempts.values()
        if live.replaying or any(each.submitted and not each.started and not each.settled for each in attempts):
            self.since = now
        else:
            self.since = max([self.since, *(each.started for each in attempts)])
        return min(self.since + self.patience, self.until) - now


class Suspects:
    """The trial of a group that goes on in one worker.

    Args:
        loop: the worker's loop.
        on_change: called when the trial of a run is over.

    Attributes:
        on_free: called when the next suspects may be claimed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_change: Callable[[], None]) -> None:
        self._loop = loop
        self._on_change = on_change
        self.on_free: Callable[[], None] = lambda: None
        self._on_trial: dict[LiveRun, _Trial] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._most = continuum_settings.MAX_RECOVERIES
        self._suspected = chances()["suspected"]

    @property
    def trying(self) -> bool:
        """Whether runs are on trial."""
        return bool(self._on_trial)

    def admit(self, live: LiveRun) -> None:
        """Begin the trial of a run that was just claimed, if it is a suspect."""
        if live.recoveries < self._suspected:
            return
        is_last = live.recoveries >= self._most - 1
        patience = float("inf") if is_last else TRIAL * 2 ** (live.recoveries - self._suspected)
        now = time.monotonic()
        self._on_trial[live] = _Trial(patience, now, now + LONGEST * patience)
        if self._timer is None:
            self._look_in(patience)

    def judge(self, live: LiveRun) -> None:
        """To be called before the run does anything.

        Raises:
            PoisonRunError: it has had its chances.
        """
        if live.recoveries >= self._most:
            raise PoisonRunError(live.id, live.recoveries)

    def cleared(self, live: LiveRun) -> None:
        """The run has got something done, or has become quiet, and that is durable."""
        live.recoveries = 0
        self.over(live)

    def over(self, live: LiveRun) -> None:
        """The trial of a run is over, if there was one: it was cleared, has lived through it, or is gone."""
        if self._on_trial.pop(live, None) is None:
            return
        self._on_change()
        if not self._on_trial:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self.on_free()

    def _look_in(self, seconds: float) -> None:
        if seconds != float("inf"):
            self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        """End the trials that have lasted long enough."""
        self._timer = None
        now = time.monotonic()
        left = {live: trial.look(live, now) for live, trial in self._on_trial.items()}
        if remaining := [seconds for seconds in left.values() if seconds > 0]:
            self._look_in(min(remaining))
        for live, seconds in left.items():
            if seconds <= 0:
                self.over(live)
