"""Runtime guards: workflow code that does I/O is stopped where it does so, and told what to do instead.

The functions of :mod:`continuum.determinism.points` are wrapped in the process that runs workflows, and only there. A
wrapper asks which event loop runs in its thread: the loop of a run is set as long as code of that run is on, and no
longer. So nothing has to be switched on and off around it, and nothing else can be hit.

(``sys.addaudithook``, of PEP 578, would see the same and more, but it cannot be taken off again, and calls for every
event of the process: an ``id()``, say, takes six times as long.)
"""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
import threading
from asyncio import _get_running_loop
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FrameType, FunctionType
from typing import Any

from continuum.conf import settings as continuum_settings
from continuum.core.failures import is_engine
from continuum.core.loop import DeterministicLoop
from continuum.core.releasing import collecting
from continuum.core.watching import guarded
from continuum.determinism.denylist import rule
from continuum.determinism.points import ORM, POINTS, Point
from continuum.exceptions import NonDeterminismError

__all__ = ["guarding", "install", "uninstall"]

# What Python does by itself, and tools do for the one who watches: imports, source lines in tracebacks, log handlers,
# translations, time zones. None of it is the doing of the workflow, or differs from replay to replay.
_HARMLESS = (
    "_frozen_importlib",
    "_frozen_importlib_external",
    "bdb",
    "coverage",
    "django.utils.translation",
    "gettext",
    "importlib",
    "inspect",
    "linecache",
    "locale",
    "logging",
    "pdb",
    "traceback",
    "warnings",
    "zipimport",
    "zoneinfo",
)
_LIBRARIES = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")})
#: What application code calls, by the rule about it.
APPLICATIONS = "D211"
_FOR_APPLICATIONS = tuple(name.removesuffix(".*") for name in rule(APPLICATIONS).names)
_ORM = Point("django.db", "connection", ORM, "uses the database")

# An environment that nobody closed lets go when it is collected, which may happen on a thread that holds the lock.
_lock = threading.RLock()
_users = 0
_undo: list[Callable[[], None]] = []
_known: dict[Any, Any] = {}  # io.open is open, and stays so


@contextmanager
def guarding() -> Iterator[None]:
    """Have the guards up for the length of a block, unless ``CONTINUUM["RUNTIME_GUARDS"]`` is False."""
    if not continuum_settings.RUNTIME_GUARDS:
        yield
        return
    install()
    try:
        yield
    finally:
        uninstall()


def install() -> None:
    """Put the guards up in this process. They stay until each ``install`` has had its ``uninstall``."""
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            importlib.import_module("zoneinfo")  # which opens files without a frame of its own, with open as it is now
            for point in POINTS:
                _guard(point)
            _guard_orm()


def uninstall() -> None:
    """Take the guards down again, unless others have put them up as well."""
    global _users
    with _lock:
        _users -= 1
        if _users == 0:
            while _undo:
                _undo.pop()()


def _guard(point: Point) -> None:
    owner_name, _, name = point.name.rpartition(".")
    try:
        owner: Any = importlib.import_module(point.module)
        owner = getattr(owner, owner_name) if owner_name else owner
        original = getattr(owner, name)
    except (ImportError, AttributeError):
        return
    defined = vars(owner).get(name)
    if isinstance(defined, classmethod):
        _replace(owner, name, classmethod(_wrapped(point, defined.__func__)))
    elif isinstance(original, FunctionType) or owner_name:
        _replace(owner, name, _wrapped(point, original))
    else:
        # As with what it stands for, a class that takes it for an attribute does not make it a method.
        wrapped = _known.setdefault(original, staticmethod(_wrapped(point, original)))
        _replace(owner, name, wrapped)
        if owner is os:
            _keep_abilities(original, wrapped)


def _keep_abilities(original: Any, wrapped: Any) -> None:
    """``os.open in os.supports_dir_fd`` must go on being true."""
    for functions in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks, os.supports_effective_ids):
        if original in functions:
            functions.add(wrapped)
            _undo.append(lambda functions=functions: functions.discard(wrapped))


