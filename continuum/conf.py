"""The ``CONTINUUM`` settings dict: defaults, validation, and one object to read them from.

    from continuum.conf import settings as continuum_settings

    continuum_settings.LEASE_TTL        # 30.0

Values are read from Django's settings at first use and kept until ``setting_changed`` says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from numbers import Real
from typing import Any

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

__all__ = ["Problem", "Settings", "settings"]

SETTING = "CONTINUUM"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with the settings.

    Attributes:
        key: the key it is about; None when it is about the dict itself.
        message: what is wrong, as a sentence.
        hint: what to do about it; may be empty.
        unknown: the key is none of ours.
    """

    key: str | None
    message: str
    hint: str = ""
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class Option:
    """A key: its default, and a function that returns the cleaned value or raises ValueError."""

    default: Any
    clean: Callable[[Any], Any]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a non-empty string")
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be True or False")
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("must be a whole number, 1 or more")
    return value


def _seconds(*, zero: bool = False) -> Callable[[Any], float]:
    def clean(value: Any) -> float:
        if isinstance(value, timedelta):
            value = value.total_seconds()
        number = isinstance(value, Real) and not isinstance(value, bool) and float(value) < float("inf")
        if not number or value < 0 or (value == 0 and not zero):
            raise ValueError(f"must be {'zero or more' if zero else 'more than zero'} seconds, or a timedelta of that")
        return float(value)

    return clean


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) and name for name in value):
        raise ValueError("must be a list of dotted module names")
    return tuple(value)


def _one_of(*choices: str) -> Callable[[Any], str]:
    def clean(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(map(repr, choices))}")
        return value

    return clean


