"""Finding out how a piece of code is awaited: by the loop alone, or by somebody who drives it with ``send``."""

from __future__ import annotations

import dis
from itertools import pairwise
from types import CodeType, FrameType

from continuum.core.effects import Effect
from continuum.core.loop import DeterministicLoop

__all__ = ["awaited_by_its_task"]

# The loop calls a task, which is C and has no frame of its own, and the task resumes its coroutine. One that was made
# of an effect itself resumes that.
_LOOP = DeterministicLoop.run_ready.__code__
_EFFECT = Effect.send.__code__
# Where code awaits: an await, an "async for", an "async with" and a "yield from" all come down to one instruction.
_AWAITS = "SEND"
_MOST = 4096

_places: dict[int, tuple[CodeType, frozenset[int]]] = {}


def awaited_by_its_task(frame: FrameType | None) -> bool:
    """Tell whether all that stands between a frame and the run's loop does nothing but await.

    Then whatever is awaited there is all that the task does until it has it. Code that drives a coroutine by hand, with
    ``send``, may do something else meanwhile, and is not told from the coroutine that it drives by anything but the
    instruction where it stands.
    """
    while frame is not None:
        code = frame.f_code
        if code is _LOOP:
            return True
        if code is not _EFFECT:
            known = _places.get(id(code))
            if frame.f_lasti not in (known[1] if known is not None else _find(code)):
                return False
        frame = frame.f_back
    return False


def _find(code: CodeType) -> frozenset[int]:
    """Find the offsets at which a frame of this code stands while it awaits, and keep them."""
    offsets: set[int] = set()
    for instruction, following in pairwise(dis.get_instructions(code)):
        if instruction.opname == _AWAITS:
            # Some versions have a frame stand at the cache behind the instruction.
            offsets.update(range(instruction.offset, following.offset, 2))
    if len(_places) >= _MOST:  # of a process that makes code without end
        _places.clear()
    found = frozenset(offsets)
    _places[id(code)] = code, found  # the code is kept, so that no other one gets its id
    return found
