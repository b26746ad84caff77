"""A description of this machine, and of what else it did."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch


def hardware(device: torch.device | None) -> str:
    """The processor (and GPU), as text."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    text = f"{name}, {os.cpu_count()} cores"
    return f"{text}; {torch.cuda.get_device_name(device)}" if device is not None and device.type == "cuda" else text


@contextlib.contextmanager
def watched() -> Iterator[dict[str, Any]]:
    """How busy the machine is during the block; the dictionary is filled when the block ends.

    load_before, load_after: load average of the last minute, None where the system has none. cores: usable ones.
    own_share: processor time of this process / wall time. seconds: wall time.
    """
    told: dict[str, Any] = {"cores": cores(), "load_before": _load()}
    begin, begin_cpu = time.monotonic(), time.process_time()
    yield told
    seconds = time.monotonic() - begin
    told |= {"load_after": _load(), "seconds": seconds, "own_share": (time.process_time() - begin_cpu) / max(seconds, 1e-9)}


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _load() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
