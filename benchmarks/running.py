"""What benchmarks share: one run of distill.py, calls that take turns, growth exponents, and where a result is kept.

A run uses one process with one thread, from the root of the repository.
"""

from __future__ import annotations

import gc
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from distill.evaluation.statistics import latency_summary
from distill.store.machine import hardware

ROOT = Path(__file__).resolve().parents[1]
WARMUP = 30


def run_distill(stage: str, *flags: str, processes: int = 1) -> None:
    """Do what is not there yet of a run, up to this stage. Raises RuntimeError with the command and what it said."""
    command = [sys.executable, "distill.py", stage, *flags, "--processes", str(processes)]
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


def in_turns(calls: dict[str, Callable[[], object]], rounds: int, repeats: int = 1) -> dict[str, float]:
    """Median milliseconds of processor time per name, and `ratio`: the second's time over the first's, median over rounds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-1, rounds):  # one round to warm up
        for name, call in calls.items():
            begin = time.process_time_ns()
            for _ in range(repeats):
                call()
            if number >= 0:
                times[name].append((time.process_time_ns() - begin) / 1e6 / repeats)
    first, second = list(times.values())[:2] if len(times) > 1 else (list(times.values())[0],) * 2
    ratio = median(after / before for before, after in zip(first, second, strict=True))
    return {**{f"{name}_ms": median(values) for name, values in times.items()}, "ratio": ratio}


def growth(sizes: Sequence[float], values: Sequence[float], within: float = 0.15) -> dict[str, Any]:
    """The exponent of values ~ sizes^exponent by least squares of logarithms, and the size from which it holds.

    The fit takes as many of the largest sizes, at least three, as leave every point within the share `within` of the line;
    below `holds_from` the values leave it. `off`: the largest deviation, above `within` where not even three points fit.
    """
    x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(values, float))
    for first in range(max(1, len(x) - 2)):
        exponent, offset = np.polyfit(x[first:], y[first:], 1)
        off = float(np.abs(np.expm1(y[first:] - exponent * x[first:] - offset)).max())
        if off <= within:
            break
    return {"exponent": round(float(exponent), 3), "holds_from": sizes[first], "off": round(off, 3)}


def keep(target: Path, result: dict[str, Any], begin: float) -> None:
    """Write a result with the machine, its load and the time that it took since `begin` (time.perf_counter)."""
    load = [round(each, 2) for each in os.getloadavg()] if hasattr(os, "getloadavg") else [math.nan]
    known = {"hardware": hardware(None), "threads": torch.get_num_threads(), "clock": "process time",
             "packages": {"torch": torch.__version__}, "load_average": load, "cores": os.cpu_count()}  # fmt: skip
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({**known, **result, "seconds": time.perf_counter() - begin}, indent=1) + "\n")
