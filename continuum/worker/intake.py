"""What comes in to a node: runs to claim, and messages for the runs it has.

Hints say when to look; the poll looks anyway. Nothing here depends on a hint having arrived.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any
from uuid import UUID

import psycopg

from continuum.worker import claims
from continuum.worker.claims import ClaimedRun
from continuum.worker.connections import Backoff
from continuum.worker.engine import Engine
from continuum.worker.live import Message

__all__ = ["Intake"]

logger = logging.getLogger("continuum.worker")

# Runs claimed by one statement: a share of what may run at once, so that several workers divide a backlog fairly.
MOST_CLAIMED = 200
# Messages fetched by one poll; what is left comes with the next.
MOST_POLLED = 5_000
# Events read at once: a bound on memory, and on how long the loop is kept from other work.
MOST_LOADED = 5_000
# The share of the time that may go into looking for runs with mail: beyond it hints have to wait, for the poll at most.
MAIL_SHARE = 0.05


class Intake:
    """Claims runs and fetches messages for one worker, over one connection.

    Args:
        connect: opens an autocommit connection.
        worker_id: the worker.
        workflows: names of the workflows it can run.
        engine: takes up what comes in.
        poll_interval: seconds between looks that no hint asked for.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[psycopg.AsyncConnection[Any]]],
        worker_id: int,
        workflows: Iterable[str],
        engine: Engine,
        *,
        poll_interval: float,
    ) -> None:
        self._connect = connect
        self._worker_id = worker_id
        self._workflows = sorted(set(workflows))
        self._engine = engine
        self._poll_interval = poll_interval
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._connected_before = False
        self._link = asyncio.Lock()
        self._claim_wanted = asyncio.Event()
        self._mail_wanted = True
        self._mail_not_before = 0.0
        self._backlog = False
        self._suspects_wanted = True
        engine.suspects.on_free = self.on_suspects
        self._claiming = False
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
        if self._connection is not None:
            await self._connection.close()

    # -- hints --------------------------------------------------------------------------------------------------

    def on_ready(self) -> None:
        """A run that nobody owns is due."""
        self._claim_wanted.set()

    def on_mail(self) -> None:
        """A run that nobody owns has mail."""
        self._mail_wanted = True
        self._claim_wanted.set()

    def on_suspects(self) -> None:
        """The next run that is suspected of killing its workers may be tried."""
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
            strangers = [run_id for run_id in run_ids if run_id not in live]
            if strangers and self._claiming:
                self._missed.update(strangers)
            elif strangers:
                self.on_mail()  # nobody's, or given back meanwhile: the message makes a run claimable
        self._news.set()

    def look_at_all(self) -> None:
        """Hints may have been missed, or the time for a look has come."""
        self._news_of_all = True
        self._news.set()
        self._mail_not_before = 0.0
        self._suspects_wanted = True
        self.on_mail()

    async def nothing_left(self) -> bool:
        """Look for runs to claim once more; returns whether there was nothing to do."""
        self._looked.clear()
        self._read_all.clear()
        self.look_at_all()
        await self._looked.wait()
        await self._read_all.wait()
        return not self._engine.busy and not self._news.is_set()

    # -- the connection -----------------------------------------------------------------------------------------

    async def use(self, fn: Callable[[psycopg.AsyncConnection[Any]], Awaitable[Any]]) -> Any:
        """Run ``fn`` on the connection, reconnecting as often as it takes."""
        backoff = Backoff()
        async with self._link:
            while True:
                try:
                    if self._connection is None:
                        self._connection = await self._connect()
                        if self._connected_before:
                            await self._adopt_unknown(self._connection)
                        self._connected_before = True
                    return await fn(self._connection)
                except (psycopg.OperationalError, psycopg.InterfaceError, OSError) as error:
                    logger.warning("the connection for claims failed: %s", " ".join(str(error).split()))
                    if self._connection is not None:
                        await self._connection.close()
                        self._connection = None
                    await asyncio.sleep(backoff.next())

    async def _adopt_unknown(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Take up runs that a claim gave to this worker although its answer never arrived."""
        live = self._engine.live
        # Known by their tokens before or after: one that is given back meanwhile is not to be taken up again, and one
        # that is known from an earlier claim only is.
        before = {run_id: run.token for run_id, run in live.items()}
        owned = await claims.owned_by(connection, self._worker_id)
        known = set(before.items()) | {(i, run.token) for i, run in live.items()}
        await self._admit(connection, [run for run in owned if (run.identity.id, run.token) not in known])

    # -- claiming -----------------------------------------------------------------------------------------------

    async def _claim_forever(self) -> None:
        while True:
            await self._claim_wanted.wait()
            self._claim_wanted.clear()
            await self.use(self._claim_round)

    async def _claim_round(self, connection: psycopg.AsyncConnection[Any]) -> None:
        mail = self._mail_wanted and time.monotonic() >= self._mail_not_before
        if mail:
            self._mail_wanted = False
        self._claiming = True
        try:
            if self._suspects_wanted and not self._engine.suspects.trying and self._engine.room() > 0:
                self._suspects_wanted = False
                await self._admit(connection, await claims.claim_suspect(connection, self._worker_id, self._workflows))
            while (room := min(self._engine.room(), MOST_CLAIMED)) > 0:
                claimed = await claims.claim_due(connection, self._worker_id, self._workflows, room)
                if mail and len(claimed) < room:
                    claimed += await self._claim_mail(connection, room - len(claimed))
                await self._admit(connection, claimed)
                if len(claimed) < room:
                    self._backlog = False
                    # Asked for meanwhile, or mail put off: then a later round answers.
                    if not self._claim_wanted.is_set() and not self._mail_wanted:
                        self._looked.set()
                    return
            self._backlog = True
            self._mail_wanted = self._mail_wanted or mail
        finally:
            self._claiming = False
            if self._missed:
                missed, self._missed = self._missed, set()
                self.on_runs(list(missed))

    async def _claim_mail(self, connection: psycopg.AsyncConnection[Any], limit: int) -> list[ClaimedRun]:
        began = time.monotonic()
        claimed = await claims.claim_mail(connection, self._worker_id, self._workflows, limit)
        now = time.monotonic()
        # Its cost grows with the mail that nobody may take yet, and every start of a run hints at something to claim.
        self._mail_not_before = now + (now - began) / MAIL_SHARE
        return claimed

    async def _admit(self, connection: psycopg.AsyncConnection[Any], claimed: list[ClaimedRun]) -> None:
        again = [run.identity.id for run in claimed if not run.is_new]
        has_mail = {run.identity.id for run in claimed if run.has_mail}
        sizes = await claims.history_sizes(connection, again) if again else {}
        for group in _groups(claimed, sizes):
            run_ids = [run.identity.id for run in group]
            histories = await claims.load_histories(connection, run_ids) if not sizes.keys().isdisjoint(run_ids) else {}
            mail: dict[UUID, list[Message]] = {}
            if not has_mail.isdisjoint(run_ids):
                self._engine.mail.reading()
                for message in await claims.unread_of_runs(connection, run_ids):
                    mail.setdefault(message.run_id, []).append(message)
            for run, run_id in zip(group, run_ids, strict=True):
                self._engine.admit(run, histories.get(run_id, []), mail.get(run_id, []))

    # -- messages -----------------------------------------------------------------------------------------------

    async def _read_forever(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            await self.use(self._read)

    async def _read(self, connection: psycopg.AsyncConnection[Any]) -> None:
        run_ids, everything = self._news_of, self._news_of_all
        self._news_of, self._news_of_all = set(), False
        self._engine.mail.reading()
        try:
            if everything:
                messages = await claims.unread_of_worker(connection, self._worker_id, MOST_POLLED)
            elif run_ids:
                messages = await claims.unread_of_runs(connection, run_ids)
            else:
                return
        except BaseException:
            self._news_of |= run_ids
            self._news_of_all = self._news_of_all or everything
            raise
        self._engine.mail.deliver(messages)
        if everything and not self._news_of_all:
            self._read_all.set()

    async def _poll_forever(self) -> None:
        # Never quite the same pause, so that nodes started together do not ask together for ever.
        place = 0.0
        while True:
            place = (place + 0.618) % 1.0
            await asyncio.sleep(self._poll_interval * (0.8 + 0.2 * place))
            self.look_at_all()


def _groups(claimed: list[ClaimedRun], sizes: Mapping[UUID, int]) -> Iterator[list[ClaimedRun]]:
    """Divide runs into groups whose histories together are not too long."""
    group: list[ClaimedRun] = []
    size = 0
    for run in claimed:
        events = sizes.get(run.identity.id, 0)
        if group and size + events > MOST_LOADED:
            yield group
            group, size = [], 0
        group.append(run)
        size += events
    if group:
        yield group
