"""Children, and going on as another run, as workflow code says them."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, NoReturn
from uuid import UUID

from continuum.core.children import ChildOptions
from continuum.core.commands import Command
from continuum.core.definitions import WorkflowDefinition, registry
from continuum.core.effects import Effect, current_execution
from continuum.core.names import namespace as checked_namespace, text
from continuum.core.releasing import ContinueAsNew
from continuum.values.plain import plain_json

__all__ = ["Child", "continue_as_new", "start_child"]


class Child:
    """A child that was started. Await it, as often as you like, for its result.

    Giving up such an await leaves the child alone; :meth:`cancel` cancels it.

    Raises:
        ChildError: from awaiting it, if it failed or was cancelled.
    """

    __slots__ = ("_command", "_execution")

    def __init__(self, execution: Any, command: Command) -> None:
        self._execution = execution
        self._command = command

    @property
    def id(self) -> UUID:
        """The child's run id, the same in every replay."""
        return self._command.child.id

    @property
    def workflow(self) -> str:
        """The name of the child's workflow."""
        return self._command.name or ""

    def done(self) -> bool:
        """Whether the child is known to have ended."""
        return self._command.future.done()

    def cancel(self, reason: str = "") -> None:
        """Ask the child to cancel itself; awaiting it tells what it made of that. Nothing happens if it has ended."""
        if not isinstance(reason, str):
            raise TypeError(f"reason must be a string, not {reason!r}")
        self._execution.asks.cancel_child(self._command, reason)

    def __await__(self) -> Generator[Any, Any, Any]:
        # Shielded: others may wait for the same child.
        return asyncio.shield(self._command.future).__await__()

    def __repr__(self) -> str:
        return f"<child {self.workflow} {self.id}>"


class _Starting(Effect):
    """Starts a child and is done: what the child comes to is asked of the :class:`Child`."""

    __slots__ = ()

    def compensated_by(self, undo: Any) -> Effect:
        raise TypeError(
            "start_child() does not wait for what is to be undone: await the workflow itself, or its handle"
        )

    def _drive(self) -> Generator[Any, Any, Any]:
        execution = self.execution
        if execution.closing:
            yield from self._refused()
        command = execution.issue(self)
        command.detached = True
        # Nobody has to ask what became of it.
        command.future.add_done_callback(lambda future: future.cancelled() or future.exception())
        return Child(execution, command)


def start_child(
    flow: WorkflowDefinition | str,
    *args: Any,
    id: str | None = None,
    namespace: str | None = None,
    attributes: dict[str, Any] | None = None,
) -> Effect:
    """Start a child workflow without waiting for its end: ``child = await start_child(flow, x)``, and ``await child``.

    A child outlives a parent that completes or fails. Cancelling the parent cancels it.

    Args:
        flow: the workflow, or its registered name.
        *args: its arguments.
        id: goes into the child's run id, which follows from it, the parent and the place in its code.
        namespace: where the child belongs; with its parent unless given.
        attributes: what it can be found by, a dict of plain JSON values; its parent's unless given.

    Returns:
        An effect to await, whose result is the :class:`Child`.

    Raises:
        ChildDepthError: from awaiting it: runs are nested too deep already.
        UnknownWorkflowError, DurableValueError, TypeError, ValueError: an argument is wrong; nothing is started.
    """
    execution = current_execution("start_child")
    if isinstance(flow, str):
        flow = registry.workflow(flow)
    if not isinstance(flow, WorkflowDefinition):
        raise TypeError(f"flow must be a function decorated with @workflow, or the name of one, not {flow!r}")
    options = ChildOptions(
        None if id is None else text("id", id),
        None if namespace is None else checked_namespace(namespace),
        None if attributes is None else plain_json("attributes", attributes),
    )
    return _Starting(execution, "child", flow.name, flow, args, {}, options)


def continue_as_new(*args: Any) -> NoReturn:
    """End this run, ``completed``, and go on as a new run of the same workflow with a fresh history. Never returns.

    The successor has the namespace, the attributes and the deadline of this run, the signals nobody has taken yet, and
    the children that still run. Whoever waits for this run, or signals or cancels it, reaches its successor.

    Args:
        *args: the successor's arguments.

    Raises:
        TypeError: they do not fit the workflow.
        DurableValueError: one of them cannot be journaled.
    """
    execution = current_execution("continue_as_new")
    execution.loop.refuse_aside("continue_as_new()")
    definition = execution.definition
    raise ContinueAsNew(definition.encode_arguments(args, {}, path="input", max_bytes=execution.max_bytes))
