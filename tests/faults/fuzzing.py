"""Feeds damaged files to one reader and notes what it does besides reading them or raising ValueError.

It runs in a process of its own (see `Server`), with little memory, and watches what the reader imports, starts and opens.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from tests.faults.mutate import mutated_file, mutated_tree, removed
from tests.faults.readers import Reader, readers
from tests.faults.trying import ROOT

BUSY_S, WAITING_S = 5.0, 60.0
"""A reader that works longer on a small file, or waits longer, hangs [s]; others may use the machine, too."""
MEMORY = 2 << 30
"""What it may allocate beyond what the process has at its start [bytes]."""
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class",
             "socket.connect", "socket.bind", "ctypes.dlopen")  # fmt: skip


class Hang(BaseException):
    """It took too long."""


def fuzz(name: str, seconds: float, seed: int, work: Path, findings: Path) -> None:
    """Damage, read, note, for so many seconds of the processor: others may use the machine, too.

    The findings are written as JSON: how many tries, how many were refused, and what was wrong.
    """
    work.mkdir(parents=True, exist_ok=True)
    reader = readers()[name]
    whole = work / f"whole{reader.suffix}"
    warnings.simplefilter("ignore")
    reader.make(whole)
    reader.read(whole)  # also loads what it imports
    seen: list[str] = []
    here = str(work)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FORBIDDEN:
            seen.append(f"{event} {arguments!r}"[:300])
        elif event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(("/etc/", "/dev/zero")):
            seen.append(f"opens {arguments[0]}")
        elif event == "import" and arguments[1] and not arguments[1].startswith((sys.prefix, sys.base_prefix, str(ROOT))):
            seen.append(f"imports {arguments[:2]}")

    sys.addaudithook(watch)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + MEMORY, pages + MEMORY))

    def late(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, late)
    signal.signal(signal.SIGPROF, late)
    end, tries, refused, wrong = time.process_time() + seconds, 0, 0, dict[str, str]()
    rng = random.Random(seed)
    path = work / f"damaged{reader.suffix}"
    while time.process_time() < end or tries < 20:
        number = rng.getrandbits(64)
        removed(path)
        (shutil.copytree if whole.is_dir() else shutil.copyfile)(whole, path)
        (mutated_tree if reader.folder else mutated_file)(path, random.Random(number))
        seen.clear()
        tries += 1
        error = ""
        try:
            _in_time(reader, path)
        except ValueError as told:
            refused += 1
            if "\n" in str(told):
                error = f"more than one line: {told!r}"
        except FileNotFoundError:
            refused += 1  # a file of a folder is missing, and the system says which
        except Hang as told:
            error = "hangs: " + "".join(traceback.format_exception(told)[-4:])[-1500:]
        except BaseException as told:
            error = "".join(traceback.format_exception(told)[-4:])[-1500:]
        error = error or "; ".join(each for each in seen if here not in each)
        if error:
            wrong.setdefault(_kind(error), f"seed {number}: {error}")
    findings.write_text(json.dumps({"tries": tries, "refused": refused, "wrong": wrong}, indent=1))


def _in_time(reader: Reader, path: Path) -> None:
    signal.setitimer(signal.ITIMER_REAL, WAITING_S)
    signal.setitimer(signal.ITIMER_PROF, BUSY_S)
    try:
        reader.read(path)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _kind(error: str) -> str:
    """Findings of the same last line and place count once."""
    lines = [line for line in error.splitlines() if line.strip()]
    return "".join(each for each in f"{lines[-1]} {lines[0]}" if not each.isdigit())[:120]
