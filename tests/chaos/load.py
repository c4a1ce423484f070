"""Clients that start runs, talk to them and cancel them, while their connections break as well.

What a client knows for certain is what it was told: a call that returned. One whose connection broke may or may not
have taken place; it is made again where that does no harm, else noted as doubtful.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.db import InterfaceError, InternalError, OperationalError, connection

import continuum
from continuum.models import Run
from tests.app.models import Effect
from tests.chaos.workflows import KINDS

__all__ = ["Client", "Story"]

# The server is away, has cancelled a statement, or is a standby for now.
TROUBLE = (OperationalError, InterfaceError, InternalError)
# Kinds of runs, and how often each is started.
SHARES = {
    "steps": 6,
    "hurries": 3,
    "beats_on": 1,
    "times": 2,
    "collects": 3,
    "listens_twice": 3,
    "fans_out": 3,
    "books": 3,
    "goes_on": 3,
    "waits_for_nothing": 2,
    "shares": 3,
    "meets_gate": 2,
    "catches": 1,
    "queues_up": 1,
}
PATIENCE = 60.0


@dataclass
class Story:
    """A run that a client has started, and what the client knows of it.

    Attributes:
        sure: for each name of signals, the payloads that were acknowledged, in order.
        doubtful: payloads of which it is not known whether they were sent.
    """

    kind: str
    key: str
    run_id: UUID
    arguments: tuple[Any, ...]
    sure: dict[str, list[int]] = field(default_factory=dict)
    doubtful: set[int] = field(default_factory=set)
    told: bool = False  # all there was to say


class Client(threading.Thread):
    """Starts so many runs within so many seconds, and talks to them until all is said.

    Args:
        name: what its keys begin with.
        seed: decides what it starts and says, and in which order.
        runs: how many it starts.
        seconds: over which time.
    """

    def __init__(self, name: str, seed: int, runs: int, seconds: float) -> None:
        super().__init__(name=name, daemon=True)
        self.stories: list[Story] = []
        self.violations: list[str] = []
        self.failure: BaseException | None = None
        self._chance = random.Random(f"{name} {seed}")
        self._runs, self._seconds = runs, seconds
        self._talks: deque[tuple[Story, Iterator[None]]] = deque()

    def run(self) -> None:
        try:
            began = time.monotonic()
            while len(self.stories) < self._runs or self._talks:
                due = min(self._runs, int((time.monotonic() - began) / self._seconds * self._runs) + 1)
                if len(self.stories) < due:
                    self._begin()
                if self._talks:
                    self._go_on()
                time.sleep(0.002)
        except BaseException as error:
            self.failure = error
        finally:
            with suppress(Exception):
                connection.close()

    def _begin(self) -> None:
        kind = self._chance.choices(list(SHARES), list(SHARES.values()))[0]
        key = f"{self.name}-{len(self.stories)}"
        arguments: tuple[Any, ...] = (key,)
        if kind == "books":
            arguments += (self._chance.random() < 0.6,)
        elif kind == "waits_for_nothing":
            arguments += (self._chance.randrange(3),)
        elif kind == "shares":
            # Shared by all clients, a few runs at a time.
            arguments += (f"shared-{len(self.stories) // 60}-{self._chance.randrange(2)}",)
        run, _ = self._insist(lambda: continuum.get_or_start(KINDS[kind], *arguments, idempotency_key=key))
        story = Story(kind, key, run.id, arguments)
        self.stories.append(story)
        talk = getattr(self, f"_talk_{kind}", None)
        if talk is None:
            story.told = True
        else:
            self._talks.append((story, talk(story)))

    def _go_on(self) -> None:
        self._talks.rotate(self._chance.randrange(4))
        story, talk = self._talks[0]
        try:
            next(talk)
        except StopIteration:
            story.told = True
            self._talks.popleft()

    # What is said, one call a step

    def _talk_collects(self, story: Story) -> Iterator[None]:
        for number in range(1, self._chance.randrange(3, 14)):
            self._signal(story, "word", number)
            yield
        self._signal(story, "word", None)

    def _talk_listens_twice(self, story: Story) -> Iterator[None]:
        for number in range(1, self._chance.randrange(2, 12)):
            self._signal(story, self._chance.choice(("left", "right")), number)
            yield
        for name in ("left", "right"):
            self._signal(story, name, None)
            yield

    def _talk_waits_for_nothing(self, story: Story) -> Iterator[None]:
        # Cancelled at any point of its life.
        until = time.monotonic() + self._chance.choice((0.0, 0.1, 0.5, 2.0))
        while time.monotonic() < until:
            yield
        with suppress(continuum.RunNotActiveError):  # an earlier try was heard
            self._insist(lambda: continuum.cancel(story.run_id, reason="chaos"))

    def _talk_meets_gate(self, story: Story) -> Iterator[None]:
        key = f"{story.key}:passed"
        look = 0.0
        while True:
            if time.monotonic() > look:
                look = time.monotonic() + 0.5
                if self._insist(lambda: continuum.get_run(story.run_id)).state == "failed":
                    break
            yield
        self._insist(
            lambda: Effect.objects.filter(key=f"gate:{key}").exists() or Effect.objects.create(key=f"gate:{key}")
        )
        with suppress(continuum.RunStateError):  # an earlier try was heard
            self._insist(lambda: continuum.retry(story.run_id))

    def _signal(self, story: Story, name: str, number: int | None) -> None:
        sure = story.sure.setdefault(name, [])
        # The last word must arrive; of the others some may be repeated, and some may be lost on the way.
        if number is not None and self._chance.random() < 0.4:
            try:
                continuum.signal(story.run_id, name, number)
            except TROUBLE:
                self._reconnect()
                story.doubtful.add(number)
                return
        else:
            delivery = f"{name}:{number}"
            self._insist(lambda: continuum.signal(story.run_id, name, number, delivery_id=delivery))
            again = self._chance.random() < 0.3
            if again and self._insist(lambda: continuum.signal(story.run_id, name, number, delivery_id=delivery)):
                self.violations.append(f"{story.kind} {story.run_id}: {delivery} was taken twice")
        if number is not None:
            sure.append(number)

    # Connections

    def _insist(self, call: Callable[[], Any]) -> Any:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return call()
            except TROUBLE:
                if time.monotonic() > until:
                    raise
                self._reconnect()
                time.sleep(0.05)

    def _reconnect(self) -> None:
        with suppress(Exception):
            connection.close()
        connection.connection = None


def tip_of(story: Story) -> Run:
    """Return the run that a story has come to."""
    run = Run.objects.get(id=story.run_id)
    while run.continued_to_run_id is not None:
        run = Run.objects.get(id=run.continued_to_run_id)
    return run
