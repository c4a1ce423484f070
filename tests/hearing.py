"""Listening to notifications, for tests of who is told what."""

import time
from contextlib import contextmanager

import psycopg
from psycopg import sql

__all__ = ["Ears", "listening_on"]


class Ears:
    """A session that listens; what it hears is a list of ``(channel, payload)``."""

    def __init__(self, connection):
        self.connection = connection
        self.heard = []

    def until(self, channel, timeout=25.0):
        """Listen until something comes on ``channel``; return everything heard before it, and forget it."""
        deadline = time.monotonic() + timeout
        while channel not in [each for each, _ in self.heard]:
            left = deadline - time.monotonic()
            assert left > 0, f"nothing on {channel} within {timeout} s, only {self.heard}"
            for notify in self.connection.notifies(timeout=left, stop_after=1):
                self.heard.append((notify.channel, notify.payload))
        position = [each for each, _ in self.heard].index(channel)
        before, self.heard = self.heard[:position], self.heard[position + 1 :]
        return before


@contextmanager
def listening_on(url, *channels):
    """Open a session that listens on ``channels``."""
    with psycopg.connect(url, autocommit=True, application_name="ears") as connection:
        for channel in channels:
            connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        yield Ears(connection)
