"""What comes in to a node: runs to claim, and messages for the runs it has.

Hints say when to look; the poll looks anyway. Nothing here depends on a hint having arrived.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar
from uuid import UUID

import psycopg

from continuum.worker import claims, forwarding
from continuum.worker.budget import Budget
from continuum.worker.claims import ClaimedRun, Found
from continuum.worker.engine import Engine
from continuum.worker.forwarding import Chains
from continuum.worker.links import Link
from continuum.worker.live import Message
from continuum.worker.loaded import Loaded

__all__ = ["Intake"]

logger = logging.getLogger("continuum.worker")

T = TypeVar("T")

# Seconds between looks for runs that a claim gave to this worker after it had given up waiting for the answer.
STRANGERS_EVERY = 5.0
# Runs claimed by one statement: a share of what may run at once, so that several workers divide a backlog fairly.
MOST_CLAIMED = 200
# Messages fetched by one poll; what is left comes with the next.
MOST_POLLED = 5_000
# The share of the time for looking for runs with mail, and for mail of continued runs: beyond it hints have to wait.
MAIL_SHARE = 0.05
# But not for longer than this: the look may have been slow because the machine was, for a moment.
LONGEST_PAUSE = 5.0
MOST_READS = 3  # of the same inboxes, while some of their mail lies in those of the runs before
# What was under way to a run when it was continued has arrived after so long, mostly; the poll finds the rest.
STRAYS_DELAY = 0.05


class _LostAnswerError(Exception):
    """Nobody knows what a claim has claimed."""


class Intake:
    """Claims runs and fetches messages for one worker, over one connection.

    When the connection breaks, the question that was under way is asked again and no other, so that there is progress
    however often it breaks. Only claims are not made again before it was seen what the first one did.

    Args:
        connect: opens an autocommit connection.
        worker_id: the worker.
        loaded: the workflows it can run.
        engine: takes up what comes in.
        poll_interval: seconds between looks that no hint asked for.
        on_forwarded: called with runs to which a message was forwarded, and the worker that owns each, or None.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[psycopg.AsyncConnection[Any]]],
        worker_id: int,
        loaded: Loaded,
        engine: Engine,
        *,
        poll_interval: float,
        on_forwarded: Callable[[dict[UUID, int | None]], None] = lambda news: None,
    ) -> None:
        self._link = Link(connect, "claims", on_broken=self._doubt)
        self._turn = asyncio.Lock()  # what one round learns must still hold when it acts on it
        self._doubtful = False  # a run may be this worker's without its knowing: the answer to a claim was lost
        self._worker_id = worker_id
        self._loaded = loaded
        self._engine = engine
        self._poll_interval = poll_interval
        self._on_forwarded = on_forwarded
        self._chains = Chains()
        self._strays_budget = Budget(MAIL_SHARE, LONGEST_PAUSE)
        self._held_up: set[UUID] = set()  # runs whose mail waits for what was sent before it
        self._strays_of: set[UUID] = set()  # runs in whose inboxes there may be mail for their successors
        self._claim_wanted = asyncio.Event()
        self._mail_wanted = True
        self._mail_due = False  # whatever it costs
        self._mail_budget = Budget(MAIL_SHARE, LONGEST_PAUSE)
        self._mail_put_off = False
        self._backlog = False
        self._suspects_wanted = True
        self._parked_wanted = True
        engine.suspects.on_free = self.on_suspects
        self._claiming = False
        self._answering = 0
        self._missed: set[UUID] = set()  # runs with news that arrived while they were perhaps being claimed
        self._news = asyncio.Event()
        self._news_of: set[UUID] = set()
        self._news_of_all = False
        self._looked = asyncio.Event()
        self._read_all = asyncio.Event()

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What has to run for as long as the node serves, by name."""
        return {"claims": self._claim_forever(), "inbox": self._read_forever(), "poll": self._poll_forever()}

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()

    # -- hints --------------------------------------------------------------------------------------------------

    def on_ready(self) -> None:
        """A run that nobody owns is due."""
        self._claim_wanted.set()

    def on_mail(self) -> None:
        """A run that nobody owns has mail."""
        self._mail_wanted = True
        self._claim_wanted.set()

    def _on_mail_again(self) -> None:
        self._mail_put_off = False
        self.on_mail()

    def on_suspects(self) -> None:
        """The next runs that are suspected of killing their workers may be tried."""
        self._suspects_wanted = True
        self._claim_wanted.set()

    def on_room(self) -> None:
        """There is room for more runs."""
        if self._backlog:
            self._claim_wanted.set()

    def on_runs(self, run_ids: list[UUID] | None) -> None:
        """These runs have news; None: look at all."""
        if run_ids is None:
            self._news_of_all = True
            self.on_mail()
        else:
            live = self._engine.live
            self._news_of.update(run_id for run_id in run_ids if run_id in live)
            self._strays_of |= (late := self._chains.known(run_ids))
            strangers = [run_id for run_id in run_ids if run_id not in live and run_id not in late]
            if strangers and self._claiming:
                self._missed.update(strangers)
            elif strangers:
                self.on_mail()  # nobody's, or given back meanwhile: the message makes a run claimable
        self._news.set()

    def on_continued(self, run_ids: list[UUID]) -> None:
        """These runs were continued: what somebody was sending them meanwhile will lie in the wrong inbox."""
        self._chains.continued(run_ids)
        asyncio.get_running_loop().call_later(STRAYS_DELAY, self.on_runs, run_ids)

    def look_at_all(self) -> None:
        """Hints may have been missed, or the time for a look has come."""
        self._news_of_all = True
        self._news.set()
        self._mail_due = True  # also if a look is under way that will put off the next
        self._suspects_wanted = self._parked_wanted = True
        self.on_mail()

    def _on_found(self, found: Found) -> None:
        """The time for a look has come, and these are worth one."""
        if found.mail:
            self.look_at_all()
        elif any(found):
            self._suspects_wanted = self._suspects_wanted or found.suspects
            self._parked_wanted = self._parked_wanted or found.parked
            self._claim_wanted.set()

    async def nothing_left(self) -> bool:
        """Look for runs to claim once more; returns whether there was nothing to do."""
        self._looked.clear()
        self._read_all.clear()
        self._strays_budget.reset()
        self.look_at_all()
        await self._looked.wait()
        await self._read_all.wait()
        # Asked for meanwhile: a child that has ended has a parent to tell, what was forwarded may be for anybody.
        asked = self._news.is_set() or self._claim_wanted.is_set() or self._answering > 0 or bool(self._held_up)
        return not self._engine.busy and not asked

    # -- the connection -----------------------------------------------------------------------------------------

    async def use(self, fn: Callable[[psycopg.AsyncConnection[Any]], Awaitable[T]]) -> T:
        """Return what ``fn(connection)`` returns, called between two rounds, and again when the connection breaks."""
        async with self._turn:
            return await self._link.use(fn)

    async def _ask(self, question: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Return ``question(connection, *arguments)``; part of a round."""
        return await self._link.use(lambda connection: question(connection, *arguments))

    async def _answer(self, wish: asyncio.Event, fn: Callable[[], Awaitable[None]]) -> None:
        """Do what was wished for; until that is done the wish counts as open."""
        wish.clear()
        self._answering += 1
        try:
            async with self._turn:
                await fn()
        finally:
            self._answering -= 1

    # -- runs that are this worker's without its knowing ----------------------------------------------------------

    def _doubt(self) -> None:
        self._doubtful = True
        self._claim_wanted.set()

    async def _adopt_unknown(self) -> None:
        """Take up runs that a claim gave to this worker although its answer never arrived."""
        # Known by their tokens: a run that is known from an earlier claim only is to be taken up.
        tokens = [run.token for run in self._engine.live.values()]
        owned = await self._ask(claims.owned_by, self._worker_id, tokens)
        self._doubtful = False
        if owned:
            logger.warning("%d runs were claimed by a statement whose answer was lost: taken up now", len(owned))
            await self._admit(owned)

    # -- claiming -----------------------------------------------------------------------------------------------

    async def _claim_forever(self) -> None:
        while True:
            await self._claim_wanted.wait()
            await self._answer(self._claim_wanted, self._claim_round)

    async def _claim_round(self) -> None:
        if not self._loaded.names:
            self._looked.set()
            return
        mail = self._mail_wanted and (self._mail_due or self._mail_budget.allows())
        if mail:
            self._mail_wanted = self._mail_due = False
        elif self._mail_wanted and not self._mail_put_off:
            # A run that was just given back, say: it has waited long enough without waiting for the poll as well.
            self._mail_put_off = True
            asyncio.get_running_loop().call_later(self._mail_budget.wait(), self._on_mail_again)
        parked, self._parked_wanted = self._parked_wanted, False
        self._claiming = True
        try:
            while True:
                if self._doubtful:
                    await self._adopt_unknown()
                try:
                    return await self._claim_all(mail, parked)
                except _LostAnswerError:
                    continue
        finally:
            self._claiming = False
            if self._missed:
                missed, self._missed = self._missed, set()
                self.on_runs(list(missed))

    async def _claim_all(self, mail: bool, parked: bool) -> None:
        """Claim until there is no more, or no more room."""
        if self._suspects_wanted and not self._engine.suspects.trying and (room := self._engine.room()) > 0:
            # Half of the room: those that have lived through their trial may stay long, and others are to go on.
            claimed = await self._claim(claims.claim_suspects, min(max(1, room // 2), MOST_CLAIMED))
            self._suspects_wanted = False
            await self._admit(claimed)
        while (room := min(self._engine.room(), MOST_CLAIMED)) > 0:
            claimed = await self._claim(claims.claim_due, room)
            # At once, so that nothing has to be found again should the next answer be lost.
            await self._admit(claimed)
            if mail and len(claimed) < room:
                # Its cost grows with the mail that nobody may take yet, and every start of a run hints at one to claim.
                messaged = await self._claim(self._mail_budget.charging(claims.claim_mail), room - len(claimed))
                await self._admit(messaged)
                claimed += messaged
            if parked and len(claimed) < room:
                untried = await self._claim(claims.claim_parked, room - len(claimed))
                await self._admit(untried)
                claimed += untried
            if len(claimed) < room:
                self._backlog = False
                # Asked for meanwhile, or mail put off: then a later round answers.
                if not self._claim_wanted.is_set() and not self._mail_wanted:
                    self._looked.set()
                return
        self._backlog = True
        self._mail_wanted = self._mail_wanted or mail
        self._parked_wanted = self._parked_wanted or parked

    async def _claim(self, claim: Callable[..., Awaitable[list[ClaimedRun]]], *limit: int) -> list[ClaimedRun]:
        """Claim runs.

        Raises:
            _LostAnswerError: some may have been claimed of which nobody knows.
        """

        async def once(connection: psycopg.AsyncConnection[Any]) -> list[ClaimedRun]:
            if self._doubtful:
                raise _LostAnswerError
            return await claim(connection, self._worker_id, self._loaded, *limit)

        return await self._link.use(once)

    async def _admit(self, claimed: list[ClaimedRun]) -> None:
        if not claimed:
            return
        again = [run.identity.id for run in claimed if not run.is_new]
        standing = await self._ask(claims.claimed_again, again) if again else {}
        sizes = {run_id: found.events for run_id, found in standing.items()}
        has_mail = {run.identity.id for run in claimed if run.has_mail}
        has_mail.update(run_id for run_id, found in standing.items() if found.has_mail)
        beats = await self._ask(claims.heartbeats_of_runs, again) if again else {}
        if successors := [run.identity.id for run in claimed if run.is_successor]:
            await self._ask(self._chains.begun, successors)
            has_mail.update(successors)
        for group in claims.grouped(claimed, sizes):
            lengths = {run.identity.id: sizes.get(run.identity.id, 0) for run in group}
            histories = {} if sizes.keys().isdisjoint(lengths) else await self._ask(claims.load_histories, lengths)
            mail: dict[UUID, list[Message]] = {}
            if not has_mail.isdisjoint(lengths):
                for message in await self._unread(set(lengths)):
                    mail.setdefault(message.run_id, []).append(message)
            for run, run_id in zip(group, lengths, strict=True):
                queued = standing[run_id].queued if run_id in standing else ()
                self._engine.admit(run, histories.get(run_id, []), mail.get(run_id, []), queued, beats.get(run_id))

    # -- messages -----------------------------------------------------------------------------------------------

    async def _read_forever(self) -> None:
        while True:
            await self._news.wait()
            await self._answer(self._news, self._read)

    async def _read(self) -> None:
        run_ids, everything, strays_of = self._news_of, self._news_of_all, self._strays_of
        self._news_of, self._news_of_all, self._strays_of = set(), False, set()
        if everything:
            strays_of |= await self._find_strays()
        if strays_of:
            run_ids |= await self._forward(strays_of)
        if everything:
            messages = await self._unread(None)
        elif run_ids:
            messages = await self._unread(run_ids)
        else:
            return
        self._engine.mail.deliver(messages)
        if everything and not self._news_of_all:
            self._read_all.set()

    async def _unread(self, run_ids: set[UUID] | None) -> list[Message]:
        """Return the unread messages of these runs, or of all that this worker has, in the order they were sent."""
        before = self._chains.before(run_ids)
        for _ in range(MOST_READS):
            self._engine.mail.reading()
            if run_ids is None:
                messages = await self._ask(claims.unread_of_worker, self._worker_id, before, MOST_POLLED)
            else:
                messages = await self._ask(claims.unread_of_runs, run_ids | before)
            late = [message for message in messages if message.run_id in before]
            if not late:
                return messages
            await self._forward({message.run_id for message in late})
        # Somebody else is at it and not done yet: what was sent after it has to wait.
        if held_up := self._chains.after({message.run_id for message in late if message.kind != "child"}):
            self._held_up |= held_up
            asyncio.get_running_loop().call_later(STRAYS_DELAY, self._read_held_up)
        return [message for message in messages if message.run_id not in held_up]

    def _read_held_up(self) -> None:
        held_up, self._held_up = self._held_up, set()
        self.on_runs(list(held_up))

    async def _find_strays(self) -> set[UUID]:
        # Its cost grows with all the mail that lies unread, and most of what it looks for has been found by then.
        if not self._strays_budget.allows():
            return set()
        return set(await self._ask(self._strays_budget.charging(forwarding.find_strays)))

    async def _forward(self, run_ids: set[UUID]) -> set[UUID]:
        """Bring mail to the tips of chains; returns those tips that are this worker's."""
        news = await self._ask(forwarding.forward, run_ids)
        if news:
            self._on_forwarded(news)
        return {run_id for run_id, owner in news.items() if owner == self._worker_id}

    async def _poll_forever(self) -> None:
        # Never quite the same pause, so that nodes started together do not ask together for ever.
        place = 0.0
        looked = time.monotonic()
        while True:
            place = (place + 0.618) % 1.0
            await asyncio.sleep(self._poll_interval * (0.8 + 0.2 * place))
            self._chains.forget()
            # Mostly there is nothing, and one look says so for all that would look for something.
            self._on_found(await self.use(lambda connection: claims.look(connection, self._worker_id)))
            # The look after the connection broke is not enough: the server may have been at the claim for longer.
            if time.monotonic() - looked >= STRANGERS_EVERY:
                looked = time.monotonic()
                self._doubt()
