"""What may be said about how an activity is carried out, by its decorator and from call to call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from continuum.core.durations import seconds
from continuum.core.retry import Retry

__all__ = ["DEFAULT_QUEUE", "ActivityOptions", "activity_options"]

#: The queue of activities that name none, and the one whose workers run workflows.
DEFAULT_QUEUE = "default"

_LONGEST_QUEUE = 100
_LONGEST_KEY = 500


@dataclass(frozen=True, slots=True)
class ActivityOptions:
    """How an activity is carried out. Durations are in seconds.

    Attributes:
        retry: when it is tried again.
        timeout: longest time one attempt may take, or None.
        heartbeat_timeout: longest time between two heartbeats of an attempt, or None.
        queue: the queue whose workers carry it out; None for the run's own worker.
        priority: among the tasks of a queue, a higher one goes first.
        idempotency_key: a key, or what makes one of the arguments; None for none.
        elsewhere: it names a queue or a priority, so that others than the run's own worker may carry it out.
        transactional: the database alias whose transaction holds its writes and its record, True for Continuum's own,
            False for none.
    """

    retry: Retry = field(default_factory=Retry)
    timeout: float | None = None
    heartbeat_timeout: float | None = None
    queue: str | None = None
    priority: int = 0
    idempotency_key: Callable[..., str | None] | str | None = None
    transactional: bool | str = False
    elsewhere: bool = field(init=False, repr=False, compare=False, default=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "elsewhere", self.priority != 0 or self.queue not in (None, DEFAULT_QUEUE))

    def key_of(self, args: Iterable[Any], kwargs: Mapping[str, Any]) -> str | None:
        """Return the idempotency key of a call, or None.

        Raises:
            TypeError: what makes the key returned something else than a string or None.
            ValueError: the key is empty, too long, or holds characters no database stores.
        """
        key = self.idempotency_key
        if callable(key):
            key = key(*args, **kwargs)
        return None if key is None else _key(key, "idempotency_key")


def activity_options(
    base: ActivityOptions, given: Mapping[str, Any], where: str, allowed: Iterable[str]
) -> ActivityOptions:
    """Return ``base`` with some options changed.

    Args:
        base: the options as they are.
        given: option → new value.
        where: how messages name the place.
        allowed: the options that can be given there.

    Raises:
        TypeError: an option that does not exist, or is of the wrong type; the message names it.
        ValueError: one that is out of range.
    """
    allowed = tuple(allowed)
    unknown = set(given) - set(allowed)
    if unknown:
        raise TypeError(f"{where} has no option {', '.join(sorted(unknown))}; it takes {', '.join(allowed)}")
    checked = {}
    for name, value in given.items():
        try:
            checked[name] = _CHECKS[name](value, name)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{where}: {error}") from None
    return replace(base, **checked)


def _retry(value: Any, name: str) -> Retry:
    if not isinstance(value, Retry):
        raise TypeError(f"{name} must be a Retry, not {value!r}")
    return value


def _limit(value: Any, name: str) -> float | None:
    if value is None:
        return None
    limit = seconds(value, name)
    if limit <= 0:
        raise ValueError(f"{name} must be more than 0 seconds, not {limit:g}")
    return limit


def _queue(value: Any, name: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string or None, not {value!r}")
    if not value or len(value) > _LONGEST_QUEUE or "," in value or not value.isprintable() or value != value.strip():
        raise ValueError(
            f"{name} must be 1 to {_LONGEST_QUEUE} printable characters without commas or space around, not {value!r}"
        )
    return value


def _priority(value: Any, name: str) -> int:
    if type(value) is not int:
        raise TypeError(f"{name} must be an int, not {value!r}")
    if not -(2**15) <= value < 2**15:
        raise ValueError(f"{name} must be between -32768 and 32767, not {value}")
    return value


def _key_or_maker(value: Any, name: str) -> Any:
    return value if value is None or callable(value) else _key(value, name)


def _key(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string or None, not {value!r}")
    if not 0 < len(value) <= _LONGEST_KEY:
        raise ValueError(f"{name} must have 1 to {_LONGEST_KEY} characters, not {len(value)}")
    if "\x00" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{name} must not hold NUL or lone surrogates: {value!r}")
    return value


def _transactional(value: Any, name: str) -> bool | str:
    if not isinstance(value, bool | str) or value == "":
        raise TypeError(f"{name} must be True, False or a database alias, not {value!r}")
    return value


_CHECKS: dict[str, Callable[[Any, str], Any]] = {
    "retry": _retry,
    "timeout": _limit,
    "heartbeat_timeout": _limit,
    "queue": _queue,
    "priority": _priority,
    "idempotency_key": _key_or_maker,
    "transactional": _transactional,
}
