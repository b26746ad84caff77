"""A simulator in a process of its own: started when it is needed, watched, killed for sure, and started again.

The other end is envs/process/serving.py, in whatever interpreter is asked for. Nothing here knows what is simulated.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from envs.process.wire import WireError, receive, send

SERVING = Path(__file__).resolve().parent / "serving.py"
START_TRIES = 3
"""So many processes are started before one that dies at its start is a mistake of this machine."""
UNNAMED_FAILURE = "error"
"""The failure that envs/process/serving.py answers where the program has no name for it."""
TAIL_BYTES = 2000
"""So much of the end of what a process printed is told when it dies."""


@dataclass(frozen=True)
class WorkerSettings:
    """How a worker is started and how long it may take.

    python: the interpreter, as a command line ("xvfb-run -a /opt/rlbench/bin/python"); "" is this one.
    start_s: until it answers first; step_s: until it answers any later question [s].
    grace_s: from the polite signal, which a simulator may swallow, to the one that it can not [s].
    """

    python: str = ""
    start_s: float = 180.0
    step_s: float = 120.0
    grace_s: float = 2.0

    def __post_init__(self) -> None:
        if min(self.start_s, self.step_s) <= 0 or self.grace_s < 0:
            raise ValueError(
                f"start_s and step_s must be above 0 and grace_s not below, got {self.start_s}, {self.step_s}, {self.grace_s}"
            )


class WorkerFailure(RuntimeError):
    """A question was not answered. name: what happened, ``crash``, ``hang`` or the program's own name for it; text: why."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name, self.text = name, text


class WorkerStartError(ValueError):
    """The process could not be started, or its program not opened: what was asked for is wrong, not an episode."""


class Worker:
    """One process that answers `ask`. Started by the first question, and again by the first one after it was lost."""

    def __init__(
        self, program: Path, options: Mapping[str, Any], settings: WorkerSettings,
        environment: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """program, options: see envs/process/serving.py; environment: of the process, without it this one's."""
        self._program, self._options, self._settings = program.resolve(), dict(options), settings
        self._environment = dict(os.environ if environment is None else environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._stream: _Stream | None = None
        self._printed: Any = None
        self._interrupted = self._doubted = False
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """Of the process, None while there is none."""
        return None if self._process is None else self._process.pid

    def request(
        self, message: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None, limit_s: float = 0.0
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The answer to a question, within `limit_s` [s] (0: step_s).

        Raises WorkerFailure: ``crash`` (the process is gone), ``hang`` (it was killed for taking too long), or the name
        that its program gave; WorkerStartError when it does not start.
        """
        self.start()
        return self._exchange(message, arrays, limit_s or self._settings.step_s)

    def start(self) -> None:
        """Start the process and open its program, unless it runs. Raises WorkerStartError.

        A process that dies while it starts is started again, up to `START_TRIES` times in all: a simulator now and then does,
        and a run of hours shall not end with it. What its program says is wrong is wrong the next time, too.
        """
        for attempt in range(START_TRIES):
            if self._process is not None:
                return
            if self._interrupted:
                raise WorkerStartError("the worker was interrupted; make another one")
            try:
                self._open()
            except WorkerFailure as failure:
                printed = "" if self._process is None else self._tail()  # a crash or a hang has told it already
                self.kill()
                if failure.name != "crash" or self._interrupted or attempt == START_TRIES - 1:
                    python = self._settings.python or sys.executable
                    raise WorkerStartError(f"{self._program.name} in {python} did not start: {failure}{printed}") from failure

    def _open(self) -> None:
        """One process and its first answer. Raises WorkerStartError without an interpreter, WorkerFailure without answer."""
        command = [*(shlex.split(self._settings.python) or [sys.executable]), str(SERVING)]
        ours, theirs = socket.socketpair()
        self._printed = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - as long as the process
        try:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(self._program)], stdin=subprocess.DEVNULL, stdout=self._printed,
                stderr=subprocess.STDOUT, env=self._environment, pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            ours.close()
            self._printed.close()
            raise WorkerStartError(f"{command[0]} can not be started ({error}); give another interpreter") from error
        finally:
            theirs.close()
        self._stream, self._doubted = _Stream(ours), False
        self.starts += 1
        self._exchange(self._options, None, self._settings.start_s)

    def discard_unhealthy(self) -> None:
        """Forget a process that has died meanwhile, so that the next question starts another instead of finding a crash.

        So for one that failed in a way that its program has no name for: nobody knows what is left of its world.
        """
        if self._process is not None and (self._doubted or self._process.poll() is not None):
            self.kill()

    def interrupt(self) -> None:
        """From another thread: end the process at once, for good. Who waits for its answer finds a crash."""
        self._interrupted = True
        process = self._process
        if process is not None:
            self._signal(process, signal.SIGKILL)

    def kill(self) -> None:
        """End the process and all that it started, politely first, surely then. Nothing when there is none."""
        if self._process is None:
            return
        process, self._process = self._process, None
        if self._stream is not None:
            self._stream.close()
        self._signal(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self._settings.grace_s)
        self._signal(process, signal.SIGKILL)  # whatever it left behind, too
        process.wait()
        self._stream = None
        self._printed.close()

    close = kill

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _exchange(
        self, message: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None, limit_s: float
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        process = self._process
        assert self._stream is not None and process is not None
        self._stream.deadline = time.monotonic() + limit_s
        stream = cast(BinaryIO, self._stream)
        try:
            send(stream, message, arrays)
            told, back = receive(stream)
        except TimeoutError:
            printed = self._tail()
            self.kill()
            raise WorkerFailure("hang", f"no answer within {limit_s:g} s, so it was killed{printed}") from None
        except (WireError, OSError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self._settings.grace_s)
            status, printed = process.returncode, self._tail()
            self.kill()
            raise WorkerFailure("crash", f"the process ended with status {status}{printed}") from error
        if "failed" in told:
            self._doubted = self._doubted or told["failed"] == UNNAMED_FAILURE
            raise WorkerFailure(str(told["failed"]), str(told.get("text", "")))
        return told, back

    def _signal(self, process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)  # it leads a group of its own

    def _tail(self) -> str:
        """The end of what the process printed, as the end of a message."""
        descriptor = self._printed.fileno()
        size = os.fstat(descriptor).st_size
        printed = os.pread(descriptor, TAIL_BYTES, max(0, size - TAIL_BYTES)).decode(errors="replace").strip()
        return f"; it printed last: {printed}" if printed else ""


class _Stream:
    """A socket that is read and written as a file, until a deadline."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self.deadline = connection, 0.0

    def read(self, count: int) -> bytes:
        self._wait()
        return self._connection.recv(count)

    def write(self, data: bytes) -> int:
        self._wait()
        self._connection.sendall(data)
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._connection.close()

    def _wait(self) -> None:
        left_s = self.deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._connection.settimeout(left_s)
