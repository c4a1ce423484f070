"""Who is measured: each contender speaks to its engine through the engine's public API alone."""

from __future__ import annotations

from importlib import import_module

from benchmarks.contenders.base import Contender

__all__ = ["CONTENDERS", "Contender", "load"]

CONTENDERS = ("continuum", "dbos", "absurd")


def load(name: str) -> type[Contender]:
    """Return the contender's class; only the process that needs a peer imports it."""
    return import_module(f"benchmarks.contenders.{name}_client").CLIENT
