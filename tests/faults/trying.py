"""Tries: a command is started by the fork server, something happens to it, and what it leaves is compared."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 120.0
"""A try that takes longer hangs, which is a finding."""


@dataclass(frozen=True)
class Outcome:
    """status: exit status, negative for a signal. said: what it printed, without progress bars."""

    status: int
    said: str

    @property
    def lines(self) -> list[str]:
        return [line for line in re.split(r"[\r\n]+", self.said) if line.strip() and "%|" not in line]

    @property
    def line(self) -> str:
        """The last line that tells what happened; "" without any."""
        told = [line for line in self.lines if line.startswith(("error:", "interrupted", "terminated", "flow2one stopped"))]
        return told[-1] if told else ""


@dataclass
class Running:
    """A command that runs. log: what it prints so far."""

    server: Server
    pid: int
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def ended(self) -> bool:
        return self.server.status_of(self.pid, 0.0) is not None

    def wait(self, limit_s: float = LIMIT_S) -> Outcome:
        """Its outcome; a process that does not end by then is killed, with all that it started, and AssertionError raised."""
        status = self.server.status_of(self.pid, limit_s)
        if status is None:
            self.end_all()
            raise AssertionError(f"hung for {limit_s} s: {self.said[-2000:]}")
        self.end_all(0.3)
        return Outcome(status, self.said)

    def processes(self) -> list[psutil.Process]:
        """The process and everything that it started, alive."""
        try:
            root = psutil.Process(self.pid)
            return [each for each in (root, *root.children(recursive=True)) if each.status() != psutil.STATUS_ZOMBIE]
        except psutil.NoSuchProcess:
            return []

    def signal(self, number: int, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def interrupt_group(self, number: int) -> None:
        """What a terminal does at Ctrl-C: every process of the foreground group gets it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def end_all(self, grace_s: float = 0.0) -> None:
        """Whatever is left of its session is killed. Its own processes are given time to notice that it is gone."""
        end = time.monotonic() + grace_s
        while (left := _of_session(self.pid)) and time.monotonic() < end:
            time.sleep(0.02)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _of_session(leader: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getsid(int(name)) == leader and Path(f"/proc/{name}/stat").read_text().split(") ")[1][0] != "Z":
                    found.append(int(name))
    return found


class Server:
    """The fork server, see server.py."""

    def __init__(self) -> None:
        mine, theirs = socket.socketpair()
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("TORCHELASTIC", "PYTEST"))}
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "faults" / "server.py"), str(theirs.fileno())], cwd=ROOT,
            pass_fds=[theirs.fileno()], env={**environment, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        theirs.close()
        self._connection, self._rest, self._status = mine, b"", dict[int, int]()

    def start(
        self, cwd: Path, argv: Sequence[str], *, until: str = "", fault: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None, limits: Mapping[str, int] | None = None, modules: str = "",
        log: Path | None = None,
    ) -> Running:  # fmt: skip
        """Start a command. until: the stage that it ends with. fault: see layer.py. limits: RLIMIT_* by name."""
        log = log or cwd.with_name(cwd.name + ".log")
        log.unlink(missing_ok=True)
        self._send({
            "cwd": str(cwd), "argv": list(argv), "log": str(log), "until": until, "fault": dict(fault or {}),
            "environment": dict(environment or {}), "limits": dict(limits or {}), "modules": modules,
        })  # fmt: skip
        return Running(self, int(self._answer("pid", LIMIT_S)), log)

    def run(self, cwd: Path, argv: Sequence[str], **named: Any) -> Outcome:
        return self.start(cwd, argv, **named).wait()

    def fuzz(self, work: Path, reader: str, seconds: float, seed: int, findings: Path) -> Outcome:
        """Damaged files for one reader, see fuzzing.py."""
        work.mkdir(parents=True, exist_ok=True)
        log = work.with_name("fuzz.log")
        self._send({"cwd": str(work), "argv": [], "log": str(log), "fuzz": [reader, seconds, seed, str(work), str(findings)]})
        return Running(self, int(self._answer("pid", LIMIT_S)), log).wait(20 * seconds + LIMIT_S)

    def warm_up(self, modules: Sequence[str], cwd: Path, argv: Sequence[str]) -> None:
        """Import these and parse the options, as a command did that was run before."""
        self._send({"import": list(modules), "cwd": str(cwd), "argv": list(argv)})
        assert self._answer("imported", LIMIT_S)

    def close(self) -> None:
        self._connection.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def status_of(self, pid: int, limit_s: float) -> int | None:
        end = time.monotonic() + limit_s
        while pid not in self._status:
            left = end - time.monotonic()
            if not self._read(max(0.0, left)) and left <= 0:
                return None
        return self._status[pid]

    def _send(self, request: Mapping[str, Any]) -> None:
        self._connection.sendall((json.dumps(request) + "\n").encode())

    def _answer(self, name: str, limit_s: float) -> Any:
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            for answer in self._read(0.5):
                if name in answer:
                    return answer[name]
        raise AssertionError("the fork server does not answer")

    def _read(self, limit_s: float) -> list[dict[str, Any]]:
        if not select.select([self._connection], [], [], limit_s)[0]:
            return []
        data = self._connection.recv(65536)
        if not data:
            raise AssertionError("the fork server is gone")
        *lines, self._rest = (self._rest + data).split(b"\n")
        answers = [json.loads(line) for line in lines]
        for answer in answers:
            if "exited" in answer:
                self._status[answer["exited"]] = answer["status"]
        return answers


# -- what is on disk -----------------------------------------------------------------------------------------------------

TIMED = ("latency", "frontier", "report")
"""Stages whose content is measured times and dates: their files' names are compared, not their bytes."""
SECONDS = re.compile(rb'"(cpu_)?seconds": [0-9.e+-]+|"shard_seconds": [0-9.e+-]+')


def contents(folder: Path, stages: Sequence[str] | None = None) -> dict[str, str]:
    """sha256 of every file of the finished stages of a run, by stage/file; without times and costs.

    Without stages: of every stage that is finished, those that are archived, too.
    """
    found: dict[str, str] = {}
    for manifest in sorted(folder.rglob("manifest.json")):
        stage = str(manifest.parent.relative_to(folder))
        if ".partial" in stage or (stages is not None and stage not in stages):
            continue
        for path in sorted(manifest.parent.rglob("*")):
            if path.is_file() and path.name != "manifest.json":
                data = b"" if stage.split(".")[0] in TIMED else SECONDS.sub(b"", path.read_bytes())
                found[f"{stage}/{path.relative_to(manifest.parent)}"] = hashlib.sha256(data).hexdigest()
    return found


@dataclass
class Prefixes:
    """A finished run, cut before each of its stages.

    whole: its folder. names: its stages in the order in which they ended. argv: the command; folder: of the run, relative to
    where the command works. given: files that the command reads.
    """

    whole: Path
    names: list[str]
    argv: list[str]
    folder: str
    given: Sequence[Path] = ()
    reference: dict[str, str] = field(default_factory=dict)

    def before(self, stage: str, place: Path) -> Path:
        """A working folder at `place` in which all stages before this one are done."""
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for path in self.given:
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, place / path.name)
        run = place / self.folder
        run.mkdir(parents=True)
        (run / ".lock").touch()
        for name in self.names[: self.names.index(stage)]:
            shutil.copytree(self.whole / name, run / name)
        return place

    def expected(self, stage: str) -> dict[str, str]:
        """The contents after this stage."""
        done = self.names[: self.names.index(stage) + 1]
        return {name: value for name, value in self.reference.items() if any(name.startswith(each + "/") for each in done)}

    def lost(self, place: Path, stage: str) -> list[str]:
        """What differs from the undisturbed run among the stages before this one, which a try must not touch."""
        done = self.names[: self.names.index(stage)]
        expected = {name: value for name, value in self.reference.items() if any(name.startswith(each + "/") for each in done)}
        got = contents(place / self.folder)
        return sorted(name for name, value in expected.items() if got.get(name) != value)

    def different(self, place: Path, stage: str) -> list[str]:
        """What differs from the undisturbed run up to this stage."""
        expected, got = self.expected(stage), contents(place / self.folder)
        return sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))


def wait_for_line(running: Running, text: str, limit_s: float = LIMIT_S) -> bool:
    """Wait until the command printed this; False when it ended before."""
    end = time.monotonic() + limit_s
    while text not in running.said:
        if running.ended():
            return text in running.said
        assert time.monotonic() < end, running.said[-1000:]
        time.sleep(0.003)
    return True


def random_moments(seed: str, tries: int) -> Iterator[random.Random]:
    """A generator of random numbers for each try, the same in every run of the tests."""
    for number in range(tries):
        yield random.Random(f"{seed}:{number}")


Check = Callable[[Path], list[str]]
