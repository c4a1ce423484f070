"""What callers hand to the client, checked and put into the form the statements take.

Everything is checked before anything is written, and every complaint names the argument.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from continuum import values
from continuum.conf import settings as continuum_settings
from continuum.core.definitions import WorkflowDefinition, registry
from continuum.core.durations import seconds
from continuum.core.names import namespace as checked_namespace, text
from continuum.declared import described, misfit
from continuum.exceptions import DurableValueError, SignalRefusedError, UnknownWorkflowError
from continuum.models import Run
from continuum.moments import instant
from continuum.values.plain import plain_json

__all__ = [
    "alias_for",
    "declared_signal",
    "definition_of",
    "encode_attributes",
    "encode_input",
    "encode_inputs",
    "encode_value",
    "namespace_filter",
    "run_uuid",
    "start_options",
    "text",
    "typed_payload",
    "wait_seconds",
]

_LONGEST_TIMEOUT = 100 * 365 * 86_400


def definition_of(flow: WorkflowDefinition | str) -> WorkflowDefinition:
    """Return the workflow that ``flow`` is, or names.

    Raises:
        UnknownWorkflowError: no workflow of that name is loaded.
        TypeError: ``flow`` is something else.
    """
    if isinstance(flow, WorkflowDefinition):
        return flow
    if isinstance(flow, str):
        return registry.workflow(flow)
    what = getattr(flow, "__qualname__", None) or repr(flow)
    raise TypeError(f"flow must be a function decorated with @workflow, or the name of one, not {what}")


def alias_for(using: str | None, run_id: object = None) -> str:
    """Return the database to work in: the one asked for, the run's own, or the configured one."""
    if using is not None:
        return using
    if isinstance(run_id, Run) and run_id._state.db:
        return run_id._state.db
    return continuum_settings.DATABASE


def run_uuid(run_id: UUID | str | Run) -> UUID:
    """Return the id that ``run_id`` is, spells or has.

    Raises:
        ValueError: a string that is no UUID.
        TypeError: something else.
    """
    if isinstance(run_id, UUID):
        return run_id
    if isinstance(run_id, Run):
        return run_id.id
    if isinstance(run_id, str):
        try:
            return UUID(run_id)
        except ValueError:
            raise ValueError(f"run_id must be a UUID, which {run_id!r} is not") from None
    raise TypeError(f"run_id must be a UUID, its string, or a Run, not {run_id!r}")


def namespace_filter(namespace: str | None) -> str | None:
    """Return the namespace a run must be in, None for any."""
    return None if namespace is None else checked_namespace(namespace)


def wait_seconds(timeout: Any) -> float | None:
    """Return how long to wait at most, in seconds; None for ever."""
    return None if timeout is None else seconds(timeout, "timeout")


def start_options(
    namespace: str, attributes: Mapping[str, Any] | None, start_at: datetime | None, timeout: Any, priority: int
) -> dict[str, Any]:
    """Return the options of a start as parameters of the statement.

    Raises:
        TypeError, ValueError: an option is wrong; the message names it.
    """
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise TypeError(f"priority must be an int, not {priority!r}")
    if not -(2**15) <= priority < 2**15:
        raise ValueError(f"priority must be between -32768 and 32767, not {priority}")
    return {
        "namespace": namespace if namespace == "default" else checked_namespace(namespace),
        "attributes": encode_attributes(attributes) if attributes is not None else "{}",
        "start_at": None if start_at is None else _moment("start_at", start_at),
        "timeout_us": None if timeout is None else _timeout_us(timeout),
        "priority": priority,
    }


def encode_attributes(attributes: Any) -> str:
    """Return attributes as JSON text.

    Raises:
        TypeError: not a dict, or something in it is no plain JSON value.
        ValueError: something in it cannot be stored.
        DurableValueError: they are too big.
    """
    return _limited("attributes", plain_json("attributes", attributes), continuum_settings.MAX_VALUE_BYTES)


