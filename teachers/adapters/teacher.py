"""Teachers from outside: an adapter file that the user names, run in a process of its own and asked over a private socket."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

import numpy as np
import torch
from torch import Tensor

from envs.process import wire
from envs.process.wire import WireError, receive, send
from teachers import solvers
from teachers.adapters import program, seeded
from teachers.contract import Observation

GRACE_S = 3.0
"""How long a worker may take to end by itself once its socket is closed [s]."""


@dataclass(frozen=True)
class AdapterFile:
    """Which adapter: `function` of `file`, called with `arguments`, by the interpreter `python` ("": this one).

    timeout_s: how long one answer may take [s], the building included.
    """

    file: Path
    function: str = "build"
    arguments: tuple[tuple[str, str], ...] = ()
    python: str = ""
    timeout_s: float = 600.0

    @classmethod
    def parse(cls, text: str, arguments: Mapping[str, str] | None = None, python: str = "", timeout_s: float = 600.0) -> Self:
        """``path/to/my_policy.py`` or ``path/to/my_policy.py:build``. Raises ValueError where there is no such file."""
        path, colon, function = text.rpartition(":") if not text.endswith(".py") else (text, "", "build")
        if not path.endswith(".py") or not function.isidentifier():
            raise ValueError(f"{text}: expected an adapter as path/to/my_policy.py:build")
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such adapter file; expected a Python file with a function {function}()")
        if python and not os.access(python, os.X_OK):
            raise ValueError(f"adapter.python: {python} is no program; expected an interpreter, /path/to/venv/bin/python")
        return cls(Path(path).resolve(), function, tuple(sorted((arguments or {}).items())), python, timeout_s)

    def __str__(self) -> str:
        return f"{self.file}:{self.function}"


@dataclass(frozen=True)
class Described:
    """What an adapter says of itself; see `teachers.adapters.seeded.Adapted`. None: it does not say."""

    kind: str
    horizon: int | None
    action_size: int | None
    observation_steps: int
    num_steps: int
    features: tuple[str, ...] | None
    separable: bool
    device: str
    action_names: tuple[str, ...] | None
    dt_s: float | None
    parameters: int | None
    torch: str
    python: str
    hardware: str
    instruction: str = ""


class AdapterTeacher:
    """An adapter as a teacher (`teachers.contract.Teacher`), and as one that draws each chunk from a seed of its own.

    Every method raises ValueError in one line when the adapter raises (its file, its line), does not answer in time, or its
    process ends. Close it, or use it as a context manager: the worker ends with it.
    """

    def __init__(self, adapter: AdapterFile) -> None:
        self.adapter = adapter
        self._faults: list[str] = []
        mine, its = socket.socketpair()
        mine.settimeout(adapter.timeout_s)
        files = [str(Path(str(module.__file__)).resolve()) for module in (program, wire, seeded, solvers)]
        with its:
            # a session of its own: Ctrl-C is ours to answer, and its children can be ended with it. What it prints goes to
            # where errors go, so that nothing is mixed into what we print
            self._process = subprocess.Popen(
                [adapter.python or sys.executable, files[0], str(its.fileno()), *files[1:]],
                pass_fds=[its.fileno()], stdin=subprocess.DEVNULL, stdout=sys.__stderr__, start_new_session=True,
            )  # fmt: skip
        self._socket, self._stream = mine, cast(BinaryIO, mine.makefile("rwb"))
        try:
            told, _ = self._ask({
                "do": "open", "file": str(adapter.file), "function": adapter.function, "arguments": dict(adapter.arguments),
                "threads": torch.get_num_threads(),
            })  # fmt: skip
        except BaseException:
            self.close()
            raise
        for name in ("features", "action_names"):
            told[name] = None if told[name] is None else tuple(told[name])
        self.described = Described(**told)
        self.features = self.described.features
        """What it is shown of an observation; None: all of it."""

    # -- the contract ----------------------------------------------------------------------------------------------

    def sample(
        self, observation: Observation, num_hypotheses: int, num_steps: int, generator: torch.Generator
    ) -> Tensor:
        """`[B, K, T, A]` raw actions; one seed, which everything is drawn from, is taken from the generator."""
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        told, arrays = self._ask(
            {"do": "sample", "num_hypotheses": num_hypotheses, "num_steps": num_steps, "seed": seed}, self._arrays(observation),
        )  # fmt: skip
        self._faults += [fault for fault in told["faults"] if fault not in self._faults]
        return _tensor(arrays, observation)

    def evaluations(self, num_steps: int) -> int:
        return int(self._ask({"do": "evaluations", "num_steps": num_steps})[0]["evaluations"])

    def faults(self) -> list[str]:
        """What the worker saw of the calls of `sample` so far that the process boundary hides from us."""
        return list(self._faults)

    # -- beyond it -------------------------------------------------------------------------------------------------

    def sample_from_seeds(self, observation: Observation, seeds_BK: np.ndarray, num_steps: int) -> Tensor:
        """`[B, K, T, A]` raw actions, each from its own seed (an adapter with `sample`: an observation's from its first)."""
        arrays = {**self._arrays(observation), "seeds": np.ascontiguousarray(seeds_BK, dtype=np.int64)}
        return _tensor(self._ask({"do": "draw", "num_steps": num_steps}, arrays)[1], observation)

    def time_call(self, observation: Observation, seed: int, num_steps: int) -> tuple[float, list[float]]:
        """Milliseconds of one call for one observation, measured in the worker: whole, then its four stages.

        The stages are those of distill.evaluation.latency: to tensors, encode, head, to arrays. Where the adapter has no
        `encode`, all is in the head.
        """
        told, _ = self._ask({"do": "time", "num_steps": num_steps, "seed": seed}, self._arrays(observation))
        return float(told["whole_ms"]), [float(value) for value in told["stages_ms"]]

    def _arrays(self, observation: Observation) -> dict[str, np.ndarray]:
        return {name: value.detach().cpu().numpy() for name, value in observation.items()
                if self.features is None or name in self.features}  # fmt: skip

    # -- the process -----------------------------------------------------------------------------------------------

    def _ask(
        self, message: dict[str, Any], arrays: Mapping[str, np.ndarray] | None = None
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        name = f"the adapter {self.adapter}"
        try:
            send(self._stream, message, arrays)
            told, back = receive(self._stream)
        except TimeoutError as error:
            self.close()
            raise ValueError(f"{name} gave no answer to {message['do']!r} within {self.adapter.timeout_s:g} s; raise "
                             "--adapter.timeout-s, or see where it waits") from error  # fmt: skip
        except (WireError, OSError) as error:
            self.close()
            raise ValueError(f"{name} is gone ({_ending(self._process.returncode)}) while asked to {message['do']!r}; what it "
                             "said stands above") from error  # fmt: skip
        if "error" in told:
            raise ValueError(f"{name}: {told['error']}")
        return told, back

    def close(self) -> None:
        """End the worker: it goes when its socket closes, and is killed if it does not."""
        for part in (self._stream, self._socket):
            with contextlib.suppress(OSError):  # a message was half sent
                part.close()
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _tensor(arrays: Mapping[str, np.ndarray], observation: Observation) -> Tensor:
    return torch.from_numpy(arrays["chunks"]).to(next(iter(observation.values())).device)


def _ending(status: int | None) -> str:
    if status is None:
        return "its process was ended"
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
