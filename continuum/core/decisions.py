"""What code decides for itself while it runs, and must decide alike in every replay: side effects, patches, draws."""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Any

from continuum import values
from continuum.core.drift import told
from continuum.core.failures import describe_exception
from continuum.core.history import Event, EventType
from continuum.core.loop import Scope
from continuum.core.outcomes import blamed
from continuum.core.releasing import Released
from continuum.exceptions import ActivityError, DurableValueError

__all__ = ["draw", "go_past", "patched", "side_effect"]


def side_effect(execution: Any, fn: Any, args: tuple[Any, ...]) -> Any:
    """Run ``fn`` live and have what it returns journaled, or return what is journaled."""
    if execution.closing:
        raise Released
    execution.loop.refuse_aside("side_effect()")
    scope = execution.loop.scope()
    scope.effects += 1
    command_id = f"{scope.path}:{scope.effects}"
    name = getattr(fn, "__qualname__", type(fn).__name__)
    returns = values.return_annotation(fn)
    event = execution.recorded.pop(command_id, None)
    if event is not None:
        execution.met(event)
        if event.type != EventType.SIDE_EFFECT or event.name != name:
            if execution.retry is None:
                execution.raise_drift(command_id, told(event), f"side_effect {name}")
            execution.retry.drop(event)
            event = None
    if event is None:
        if execution.replaying and execution.retry is None:
            execution.raise_drift(command_id, "nothing", f"side_effect {name}")
        event = execution.decide(
            EventType.SIDE_EFFECT, command_id, name, _run_aside(execution, fn, args, name, returns)
        )
    data = json.loads(event.data)
    if "refused" in data:
        raise blamed(DurableValueError(*data["refused"]), command_id)
    if "error" in data:
        error = data["error"]
        raise blamed(ActivityError(name, 1, error["type"], error["message"], error.get("details")), command_id)
    return values.restore(data["result"], returns)


def _run_aside(execution: Any, fn: Any, args: tuple[Any, ...], name: str, returns: Any) -> str:
    # A replay does not run the function: nothing it does may count in the code around it.
    execution.loop.aside = Scope("~aside")
    try:
        value = values.encode(fn(*args), returns, path=f"side_effect {name}", max_bytes=execution.max_bytes)
    except DurableValueError as exc:
        return json.dumps({"refused": [exc.path, exc.reason]})
    except BaseException as exc:
        return json.dumps({"error": describe_exception(exc)})
    finally:
        execution.loop.aside = None
    return f'{{"result":{value}}}'


def go_past(execution: Any, event: Event) -> None:
    """Go past what is not delivered. A decision was asked for, and counted, where the code made it."""
    if event.type == EventType.VERSION_ADOPTED:
        execution.met(event)
        return
    if event.command_id not in execution.recorded:
        return
    if event.type == EventType.PATCHED:
        # A call of patched() may go once its old branch is gone: what is left is the branch it chose.
        execution.patches[event.name or ""] = True
    elif execution.retry is not None:
        execution.retry.drop(event)
    else:
        raise execution.drifted(event, told(event), execution.asked_instead())
    del execution.recorded[event.command_id]
    execution.met(event)


def patched(execution: Any, name: str) -> bool:
    """Decide on a patch, once for the whole run."""
    decision = execution.patches.get(name)
    if decision is None:
        if execution.closing:
            return False
        execution.loop.refuse_aside("patched()")
        command_id = f"patch:{name}"
        event = execution.recorded.pop(command_id, None)
        if event is not None:
            execution.met(event)
            decision = True
        elif execution.replaying:
            decision = False
        else:
            execution.decide(EventType.PATCHED, command_id, name, "{}")
            decision = True
        execution.patches[name] = decision
    return decision


def draw(execution: Any, size: int) -> bytes:
    """Return bytes that look random and depend on nothing but the run's seed and the place in its code."""
    scope = execution.loop.scope()
    scope.draws += 1
    key = execution.run.randomness.bytes
    return blake2b(f"{scope.path}#{scope.draws}".encode(), digest_size=size, key=key).digest()
