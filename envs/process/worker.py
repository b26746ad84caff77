"""A simulator in a process of its own: started when it is first needed, watched, killed for sure, and started again.

Nothing here knows what is simulated; the process itself is envs/process/supervised.py.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from envs.process.supervised import Message, ProcessGone, SupervisedProcess

START_TRIES = 3
"""Processes that may die while they start before that counts as a mistake of this machine."""
UNNAMED_FAILURE = "error"
"""The failure that envs/process/serving.py answers where the program has no name for it."""


@dataclass(frozen=True)
class WorkerSettings:
    """How a worker is started and how long it may take.

    python: the interpreter, as a command line ("xvfb-run -a /opt/rlbench/bin/python"); "" is this one.
    start_s: time limit of the start; step_s: of any later answer [s].
    grace_s: from SIGTERM, which a simulator may ignore, to SIGKILL [s].

    Raises ValueError for times that make no sense.
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
    """A request failed. name: ``crash``, ``hang`` or the program's own name for the failure; text: the details."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name, self.text = name, text


class WorkerStartError(ValueError):
    """The process or its program could not be started: the settings are wrong, not one episode."""


class WorkerInterrupted(RuntimeError):
    """`Worker.interrupt` was called: nothing has failed, and nothing is to be tried again."""


class Worker:
    """One process that answers `request`. The first request starts it, and so does the first one after it was lost."""

    def __init__(
        self, program: Path, options: Mapping[str, Any], settings: WorkerSettings,
        environment: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """program, options: see envs/process/serving.py; environment: of the process, None: this one's."""
        self._program, self._options, self._settings = program.resolve(), dict(options), settings
        self._environment = dict(os.environ if environment is None else environment)
        self._process: SupervisedProcess | None = None
        self._interrupted = self._had_unnamed_failure = False
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """Of the process; None while there is none."""
        return None if self._process is None else self._process.pid

    def request(
        self, message: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None, limit_s: float = 0.0
    ) -> Message:
        """The program's answer within `limit_s` [s] (0: step_s).

        Raises WorkerFailure: ``crash`` (the process ended), ``hang`` (it was killed for taking too long), or the failure's
        name by its program; WorkerStartError when it does not start; WorkerInterrupted after `interrupt`.
        """
        self.start()
        return self._exchange(message, arrays, limit_s or self._settings.step_s)

    def start(self) -> None:
        """Starts the process and its program, unless they run. Raises WorkerStartError, and WorkerInterrupted.

        A process that dies while it starts is started again, up to `START_TRIES` times in all: a simulator does so now and
        then, which must not end a run of hours. A failure that its program reports is not tried again.
        """
        for attempt in range(START_TRIES):
            if self._process is not None:
                return
            self._end_if_interrupted()
            try:
                self._open()
            except WorkerFailure as failure:
                printed = "" if self._process is None else self._process.printed_tail()  # else `failure` holds it
                self.kill()
                if failure.name != "crash" or attempt == START_TRIES - 1:
                    python = self._settings.python or sys.executable
                    raise WorkerStartError(f"{self._program.name} in {python} did not start: {failure}{printed}") from failure

    def _open(self) -> None:
        """Starts a process and gives it the options. Raises WorkerStartError without an interpreter, and WorkerFailure."""
        interpreter = shlex.split(self._settings.python) or [sys.executable]
        try:
            self._process = SupervisedProcess(
                interpreter, self._program, environment=self._environment, capture_output=True
            )
        except OSError as error:
            raise WorkerStartError(f"{interpreter[0]} can not be started ({error}); give another interpreter") from error
        self._had_unnamed_failure = False
        self.starts += 1
        self._exchange(self._options, None, self._settings.start_s)

    def discard_unhealthy(self) -> None:
        """Ends a process that has died meanwhile or failed without a name, so that the next request starts another.

        After a failure that its program has no name for, nobody knows in which state it left its world.
        """
        if self._process is not None and (self._had_unnamed_failure or self._process.status is not None):
            self.kill()

    def interrupt(self) -> None:
        """From another thread: ends the process at once and for good. A pending request raises WorkerInterrupted."""
        self._interrupted = True
        process = self._process
        if process is not None:
            process.signal(signal.SIGKILL)

    def _end_if_interrupted(self) -> None:
        """Raises WorkerInterrupted after `interrupt`, with the process ended, also one that started at that moment."""
        if self._interrupted:
            self.kill()
            raise WorkerInterrupted("the worker was interrupted; make another one")

    def kill(self) -> None:
        """Ends the process and all that it started, by SIGTERM and then SIGKILL. Does nothing without a process."""
        if self._process is not None:
            process, self._process = self._process, None
            process.stop(self._settings.grace_s, terminate=True)

    close = kill

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _exchange(
        self, message: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None, limit_s: float
    ) -> Message:
        self._end_if_interrupted()
        process = self._process
        assert process is not None
        try:
            answer, back = process.exchange(message, arrays, limit_s)
        except TimeoutError:
            printed = process.printed_tail()
            self.kill()
            raise WorkerFailure("hang", f"no answer within {limit_s:g} s, so it was killed{printed}") from None
        except ProcessGone as error:
            process.wait(self._settings.grace_s)
            status, printed = process.status, process.printed_tail()
            self.kill()
            self._end_if_interrupted()
            raise WorkerFailure("crash", f"the process ended with status {status}{printed}") from error
        if "failed" in answer:
            self._had_unnamed_failure = self._had_unnamed_failure or answer["failed"] == UNNAMED_FAILURE
            raise WorkerFailure(str(answer["failed"]), str(answer.get("text", "")))
        return answer, back
