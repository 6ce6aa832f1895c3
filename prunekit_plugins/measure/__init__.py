"""Measuring models: latency of several side by side, memory at its peak, multiply-accumulates, time per layer."""

from prunekit_plugins.measure.counting import count_macs
from prunekit_plugins.measure.latency import (
    Timing,
    accelerator_of,
    evaluating,
    side_by_side,
    threads,
    time_layers,
    timed,
    wait_for,
)
from prunekit_plugins.measure.memory import peak_memory

__all__ = [
    "Timing",
    "accelerator_of",
    "count_macs",
    "evaluating",
    "peak_memory",
    "side_by_side",
    "threads",
    "time_layers",
    "timed",
    "wait_for",
]
