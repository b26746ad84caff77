"""A description of this machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path

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
