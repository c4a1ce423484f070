"""What takes coroutines off the course their code describes: being given up, and going on as another run."""

from __future__ import annotations

import gc
import logging
from threading import get_ident
from typing import Any

from continuum.core.watching import Interrupted

__all__ = ["ContinueAsNew", "Released", "close_coroutine", "collecting"]

logger = logging.getLogger("continuum.run")


class Released(BaseException):
    """Ends the coroutines of a run that this process gives up. Nothing they do meanwhile is recorded."""


class ContinueAsNew(BaseException):
    """Leaves the workflow function on its way to a successor.

    Attributes:
        input: the successor's arguments, JSON text.
    """

    def __init__(self, input: str) -> None:
        super().__init__()
        self.input = input


def close_coroutine(coro: Any) -> None:
    """End a coroutine, or a generator's ``aclose()``, from the inside out.

    ``coro.close()`` would leave behind what awaits in a finally block further down: :class:`Released` is told to the
    innermost await, and again to each await that comes after it.
    """
    try:
        for _ in range(100):
            coro.throw(Released())
    except (StopIteration, Released):
        pass
    except Interrupted:
        raise
    except BaseException:
        logger.debug("a workflow raised while it was being released", exc_info=True)
    else:
        logger.warning("a workflow goes on awaiting while it is being released: %r is dropped", coro)


_collectors: set[int] = set()


def _watch(phase: str, info: dict[str, int]) -> None:
    if phase == "start":
        _collectors.add(get_ident())
    else:
        _collectors.discard(get_ident())


gc.callbacks.append(_watch)


def collecting() -> bool:
    """Whether this is called by the garbage collector, whose moments differ from replay to replay."""
    return get_ident() in _collectors