def encode_input(definition: WorkflowDefinition, args: tuple[Any, ...]) -> str:
    """Return the arguments of a run as JSON text, checked against the workflow's signature.

    Raises:
        TypeError: they do not fit the signature.
        DurableValueError: one of them cannot be stored, or they are too big; the path begins with ``input``.
    """
    limit = continuum_settings.MAX_VALUE_BYTES
    return _limited("input", definition.encode_arguments(args, {}, path="input", max_bytes=limit), limit)


def encode_inputs(definition: WorkflowDefinition, inputs: Iterable[Any]) -> list[str]:
    """Return the single arguments of many runs as JSON texts.

    Raises:
        TypeError: ``inputs`` cannot be iterated over, or the workflow does not take one argument.
        DurableValueError: one of them cannot be stored; the path begins with ``inputs[<index>]``.
    """
    if isinstance(inputs, str | bytes | Mapping) or not isinstance(inputs, Iterable):
        raise TypeError(f"inputs must be an iterable of the workflow's single arguments, not {type(inputs).__name__}")
    definition.bind_arguments((None,), {})
    annotation = definition.parameters.at(0)
    limit = continuum_settings.MAX_VALUE_BYTES - 2
    encode = values.encode
    return [
        f"[{encode(value, annotation, path=f'inputs[{index}]', max_bytes=limit)}]" for index, value in enumerate(inputs)
    ]


def encode_value(value: Any, annotation: Any, path: str) -> str:
    """Return a value as JSON text.

    Raises:
        DurableValueError: it cannot be stored, or is too big.
    """
    return values.encode(value, annotation, path=path, max_bytes=continuum_settings.MAX_VALUE_BYTES)


def declared_signal(run_id: UUID, workflow: str, version: int, name: str, payload: Any) -> Any:
    """Check a signal against what the run's workflow, where it is loaded, declares; return the type declared for it.

    Raises:
        SignalRefusedError: the workflow declares its signals, and this is none of them.
    """
    try:
        signals = registry.workflow(workflow, version).signals
    except UnknownWorkflowError:
        return None  # not loaded here: the worker that has it will tell
    if signals is None:
        return None
    if name not in signals:
        known = ", ".join(sorted(signals)) or "none"
        raise SignalRefusedError(run_id, name, f"{workflow} declares {known}")
    if (found := misfit(signals[name], payload)) is not None:
        path, value = found
        wrong = f"not {type(value).__qualname__}" if path == "payload" else f"but {path} is {type(value).__qualname__}"
        raise SignalRefusedError(run_id, name, f"{workflow} declares it with {described(signals[name])}, {wrong}")
    return signals[name]


def typed_payload(run: Run, name: str, value: Any) -> Any:
    """Return what a person has written as JSON as the type that the run's workflow declares for the signal.

    A dataclass or a model is a dict then; what JSON does not know is written as histories show it, such as
    ``{"~decimal": "1.50"}``. What fits as it is, or is declared nowhere, is left as it is.

    Raises:
        SignalRefusedError: it cannot be read as that type.
    """
    try:
        signals = registry.workflow(run.workflow, run.version).signals
    except UnknownWorkflowError:
        return value
    if signals is None or name not in signals or misfit(signals[name], value) is None:
        return value
    try:
        return values.decode(json.dumps(value), signals[name])
    except DurableValueError as error:
        wanted = described(signals[name])
        raise SignalRefusedError(run.id, name, f"{run.workflow} declares it with {wanted}: {error}") from error


def _moment(name: str, value: object) -> datetime:
    if not isinstance(value, datetime):
        raise TypeError(f"{name} must be an aware datetime, not {value!r}")
    try:
        return instant(value)
    except ValueError as error:
        raise ValueError(f"{name} must be an aware datetime; {error}") from None
    except OverflowError:
        raise ValueError(f"{name} is out of range: {value!r}") from None


def _timeout_us(timeout: Any) -> int:
    length = seconds(timeout, "timeout")
    if not 0 < length <= _LONGEST_TIMEOUT:
        raise ValueError(f"timeout must be more than 0 seconds and at most 100 years, not {timeout!r}")
    return max(1, round(length * 1_000_000))


def _limited(path: str, encoded: str, limit: int) -> str:
    if len(encoded) > limit:
        raise DurableValueError(path, f"{len(encoded):,} bytes are too many: the limit is {limit:,} bytes")
    return encoded
