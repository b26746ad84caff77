"""A program for envs/process/serving.py that fails in every way a simulator can, on request."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import numpy as np


class OddError(Exception):
    """A failure that the program has a name for."""


def name_of(error: Exception) -> str:
    return "odd_error" if isinstance(error, OddError) else ""


def start(options: dict[str, Any], load: Any) -> Faulty:
    print("starting", flush=True)
    if options.get("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.get("sleep_at_start"):
        time.sleep(60)
    if "die_until" in options:  # a file that counts the starts: the first few end at once
        path, deadly = options["die_until"]
        with open(path, "a") as lines:
            lines.write("started\n")
        with open(path) as lines:
            if len(lines.readlines()) <= deadly:
                os.kill(os.getpid(), signal.SIGKILL)
    if options.get("broken"):
        raise ImportError("No module named 'rlbench'")
    return Faulty()


class Faulty:
    opened = {"ready": True}

    def __init__(self) -> None:
        self.answers = 0

    def answer(self, message: dict[str, Any], arrays: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        self.answers += 1
        command = message["command"]
        if command == "die":
            print("about to die", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if command == "leave":
            os._exit(3)
        if command == "hang":
            time.sleep(60)
        if command == "chatter":
            print("\0" * 100_000, "flow2on1", flush=True)
            os.write(1, b"\xff\x00")
        if command == "odd":
            raise OddError("two\nlines")
        if command == "plain":
            raise KeyError("x")
        if command == "unsendable":
            return {"number": float("nan")}, {}
        if command == "child":  # something that outlives the process unless its whole group is killed
            child = os.fork()
            if not child:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(60)
                os._exit(0)
            return {"child": child}, {}
        doubled = {name: 2 * array for name, array in arrays.items()}
        return {"answers": self.answers, "python": sys.version.split()[0], "path": sys.path}, doubled
