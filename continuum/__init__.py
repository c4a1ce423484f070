"""Durable execution for Django: workflows that survive their process.

Public names are loaded at first use, so that importing ``continuum`` needs neither settings nor a loaded app registry,
and costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.5.0"

if TYPE_CHECKING:  # for type checkers and editors; a test holds it equal to the table below
    from continuum.client import (
        acancel as acancel,
        afork as afork,
        aget_or_start as aget_or_start,
        aget_run as aget_run,
        aresult as aresult,
        aretry as aretry,
        aset_attributes as aset_attributes,
        asignal as asignal,
        astart as astart,
        astart_many as astart_many,
        await_run as await_run,
        cancel as cancel,
        fork as fork,
        get_or_start as get_or_start,
        get_run as get_run,
        result as result,
        retry as retry,
        set_attributes as set_attributes,
        signal as signal,
        start as start,
        start_many as start_many,
        wait_run as wait_run,
    )
    from continuum.core.activity_context import (
        ActivityInfo as ActivityInfo,
        NotInActivityError as NotInActivityError,
        activity_info as activity_info,
        heartbeat as heartbeat,
    )
    from continuum.core.definitions import (
        Retry as Retry,
        activity as activity,
        workflow as workflow,
    )
    from continuum.core.effects import (
        sleep as sleep,
        sleep_until as sleep_until,
        wait_signal as wait_signal,
    )
    from continuum.core.facts import (
        RunInfo as RunInfo,
        logger as logger,
        now as now,
        patched as patched,
        random as random,
        run_info as run_info,
        set_progress as set_progress,
        side_effect as side_effect,
        today as today,
        uuid4 as uuid4,
    )
    from continuum.core.gathering import (
        as_completed as as_completed,
        wait as wait,
    )
    from continuum.core.lineage import (
        Child as Child,
        continue_as_new as continue_as_new,
        start_child as start_child,
    )
    from continuum.core.sagas import (
        compensate as compensate,
        compensate_all as compensate_all,
        saga as saga,
    )
    from continuum.exceptions import (
        ActivityCancelledError as ActivityCancelledError,
        ActivityError as ActivityError,
        ActivityTimeoutError as ActivityTimeoutError,
        AlreadyStartedError as AlreadyStartedError,
        ChildDepthError as ChildDepthError,
        ChildError as ChildError,
        ContinuumError as ContinuumError,
        DurableValueError as DurableValueError,
        InvalidQueryError as InvalidQueryError,
        NonDeterminismError as NonDeterminismError,
        NonRetryableError as NonRetryableError,
        NotInWorkflowError as NotInWorkflowError,
        PoisonRunError as PoisonRunError,
        ReplayDriftError as ReplayDriftError,
        RetryAfterError as RetryAfterError,
        RunCancelledError as RunCancelledError,
        RunFailedError as RunFailedError,
        RunNotActiveError as RunNotActiveError,
        RunNotFoundError as RunNotFoundError,
        RunStateError as RunStateError,
        SignalRefusedError as SignalRefusedError,
        SignalTimeoutError as SignalTimeoutError,
        UnknownActivityError as UnknownActivityError,
        UnknownWorkflowError as UnknownWorkflowError,
        WorkflowDeadlockError as WorkflowDeadlockError,
    )
    from continuum.models import (
        Event as Event,
        Run as Run,
    )
    from continuum.references import (
        InstanceNotFoundError as InstanceNotFoundError,
    )
    from continuum.search import (
        Page as Page,
        acount as acount,
        aquery as aquery,
        count as count,
        query as query,
    )
    from continuum.starting import (
        RunPrunedError as RunPrunedError,
    )
    from continuum.values import (
        ModelRef as ModelRef,
    )
    from continuum.waiting import (
        WaitInTransactionError as WaitInTransactionError,
        WaitTimeoutError as WaitTimeoutError,
    )

_MODULES = {
    "continuum.core.definitions": (
        "Retry",
        "activity",
        "workflow",
    ),
    "continuum.core.effects": (
        "sleep",
        "sleep_until",
        "wait_signal",
    ),
    "continuum.core.facts": (
        "RunInfo",
        "logger",
        "now",
        "patched",
        "random",
        "run_info",
        "set_progress",
        "side_effect",
        "today",
        "uuid4",
    ),
    "continuum.core.gathering": (
        "as_completed",
        "wait",
    ),
    "continuum.core.lineage": (
        "Child",
        "continue_as_new",
        "start_child",
    ),
    "continuum.core.sagas": (
        "compensate",
        "compensate_all",
        "saga",
    ),
    "continuum.core.activity_context": (
        "ActivityInfo",
        "NotInActivityError",
        "activity_info",
        "heartbeat",
    ),
    "continuum.client": (
        "acancel",
        "afork",
        "aget_or_start",
        "aget_run",
        "aresult",
        "aretry",
        "aset_attributes",
        "asignal",
        "astart",
        "astart_many",
        "await_run",
        "cancel",
        "fork",
        "get_or_start",
        "get_run",
        "result",
        "retry",
        "set_attributes",
        "signal",
        "start",
        "start_many",
        "wait_run",
    ),
    "continuum.models": (
        "Event",
        "Run",
    ),
    "continuum.references": ("InstanceNotFoundError",),
    "continuum.search": (
        "Page",
        "acount",
        "aquery",
        "count",
        "query",
    ),
    "continuum.starting": ("RunPrunedError",),
    "continuum.values": ("ModelRef",),
    "continuum.waiting": (
        "WaitInTransactionError",
        "WaitTimeoutError",
    ),
    "continuum.exceptions": (
        "ActivityCancelledError",
        "ActivityError",
        "ActivityTimeoutError",
        "AlreadyStartedError",
        "ChildDepthError",
        "ChildError",
        "ContinuumError",
        "DurableValueError",
        "InvalidQueryError",
        "NonDeterminismError",
        "NonRetryableError",
        "NotInWorkflowError",
        "PoisonRunError",
        "ReplayDriftError",
        "RetryAfterError",
        "RunCancelledError",
        "RunFailedError",
        "RunNotActiveError",
        "RunNotFoundError",
        "RunStateError",
        "SignalRefusedError",
        "SignalTimeoutError",
        "UnknownActivityError",
        "UnknownWorkflowError",
        "WorkflowDeadlockError",
    ),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
