"""What several benchmarks share: one run of distill.py, and calls timed in turn."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from distill.evaluation.statistics import latency_summary

ROOT = Path(__file__).resolve().parents[1]
WARMUP = 30


def run_distill(stage: str, *flags: str) -> None:
    """Do what is not there yet of a run, up to this stage. Raises RuntimeError with the command and what it said."""
    command = [sys.executable, "distill.py", stage, *flags, "--processes", "1"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")


def interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, Any]:
    """Median, p95 and Hz of every call, all of them once a round, so that slow moments hit all alike. Each is called twice in a
    row and the second call counts: a robot runs one policy, whose weights the others' do not evict from the caches.

    cpu_ms: median of the thread's processor time, which other work on the machine changes less.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    gc.collect()
    gc.disable()
    try:
        for turn in range(-WARMUP, rounds):
            for name, call in calls.items():
                call()
                begin, begin_cpu = time.perf_counter_ns(), time.thread_time_ns()
                call()
                cpu_ms, wall_ms = (time.thread_time_ns() - begin_cpu) / 1e6, (time.perf_counter_ns() - begin) / 1e6
                if turn >= 0:
                    times[name].append((wall_ms, cpu_ms))
    finally:
        gc.enable()
    return {
        name: latency_summary(np.array(values)[:, 0]) | {"cpu_ms": float(np.median(values, 0)[1]), "calls": rounds}
        for name, values in times.items()
    }
