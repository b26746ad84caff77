"""The stage cost: time spent in all attempts at a stage, including interrupted and killed ones."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from distill.store.manifest import COST_FOLDER, write_json


@contextlib.contextmanager
def accounting(partial: Path, leads: bool = True, every_s: float = 5.0) -> Iterator[None]:
    """Record the time that this process spends in the block, every `every_s` seconds and at its end, also after an exception.

    leads: whether its wall time counts as that of the attempt; true for one of several processes.
    """
    folder = partial / COST_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{time.time_ns()}-{os.getpid()}.json"
    begin, begin_cpu = time.monotonic(), time.process_time()
    ended = threading.Event()

    def write() -> None:
        seconds = time.monotonic() - begin if leads else 0.0
        write_json(path, {"seconds": seconds, "cpu_seconds": time.process_time() - begin_cpu})

    def keep_writing() -> None:
        while not ended.wait(every_s):
            write()

    writer = threading.Thread(target=keep_writing, daemon=True)
    writer.start()
    try:
        yield
    finally:
        ended.set()
        writer.join()
        write()


def cost_of(partial: Path) -> tuple[float, float]:
    """Wall seconds, and processor seconds of all processes, summed over all recorded attempts."""
    rows = [json.loads(path.read_text()) for path in sorted((partial / COST_FOLDER).glob("*.json"))]
    return sum(row["seconds"] for row in rows), sum(row["cpu_seconds"] for row in rows)
