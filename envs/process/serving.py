"""The other end of envs/process/worker.py: a process in any interpreter that answers one question after the other.

It is started by its path as ``python serving.py FD PROGRAM``, needs Python 3.8 or newer and numpy, and imports nothing of
ours by name. FD is an open socket of its own, so whatever a simulator prints disturbs nobody. PROGRAM is a Python file with

    start(options, beside) -> simulator     options: a dict of JSON; beside(name) loads `name`.py of PROGRAM's folder
    simulator.answer(message, arrays) -> (message, arrays)
    name_of(error) -> str                   optional: the failure's name, "" where it has none

The first question tells the options, all others go to the simulator. A failure is answered as ``{"failed": name, "text":
one line}``. The process ends when the other one is gone.
"""

from __future__ import annotations

import importlib.util
import os
import select
import socket
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, cast

HERE = Path(__file__).resolve().parent


def load(path: Path) -> ModuleType:
    """A Python file as a module of its own, once a process. Raises ImportError when there is none."""
    name = "flow2one_" + path.stem
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, str(path))
        if spec is None or spec.loader is None or not path.is_file():
            raise ImportError(f"there is no Python file at {path}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def serve(stream: BinaryIO, program: Path) -> None:
    """Answer until the other process ends the talk."""
    wire, loaded = load(HERE / "wire.py"), load(program)
    simulator: Any = None
    while True:
        try:
            message, arrays = wire.receive(stream)
        except wire.WireError:  # nobody asks any more
            return
        try:
            if simulator is None:
                simulator = loaded.start(message, lambda name: load(program.parent / (name + ".py")))
                answer: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
            else:
                answer = simulator.answer(message, arrays)
        except Exception as error:
            answer = (failed(loaded, error), {})
        wire.send(stream, *answer)


def failed(program: ModuleType, error: Exception) -> dict[str, str]:
    """What a failure is answered with; ``error`` where the program has no name for it."""
    name_of = getattr(program, "name_of", None)
    name = (name_of(error) if name_of is not None else "") or "error"
    text = " ".join(str(error).split())
    return {"failed": name, "text": type(error).__name__ + (": " + text if text else "")}


def end_with(connection: socket.socket) -> None:
    """End this process as soon as the other end is gone, even while a simulator hangs in a call."""
    poll = select.poll()
    poll.register(connection, 0)  # a hang-up is always reported
    while not any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll()):
        pass
    os._exit(1)


def main(descriptor: str, program: str) -> None:
    # Python put this folder first: `import rlbench` in it must find the package, not our file of that name
    sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != HERE]
    connection = socket.socket(fileno=int(descriptor))
    threading.Thread(target=end_with, args=(connection,), daemon=True).start()
    serve(cast(BinaryIO, connection.makefile("rwb")), Path(program).resolve())
    sys.stdout.flush()
    os._exit(0)  # a simulator's own threads would keep the process alive


if __name__ == "__main__":
    main(*sys.argv[1:])
