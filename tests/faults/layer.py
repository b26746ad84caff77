"""The fault layer: what goes wrong inside a try, with no library preloaded; Python's own file functions are replaced.

Faults are dictionaries. kind, and what it needs:

    kill        the process kills itself with `signal` at the `at`-th file operation below its working folder
    write       from the `at`-th write on (`once`: that one only), files take half of the bytes and raise `errno`
    short       every write takes at most `bytes` bytes and says so, as the system may
    read        the `at`-th read raises `errno`
    vanish      after the `at`-th file operation the newest file that it touched is deleted
    call        at the `at`-th file operation the shell command `command` runs
    loss        the loss of step `at` is `value` (nan, inf), on rank `rank`
    clock       time.time and time.time_ns go back by `seconds` at the `at`-th call
"""

from __future__ import annotations

import builtins
import io
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.listdir", "os.scandir")


def cut_at(name: str) -> None:
    """Let a command end after the stage of this name."""
    from distill.graphs import graph

    real = graph.ensure

    def ensure(context: Any, stages: Any) -> None:
        real(context, [stage for stage in graph.in_order(stages) if stage.name == name])

    graph.ensure = ensure
    graph.Graph.say_outcome = lambda self, context: None  # type: ignore[method-assign]
    from distill.cli import external

    external.write_card = lambda folder: None  # type: ignore[assignment]


def install(fault: dict[str, Any]) -> None:
    """Install one fault in this process, for its working folder."""
    here = os.getcwd()
    kind = fault["kind"]
    {"kill": _kill, "write": _files, "short": _files, "read": _files, "vanish": _vanish, "loss": _loss, "clock": _clock,
     "call": _call}[kind](fault, here)  # fmt: skip


SEEN = [0]


def finish(fault: dict[str, Any]) -> None:
    """Write how many file operations there were into the file `count`, where one is named."""
    if "count" in fault:
        Path(fault["count"]).write_text(str(SEEN[0]))


def counted(fault: dict[str, Any], here: str, act: Callable[[str], object]) -> None:
    """Call `act` at the `at`-th file operation below `here`; the count starts at 1."""
    SEEN[0] = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in OPERATIONS or not arguments or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if not path.startswith(here + os.sep):
            return
        SEEN[0] += 1
        if SEEN[0] == fault["at"]:
            act(path)

    sys.addaudithook(hook)


def _kill(fault: dict[str, Any], here: str) -> None:
    counted(fault, here, lambda path: os.kill(os.getpid(), getattr(signal, fault["signal"])))


def _vanish(fault: dict[str, Any], here: str) -> None:
    """Delete the newest file of the run that is neither lock nor log."""

    def delete(path: str) -> None:
        files = [each for each in Path(here).rglob("*") if each.is_file() and each.suffix in (".safetensors", ".json")
                 and each.name not in ("tiny.yaml",) and "demos_given" not in each.parts]  # fmt: skip
        if files:
            max(files, key=lambda each: each.stat().st_mtime_ns).unlink()

    counted(fault, here, delete)


class _Faulty(io.FileIO):
    """A file whose reads and writes fail as the fault says."""

    fault: dict[str, Any] = {}
    calls = [0, 0]

    def write(self, data: Any) -> int:  # type: ignore[override]
        fault, view = self.fault, memoryview(data).cast("B")
        self.calls[1] += 1
        if fault["kind"] == "short":
            return super().write(view[: fault["bytes"]]) or 0
        hit = self.calls[1] == fault["at"] or (self.calls[1] > fault["at"] and not fault.get("once"))
        if fault["kind"] == "write" and hit:
            super().write(view[: len(view) // 2])
            raise OSError(fault["errno"], os.strerror(fault["errno"]), self.name)
        return super().write(view) or 0

    def readinto(self, buffer: Any) -> int:  # type: ignore[override]
        self.calls[0] += 1
        if self.fault["kind"] == "read" and self.calls[0] == self.fault["at"]:
            raise OSError(self.fault["errno"], os.strerror(self.fault["errno"]), self.name)
        return super().readinto(buffer) or 0

    def readall(self) -> bytes:
        self.calls[0] += 1
        if self.fault["kind"] == "read" and self.calls[0] == self.fault["at"]:
            raise OSError(self.fault["errno"], os.strerror(self.fault["errno"]), self.name)
        return super().readall() or b""


def _files(fault: dict[str, Any], here: str) -> None:
    real = io.open
    _Faulty.fault, _Faulty.calls = fault, [0, 0]

    def opened(file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None, errors: str | None = None,
               newline: str | None = None, closefd: bool = True, opener: Any = None) -> Any:  # fmt: skip
        if isinstance(file, int) or not os.path.abspath(os.fsdecode(file)).startswith(here + os.sep):
            return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = _Faulty(os.fspath(file), mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        reads, writes = raw.readable(), raw.writable()
        kind: Any = io.BufferedRandom if reads and writes else io.BufferedWriter if writes else io.BufferedReader
        buffered = kind(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline)

    io.open = opened  # type: ignore[assignment]
    builtins.open = opened  # type: ignore[assignment]


def _loss(fault: dict[str, Any], here: str) -> None:
    from distill.training import loop

    real = loop.fit

    def fit(accelerator: Any, model: Any, batches: Any, loss_of_step: Any, *rest: Any, **named: Any) -> Any:
        seen = [0]

        def loss(wrapped: Any, batch: Any, generator: Any, part: Any) -> Any:
            value = loss_of_step(wrapped, batch, generator, part)
            seen[0] += 1
            if seen[0] == fault["at"] and int(os.environ.get("RANK", "0")) == fault.get("rank", 0):
                return value * float(fault["value"])
            return value

        return real(accelerator, model, batches, loss, *rest, **named)

    for name in ("distill.stages.train_teacher", "distill.stages.train_student"):
        sys.modules[name].fit = fit  # type: ignore[attr-defined]


def _clock(fault: dict[str, Any], here: str) -> None:
    real, real_ns, calls = time.time, time.time_ns, [0]

    def back() -> float:
        calls[0] += 1
        return -fault["seconds"] if calls[0] >= fault["at"] else 0.0

    time.time = lambda: real() + back()
    time.time_ns = lambda: real_ns() + int(back() * 1e9)


def _call(fault: dict[str, Any], here: str) -> None:
    counted(fault, here, lambda path: os.system(fault["command"]))
