"""Log lines an operator can read, for projects that have not arranged for their own."""

from __future__ import annotations

import logging
import os
import sys
from datetime import datetime
from typing import TextIO

__all__ = ["ReadableFormatter", "set_up", "wants_colour"]

_COLOURS = {
    logging.DEBUG: "\x1b[2m",
    logging.WARNING: "\x1b[33m",
    logging.ERROR: "\x1b[31m",
    logging.CRITICAL: "\x1b[1;31m",
}
_PLAIN = "\x1b[0m"
_LEVELS = {0: logging.WARNING, 1: logging.INFO}


class ReadableFormatter(logging.Formatter):
    """``12:00:01.234 INFO     shop-1  message``: time, level, worker, message, and the traceback if there is one.

    Args:
        worker: name of the worker.
        colour: paint what is not plain information.
    """

    def __init__(self, worker: str, *, colour: bool = False) -> None:
        super().__init__()
        self.worker = worker
        self.colour = colour

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        moment = datetime.fromtimestamp(record.created).astimezone()
        line = f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03} {record.levelname:<8} {self.worker}  {text}"
        colour = _COLOURS.get(record.levelno, "") if self.colour else ""
        return f"{colour}{line}{_PLAIN}" if colour else line


def wants_colour(stream: TextIO) -> bool:
    """Return whether colours help there: on a terminal, unless ``NO_COLOR`` is set (https://no-color.org)."""
    return not os.environ.get("NO_COLOR") and stream.isatty()


def set_up(worker: str, verbosity: int = 1, stream: TextIO | None = None) -> logging.Handler | None:
    """Have the package's log lines written to ``stream`` (standard error), unless the project handles them already.

    Args:
        worker: name of the worker, part of each line.
        verbosity: Django's: 0 for warnings and worse, 1 for what an operator wants to know, 2 and 3 for all.

    Returns:
        The handler that was added, or None when the project has one.
    """
    logger = logging.getLogger("continuum")
    if logging.getLogger("continuum.worker").hasHandlers():
        return None
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(ReadableFormatter(worker, colour=wants_colour(stream)))
    logger.addHandler(handler)
    logger.setLevel(_LEVELS.get(verbosity, logging.DEBUG))
    return handler
