"""Finding the run that kills its workers, among the many that die with them.

When a process dies nobody can say which of its runs did it. Each run's row counts the deaths in a row it may be to
blame for, and ``MAX_RECOVERIES`` of them condemn it. Four rules keep that fair and bounded:

* A death counts only for runs that were at work: claimed and not quiet since, or with an activity under way. Thousands
  of runs that sleep are never blamed. A killer may escape being counted once, if what wakes it kills at once; but what
  woke it is durable, and comes first when it is claimed again.
* Whatever a run journals clears it, in the same commit; so does going quiet, and being given back in good order.
* A run that lost two workers is a suspect, and a worker claims suspects one at a time: the next comes when the one on
  trial is cleared, or has lived through its trial, which is longer the more workers it has lost. All others go on
  meanwhile. If the worker dies, the one on trial is blamed, and suspects that were tried before are not.
* The last chance is taken only from a run on trial, and that trial lasts until the run is cleared or gone.

So a killer takes ``MAX_RECOVERIES`` workers with it and no more: suspects with most deaths are tried first, so that
once it stands out nothing comes between it and its end. A run that is innocent is condemned only if others killed its
worker each time it was at work, without its getting anything done in between: two times in company, then each time in
the moment when it was on trial.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from continuum.conf import settings as continuum_settings
from continuum.exceptions import PoisonRunError
from continuum.worker.live import LiveRun

__all__ = ["Suspects", "chances"]

# So many deaths may be chance: a worker dies for many reasons, and runs share it.
INNOCENT = 2
# How long the first trial of a run lasts; each death doubles it, since what kills may take its time.
TRIAL = 1.0


def chances() -> dict[str, int]:
    """Return from how many deaths on a run is a suspect, and how many it survives unless it is on trial."""
    most = continuum_settings.MAX_RECOVERIES
    return {"suspected": max(1, min(INNOCENT, most - 1)), "spared": most - 1}


class Suspects:
    """The trial that goes on in one worker.

    Args:
        loop: the worker's loop.
        on_change: called when a trial is over.

    Attributes:
        on_free: called when the next suspect may be claimed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_change: Callable[[], None]) -> None:
        self._loop = loop
        self._on_change = on_change
        self.on_free: Callable[[], None] = lambda: None
        self._on_trial: dict[LiveRun, asyncio.TimerHandle | None] = {}
        self._most = continuum_settings.MAX_RECOVERIES
        self._suspected = chances()["suspected"]

    @property
    def trying(self) -> bool:
        """Whether a run is on trial."""
        return bool(self._on_trial)

    def admit(self, live: LiveRun) -> None:
        """Begin the trial of a run that was just claimed, if it is a suspect."""
        if live.recoveries < self._suspected:
            return
        patience = TRIAL * 2 ** (live.recoveries - self._suspected) if live.recoveries < self._most - 1 else None
        self._on_trial[live] = None if patience is None else self._loop.call_later(patience, self.over, live)

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
        if live in self._on_trial:
            timer = self._on_trial.pop(live)
            if timer is not None:
                timer.cancel()
            self._on_change()
            self.on_free()
