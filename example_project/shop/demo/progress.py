"""Progress for a terminal (a bar) and for a file or a pipe (a line now and then)."""

import sys
from contextlib import AbstractContextManager
from shutil import get_terminal_size

from django.core.management.base import OutputWrapper
from tqdm import tqdm


class Progress(AbstractContextManager):
    """Show how many orders have ended."""

    def __init__(self, total: int, stream: OutputWrapper) -> None:
        self._total, self._stream, self._shown = total, stream, 0
        self._bar = None
        if stream.isatty():
            # Not tqdm's own look at the terminal's size: one that gives none would be shown no bar at all.
            columns, rows = get_terminal_size()
            self._bar = tqdm(
                total=total,
                desc="   orders finished",
                unit=" orders",
                file=sys.stdout,
                ncols=min(100, columns),
                nrows=rows,
            )

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, finished: int) -> None:
        """Move to ``finished`` of the total; without a terminal, one line for every fifth."""
        if self._bar is not None:
            self._bar.update(finished - self._bar.n)
            return
        if finished * 5 // self._total > self._shown * 5 // self._total:
            self.say(f"   {finished} of {self._total} orders finished")
        self._shown = finished

    def say(self, line: str) -> None:
        """Write a line without tearing the bar."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stdout)
        else:
            self._stream.write(line)
            self._stream.flush()
