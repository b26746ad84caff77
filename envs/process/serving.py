"""The other end of envs/process/supervised.py: a process in any interpreter that answers one message after the other.

It is started by its path as ``python serving.py FD PROGRAM``, needs Python 3.8 or newer and numpy, and imports nothing of
ours by name. FD is an open socket of its own, so whatever the program prints cannot disturb it. PROGRAM is a Python file with

    start(options, load) -> served          options: a dict of JSON; load(path): a Python file as a module, once a process
    served.answer(message, arrays) -> (message, arrays)
    served.opened -> message                optional: the answer to the options, {} without
    name_of(error) -> str                   optional: the failure's name, "" where it has none
    text_of(error) -> str                   optional: what the failure is, in one line
    GRACE_S: float                          optional: how long it may take to end by itself once its owner is gone [s]

The first message holds the options, all others go to `answer`. A failure is answered as ``{"failed": name, "text": one
line}``. The process ends when its owner is gone.
"""

from __future__ import annotations

import importlib.util
import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, cast

HERE = Path(__file__).resolve().parent


def load(path: Path) -> ModuleType:
    """A Python file as a module of its own, once a process. Raises ImportError when there is none."""
    name = module_name(path)
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, str(path))
        if spec is None or spec.loader is None or not path.is_file():
            raise ImportError(f"there is no Python file at {path}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def module_name(path: Path) -> str:
    """The name under which `load` keeps a file: one that no user's package has."""
    return "flow2one_" + path.stem


def serve(stream: BinaryIO, program: Path) -> None:
    """Answer until the owner closes the stream."""
    wire, loaded = load(HERE / "wire.py"), load(program)
    served: Any = None
    while True:
        try:
            message, arrays = wire.receive(stream)
        except wire.WireError:  # the owner is gone
            return
        try:
            if served is None:
                served = loaded.start(message, load)
                answer: tuple[dict[str, Any], dict[str, Any]] = (getattr(served, "opened", {}), {})
            else:
                answer = served.answer(message, arrays)
        except Exception as error:
            answer = (failed(loaded, error), {})
        try:
            wire.send(stream, *answer)
        except ValueError as error:  # an array of objects, or a number that is not finite: nothing was sent
            wire.send(stream, failed(loaded, error), {})
        except OSError:
            return


def failed(program: ModuleType, error: Exception) -> dict[str, str]:
    """The answer to a message that failed; its name is ``error`` where the program has none."""
    name_of, text_of = (getattr(program, name, None) for name in ("name_of", "text_of"))
    name = (name_of(error) if name_of is not None else "") or "error"
    if text_of is not None:
        return {"failed": name, "text": text_of(error)}
    text = " ".join(str(error).split())
    return {"failed": name, "text": type(error).__name__ + (": " + text if text else "")}


def grace_s(program: Path) -> float:
    """The program's `GRACE_S` [s]; 0 where it has none, or is not loaded yet."""
    return float(getattr(sys.modules.get(module_name(program)), "GRACE_S", 0.0))


def end_with(connection: socket.socket, program: Path) -> None:
    """End this process once its owner is gone, even while the program hangs in a call."""
    poll = select.poll()
    poll.register(connection, 0)  # a hang-up is always reported
    while not any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll()):
        pass
    time.sleep(grace_s(program))
    os._exit(1)


def main(descriptor: str, path: str) -> None:
    # Python put this folder first: `import rlbench` in it must find the package, not our file of that name
    sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != HERE]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the owner, too, whose end is this process's end
    connection, program = socket.socket(fileno=int(descriptor)), Path(path).resolve()
    threading.Thread(target=end_with, args=(connection, program), daemon=True).start()
    serve(cast(BinaryIO, connection.makefile("rwb")), program)
    sys.stdout.flush()
    if not grace_s(program):
        os._exit(0)  # a simulator's own threads would keep the process alive


if __name__ == "__main__":
    main(*sys.argv[1:])
