"""Doing things in other threads, for tests of what happens at the same time."""

import threading

from django.db import connections

__all__ = ["Background"]


class Background:
    """Calls a function in a thread of its own, with database connections of its own, which are closed at its end."""

    def __init__(self, function, *args, **kwargs):
        self._call = (function, args, kwargs)
        self._value = None
        self._error = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        function, args, kwargs = self._call
        try:
            self._value = function(*args, **kwargs)
        except BaseException as error:
            self._error = error
        finally:
            connections.close_all()

    @property
    def done(self):
        return not self._thread.is_alive()

    def result(self, timeout=25.0):
        """Return what the function returned, or raise what it raised."""
        self._thread.join(timeout)
        assert self.done, f"still running after {timeout} s: {self._call[0]}"
        if self._error is not None:
            raise self._error
        return self._value
