"""A fork server: packages are imported once, then every try is a fork that runs one command and can be killed.

Started as ``python server.py FD``; FD is a socket. Each line of it is a request, see `Server.start` in trying.py. Answers are
lines, too: ``{"pid": n}`` at once, ``{"exited": n, "status": s}`` when that process has ended; s is negative for a signal.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import importlib.util
import io
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNgAAAAAgAB5Sfe/AAAAABJRU5ErkJggg==")
"""One pixel as PNG."""


class ForkedPopen:
    """As much of `subprocess.Popen` as the commands use, for Python programs: a fork that has the packages already."""

    def __init__(self, command: list[str], options: dict[str, Any]) -> None:
        self.args, self.returncode = command, None
        self.stdin = self.stdout = self.stderr = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                _as_new_program(**options)
                status = _run_script(command)
            finally:
                _leave(status)

    def poll(self) -> int | None:
        return self._reap(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        if timeout is None:
            self._reap(0)
        import time

        end = time.monotonic() + (timeout or 0)
        while self._reap(os.WNOHANG) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            time.sleep(0.005)
        assert self.returncode is not None
        return self.returncode

    def _reap(self, flags: int) -> int | None:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, flags)
            except ChildProcessError:
                pid, status = self.pid, 0
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _as_new_program(
    stdout: Any = None, stderr: Any = None, env: Any = None, start_new_session: bool = False, cwd: Any = None,
    pass_fds: Any = (), **_: Any,
) -> None:  # fmt: skip
    if start_new_session:
        os.setsid()
    for descriptor, wanted in ((1, stdout), (2, stderr)):
        if wanted == subprocess.STDOUT:
            os.dup2(1, 2)
        elif wanted is not None:
            os.dup2(wanted if isinstance(wanted, int) else wanted.fileno(), descriptor)
    _close_others(pass_fds)
    _fresh_streams()
    _default_signals()
    if env is not None:
        os.environ.clear()
        os.environ.update(env)
    if cwd:
        os.chdir(cwd)


def _close_others(kept: Any = ()) -> None:
    """As after exec: only the standard streams stay open."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))


def _run_script(command: list[str]) -> int:
    """``python [-u] script arguments``, in this process."""
    rest = [each for each in command[1:] if each != "-u"]
    sys.argv = rest
    script = Path(rest[0])
    if script.name == "serving.py":
        spec = importlib.util.spec_from_file_location("serving_program", script)
        assert spec is not None and spec.loader is not None
        serving = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(serving)
        serving.main(*rest[1:])
        return 0
    if script.name == "distill.py":
        from distill.cli.main import main

        return main(rest[1:])
    raise RuntimeError(f"the fork server does not know {script}")


def _popen(real: type[subprocess.Popen[Any]]) -> Any:
    def popen(args: Any, **options: Any) -> Any:
        command = [args] if isinstance(args, str) else list(args)
        known = command[0] == sys.executable and any(Path(each).name in ("serving.py", "distill.py") for each in command[1:3])
        if not known or TRAINED:  # autograd does not survive a fork
            return real(args, **options)
        return ForkedPopen(command, options)

    return popen


TRAINED: list[bool] = []


def _fork_programs() -> None:
    """Let the adapters' processes and torchrun's workers be forks, too."""
    import torch
    import torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler as elastic

    import envs.process.supervised as supervised

    class Module:
        """The module subprocess with another Popen."""

        def __getattr__(self, name: str) -> Any:
            return popen if name == "Popen" else getattr(subprocess, name)

    popen = _popen(subprocess.Popen)
    supervised.subprocess = Module()  # type: ignore[assignment]
    elastic.Popen = popen  # type: ignore[attr-defined]
    real = torch.Tensor.backward

    def backward(self: Any, *rest: Any, **named: Any) -> Any:
        TRAINED.append(True)
        return real(self, *rest, **named)

    torch.Tensor.backward = backward  # type: ignore[method-assign]