def _replace(owner: Any, name: str, value: Any) -> None:
    if name in vars(owner):
        before = vars(owner)[name]
        _undo.append(lambda: setattr(owner, name, before))
    else:
        _undo.append(lambda: delattr(owner, name))
    setattr(owner, name, value)


def _wrapped(point: Point, original: Any) -> Any:
    @wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        loop: Any = _get_running_loop()
        if type(loop) is DeterministicLoop and loop.aside is None:
            _judge(loop, point, args)
        return original(*args, **kwargs)

    return wrapper


def _guard_orm() -> None:
    """Have the ORM's own check say what it has found: it looks for a loop wherever it is about to use a connection."""
    from django.core.exceptions import SynchronousOnlyOperation
    from django.utils import asyncio as unsafe

    original = unsafe.get_running_loop

    def get_running_loop() -> Any:
        loop: Any = original()
        if type(loop) is DeterministicLoop:
            if loop.aside is not None:
                raise SynchronousOnlyOperation(
                    "the database cannot be used inside a function given to side_effect(), which runs on the worker's "
                    f"own loop. {rule(ORM).advice}"
                )
            _judge(loop, _ORM, ())
        return loop

    _replace(unsafe, "get_running_loop", get_running_loop)


# -- judging --------------------------------------------------------------------------------------------------------


def _judge(loop: Any, point: Point, args: tuple[Any, ...]) -> None:
    """Refuse what workflow code is about to do, unless it is not the workflow's doing.

    Raises:
        NonDeterminismError: it is. The run ends with it, also if its code catches it.
    """
    if collecting():
        return
    frames = _frames(sys._getframe(2))
    point, args, frames = _asked_of_continuum(point, args, frames)
    trusted = (*_HARMLESS, *continuum_settings.TRUSTED_MODULES)
    if any(_belongs(frame.f_globals.get("__name__"), trusted) for frame in frames):
        return
    error = NonDeterminismError(
        f"{_place(frames)} {point.does}{_shown(point, args)}: in a workflow that would happen again in every replay, "
        f"and might turn out differently. {rule(point.rule).advice}"
    )
    if loop.violation is None:
        loop.violation = error
    raise error


def _frames(frame: FrameType | None) -> list[FrameType]:
    """Return the frames of workflow code and what it has called, innermost first."""
    frames = []
    while frame is not None and frame.f_code is not guarded.__code__:
        frames.append(frame)
        frame = frame.f_back
    return frames


def _asked_of_continuum(
    point: Point, args: tuple[Any, ...], frames: list[FrameType]
) -> tuple[Point, tuple[Any, ...], list[FrameType]]:
    """Of a call such as ``continuum.start()`` say that it is made, not what it does first, and where."""
    for i in range(len(frames) - 1, -1, -1):
        module, name = frames[i].f_globals.get("__name__"), frames[i].f_code.co_name
        if _belongs(module, _FOR_APPLICATIONS):
            return Point(module, name, APPLICATIONS, f"calls continuum.{name}()"), (), frames[i + 1 :]
    return point, args, frames


def _belongs(module: Any, packages: tuple[str, ...]) -> bool:
    return isinstance(module, str) and any(module == name or module.startswith(f"{name}.") for name in packages)


def _place(frames: list[FrameType]) -> str:
    """Say which line of the project it is, and from which line of the workflow it was called."""
    theirs = [frame for frame in frames if not is_engine(frame.f_code.co_filename)]
    project = [frame for frame in theirs if not frame.f_code.co_filename.startswith((*_LIBRARIES, "<frozen "))]
    if not (project or theirs):
        return "the workflow"
    found, first = (project or theirs)[0], (project or theirs)[-1]
    place = _line(found)
    return place if first is found else f"{place}, called from {_line(first)},"


def _line(frame: FrameType) -> str:
    code = frame.f_code
    return f"{code.co_filename}:{frame.f_lineno} in {code.co_name}"


def _shown(point: Point, args: tuple[Any, ...]) -> str:
    if point.shown is None or len(args) <= point.shown:
        return ""
    text = repr(args[point.shown])
    return f" {text if len(text) <= 200 else text[:200] + '…'}"
