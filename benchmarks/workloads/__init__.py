"""What is measured: a module for each workload, with its ``TITLE``, its ``FIGURES`` and ``measure``."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

__all__ = ["WORKLOADS", "load"]

WORKLOADS = {
    "w1": "w1_throughput",
    "w1d": "w1d_commit_delay",
    "w2": "w2_start_to_result",
    "w2c": "w2c_computing",
    "w3": "w3_signal",
    "w4": "w4_fan_out",
    "w5": "w5_sequential",
    "w6": "w6_timers",
    "w7": "w7_starting",
    "w7c": "w7c_concurrent_starts",
    "w8": "w8_take_over",
    "roll": "roll_restart",
    "w9": "w9_searches",
    "w10": "w10_idle",
    "w11": "w11_scaling",
}


def load(name: str) -> ModuleType:
    """Return the module of a workload."""
    return import_module(f"benchmarks.workloads.{WORKLOADS[name]}")