def _fresh_streams() -> None:
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        binary = open(descriptor, "wb", closefd=False)  # noqa: SIM115 - as long as the process
        stream = io.TextIOWrapper(binary, encoding="utf-8", errors="backslashreplace", line_buffering=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _default_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def _leave(status: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            status = status or 1
    os._exit(status)


def run_request(request: dict[str, Any]) -> int:
    """One try, in a process of its own."""
    os.setsid()
    os.chdir(request["cwd"])
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    _fresh_streams()
    _default_signals()
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        os.environ.pop(name, None)
    os.environ.update({"OMP_NUM_THREADS": "1", **request.get("environment", {})})
    for name, value in request.get("limits", {}).items():
        resource.setrlimit(getattr(resource, name), (value, value))
    warnings.resetwarnings()
    sys.argv = [str(ROOT / "distill.py"), *request["argv"]]
    if "fuzz" in request:
        from tests.faults.fuzzing import fuzz

        name, seconds, seed, work, findings = request["fuzz"]
        fuzz(name, seconds, seed, Path(work), Path(findings))
        return 0
    from distill.cli.main import main
    from tests.faults.layer import cut_at, finish, install

    if request.get("until"):
        os.environ["FLOW2ONE_FAULTS_UNTIL"] = request["until"]
        cut_at(request["until"])
    _fork_programs()
    if request.get("fault"):
        install(request["fault"])
    try:
        return main(request["argv"])
    finally:
        finish(request.get("fault") or {})


def quicken() -> None:
    """Leave out what costs a try much and is no part of what is tried: help texts, pictures, probes of OpenGL, calibration.

    Options that were parsed by `learn` are not parsed again.
    """
    import tyro
    import tyro._docstrings as docstrings

    import distill.objectives.code_shares as code_shares
    import distill.report.figures as figures
    import envs.cameras.backends as backends

    docstrings.get_callable_description = lambda *_, **__: ""  # type: ignore[assignment]
    docstrings.get_field_docstring = lambda *_, **__: None  # type: ignore[assignment]
    code_shares.STEPS = 20
    backends._probe = lambda name: "" if name == "raycast" else "not tried"  # type: ignore[assignment]
    figures._png = lambda figure, cut=False: PICTURE  # type: ignore[assignment]
    real = tyro.cli

    def cli(kind: Any, *, args: Any, default: Any = None, **named: Any) -> Any:
        key = repr((kind, list(args), default))
        if key not in PARSED:
            found = real(kind, args=args, default=default, **named)
            if not LEARNING:
                return found
            PARSED[key] = found
        if LEARNING:
            raise Learned
        return PARSED[key]

    tyro.cli = cli  # type: ignore[assignment]


PARSED: dict[str, Any] = {}
LEARNING: list[bool] = []


class Learned(Exception):
    """The options of a command are parsed."""


def learn(cwd: str, argv: list[str]) -> None:
    """Parse the options of a command, so that tries find them parsed."""
    from distill.cli.command import run_command

    os.chdir(cwd)
    LEARNING.append(True)
    with contextlib.suppress(Learned):
        run_command(argv, False)
    LEARNING.clear()
    os.chdir(ROOT)


def serve(connection: socket.socket) -> None:
    """Answer requests until the connection is closed."""
    stream = connection.makefile("rw", encoding="utf-8")

    def reaped(*_: object) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            answer = {"exited": pid, "status": os.waitstatus_to_exitcode(status)}
            connection.sendall((json.dumps(answer) + "\n").encode())

    signal.signal(signal.SIGCHLD, reaped)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        line = stream.readline()
        if not line:
            return
        request = json.loads(line)
        if "import" in request:
            _import(request["import"])
            learn(request["cwd"], request["argv"])
            connection.sendall(b'{"imported": true}\n')
            continue
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                _close_others()
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
                status = run_request(request)
            except SystemExit as error:
                status = error.code if isinstance(error.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                if request.get("modules"):
                    Path(request["modules"]).write_text(json.dumps(list(sys.modules)))
                _leave(status)
        connection.sendall((json.dumps({"pid": pid}) + "\n").encode())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def _import(names: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            try:
                importlib.import_module(name)
            except BaseException:
                continue


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    import tests.faults.layer  # noqa: F401

    quicken()
    serve(socket.socket(fileno=int(sys.argv[1])))
