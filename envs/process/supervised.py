"""A child process under supervision: a private socket, a deadline for every answer, and an end that is certain.

Its owners are envs/process/worker.py (simulators, which it starts again) and teachers/adapters/teacher.py (external policies).
The other end is envs/process/serving.py, in whatever interpreter the owner names.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from envs.process.wire import WireError, receive, send

SERVING = Path(__file__).resolve().parent / "serving.py"
TAIL_BYTES = 2000
"""How much of the end of its captured output `printed_tail` returns."""

Message = tuple[dict[str, Any], dict[str, np.ndarray]]


class ProcessGone(RuntimeError):
    """The process ended, or wrote something that is no message, instead of answering."""


class SupervisedProcess:
    """One running ``interpreter serving.py FD program``, in a session of its own.

    Ctrl-C in a terminal does not reach it, and `stop` ends its children with it.
    """

    def __init__(
        self, interpreter: Sequence[str], program: Path, *, environment: Mapping[str, str] | None = None,
        capture_output: bool = False,
    ) -> None:  # fmt: skip
        """Starts the process; it has not answered yet. Raises OSError where the interpreter cannot be started.

        interpreter: command and its arguments; program: see envs/process/serving.py; environment: of the process, None: this
        one's; capture_output: keep what it prints for `printed_tail`, else it goes to standard error.
        """
        self._connection, theirs = socket.socketpair()
        self._output = tempfile.TemporaryFile("a+b") if capture_output else None  # noqa: SIM115 - as long as the process
        try:
            self._process = subprocess.Popen(
                [*interpreter, str(SERVING), str(theirs.fileno()), str(program)], stdin=subprocess.DEVNULL,
                stdout=self._output or sys.__stderr__, stderr=subprocess.STDOUT if capture_output else None,
                env=None if environment is None else dict(environment), pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip
        except OSError:
            self._connection.close()
            self._close_output()
            raise
        finally:
            theirs.close()
        self._stream, self._stopped = _DeadlineStream(self._connection), False

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    @property
    def status_text(self) -> str:
        """The exit status in words."""
        status = self.status
        if status is None:
            return "its process was ended"
        return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"

    def exchange(
        self, message: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None, limit_s: float
    ) -> Message:
        """Sends one message and returns the answer.

        limit_s: for both [s]. Raises TimeoutError without an answer by then, ProcessGone where none can come any more, and
        ValueError for a message that cannot be sent (envs/process/wire.py).
        """
        self._stream.deadline = time.monotonic() + limit_s
        stream = cast(BinaryIO, self._stream)
        try:
            send(stream, message, arrays)
            return receive(stream)
        except TimeoutError:
            raise
        except (WireError, OSError) as error:
            raise ProcessGone(str(error)) from error

    def wait(self, limit_s: float) -> None:
        """Waits until the process has ended, but no longer than `limit_s` [s]."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(limit_s)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process and to all that it started. May be called from another thread."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)  # it leads a group of its own

    def stop(self, grace_s: float, terminate: bool = False) -> None:
        """Ends the process and all that it started; calling it again does nothing.

        Its socket closes, on which it ends by itself; with `terminate` it also gets SIGTERM. What is left of its group after
        `grace_s` [s] gets SIGKILL.
        """
        if self._stopped:
            return
        self._stopped = True
        self._connection.close()
        if terminate:
            self.signal(signal.SIGTERM)
        self.wait(grace_s)
        self.signal(signal.SIGKILL)
        self._process.wait()
        self._close_output()

    def printed_tail(self) -> str:
        """The end of its captured output, as the end of a message: "; it printed last: ..", or ""."""
        if self._output is None or self._output.closed:
            return ""
        descriptor = self._output.fileno()
        size = os.fstat(descriptor).st_size
        printed = os.pread(descriptor, TAIL_BYTES, max(0, size - TAIL_BYTES)).decode(errors="replace").strip()
        return f"; it printed last: {printed}" if printed else ""

    def _close_output(self) -> None:
        if self._output is not None:
            self._output.close()


class _DeadlineStream:
    """A socket that is read and written as a file until a deadline, after which it raises TimeoutError."""

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

    def _wait(self) -> None:
        left_s = self.deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._connection.settimeout(left_s)