def _or_none(clean: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else clean(value)


def _callable(value: Any) -> Callable[..., Any]:
    if isinstance(value, str):
        try:
            value = import_string(value)
        except ImportError as error:
            raise ValueError(f"names something that cannot be imported ({error})") from error
    if not callable(value):
        raise ValueError("must be None, a callable, or the dotted path of one")
    return value


def _rate(value: Any) -> tuple[int, float]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("must be a pair (count, seconds)")
    return _count(value[0]), _seconds()(value[1])


_QUEUE_LIMITS: dict[str, Callable[[Any], Any]] = {"concurrency": _count, "cluster_concurrency": _count, "rate": _rate}


def _queues(value: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(value, Mapping):
        raise ValueError("must be a dict from a queue's name to a dict of its limits")
    cleaned: dict[str, dict[str, Any]] = {}
    for name, limits in value.items():
        if not isinstance(name, str) or not name or "," in name:
            raise ValueError(f"has a queue named {name!r}: a name is a non-empty string without commas")
        if not isinstance(limits, Mapping):
            raise ValueError(f"[{name!r}] must be a dict with any of {', '.join(_QUEUE_LIMITS)}")
        cleaned[name] = {}
        for limit, given in limits.items():
            if limit not in _QUEUE_LIMITS:
                raise ValueError(f"[{name!r}] has an unknown limit {limit!r}; there are {', '.join(_QUEUE_LIMITS)}")
            try:
                cleaned[name][limit] = _QUEUE_LIMITS[limit](given)
            except ValueError as error:
                raise ValueError(f"[{name!r}][{limit!r}] {error}") from None
    return cleaned


OPTIONS: dict[str, Option] = {
    "DATABASE": Option("default", _text),
    "LISTEN_DATABASE": Option(None, _or_none(_text)),
    "WORKFLOW_MODULES": Option((), _names),
    "LEASE_TTL": Option(30.0, _seconds()),
    "POLL_INTERVAL": Option(1.0, _seconds()),
    "CONCURRENCY": Option(400, _count),
    "LIVE_RUNS": Option(10_000, _count),
    "ACTIVITY_THREADS": Option(16, _count),
    "PROCESSES": Option(None, _or_none(_count)),
    "QUEUES": Option({}, _queues),
    "DRAIN_TIMEOUT": Option(10.0, _seconds(zero=True)),
    "DEADLOCK_TIMEOUT": Option(2.0, _seconds()),
    "MAX_RECOVERIES": Option(10, _count),
    "MAX_VALUE_BYTES": Option(2 * 1024 * 1024, _count),
    "VERSION_POLICY": Option("prove", _one_of("prove", "pin")),
    "TRUSTED_MODULES": Option((), _names),
    "REDACT": Option(None, _or_none(_callable)),
    "PARANOID": Option(False, _boolean),
    "RUNTIME_GUARDS": Option(True, _boolean),
}


class Settings:
    """Attribute access to the cleaned values: ``settings.LEASE_TTL``. Durations are seconds, as floats.

    Reading a key whose value is wrong raises ``ImproperlyConfigured``; :meth:`problems` tells all at once.
    """

    DATABASE: str
    LISTEN_DATABASE: str | None
    WORKFLOW_MODULES: tuple[str, ...]
    LEASE_TTL: float
    POLL_INTERVAL: float
    CONCURRENCY: int
    LIVE_RUNS: int
    ACTIVITY_THREADS: int
    PROCESSES: int | None
    QUEUES: dict[str, dict[str, Any]]
    DRAIN_TIMEOUT: float
    DEADLOCK_TIMEOUT: float
    MAX_RECOVERIES: int
    MAX_VALUE_BYTES: int
    VERSION_POLICY: str
    TRUSTED_MODULES: tuple[str, ...]
    REDACT: Callable[..., Any] | None
    PARANOID: bool
    RUNTIME_GUARDS: bool

    def __getattr__(self, key: str) -> Any:
        # Only reached for what is not cached in the instance yet.
        if key not in OPTIONS:
            raise AttributeError(f"there is no {SETTING} setting {key!r}")
        given = self._given()
        if key in given:
            try:
                value = OPTIONS[key].clean(given[key])
            except ValueError as error:
                raise ImproperlyConfigured(_wrong(key, error, given[key])) from error
        else:
            value = OPTIONS[key].default
        self.__dict__[key] = value
        return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *OPTIONS})

    def clear(self) -> None:
        """Forget what was read; the next access reads Django's settings again."""
        self.__dict__.clear()

    def problems(self) -> list[Problem]:
        """Return everything that is wrong with the settings dict, without raising."""
        try:
            given = self._given()
        except ImproperlyConfigured as error:
            return [Problem(None, str(error))]
        found = []
        for key, value in given.items():
            if key not in OPTIONS:
                found.append(_unknown(key))
                continue
            try:
                OPTIONS[key].clean(value)
            except ValueError as error:
                found.append(Problem(key, _wrong(key, error, value)))
        if not found and self.POLL_INTERVAL >= self.LEASE_TTL:
            found.append(
                Problem(
                    "POLL_INTERVAL",
                    f'{SETTING}["POLL_INTERVAL"] ({self.POLL_INTERVAL:g} s) must be shorter than '
                    f'{SETTING}["LEASE_TTL"] ({self.LEASE_TTL:g} s).',
                )
            )
        return found

    @staticmethod
    def _given() -> Mapping[str, Any]:
        given = getattr(django_settings, SETTING, {})
        if not isinstance(given, Mapping):
            raise ImproperlyConfigured(f"The setting {SETTING} must be a dict, not {type(given).__name__}.")
        return given


def _wrong(key: str, error: ValueError, value: Any) -> str:
    text = str(error)
    return f'{SETTING}["{key}"]{"" if text.startswith("[") else " "}{text}; it is {value!r}.'


def _unknown(key: Any) -> Problem:
    close = get_close_matches(str(key).upper(), OPTIONS, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else f"The keys are {', '.join(OPTIONS)}."
    return Problem(str(key), f"{SETTING} has an unknown key {key!r}.", hint, unknown=True)


settings = Settings()


def _clear_on_change(*, setting: str, **kwargs: Any) -> None:
    if setting == SETTING:
        settings.clear()


setting_changed.connect(_clear_on_change, dispatch_uid="continuum.conf")
