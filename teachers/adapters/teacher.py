"""External policies as teachers: an adapter file that the user names, run in a process of its own over a private socket."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from envs.process.supervised import Message, ProcessGone, SupervisedProcess
from teachers import solvers
from teachers.adapters import program
from teachers.contract import Observation


@dataclass(frozen=True)
class AdapterFile:
    """Which adapter: `function` of `file`, called with `arguments`, in the interpreter `python` ("": this one).

    timeout_s: time limit of one answer [s], building included.
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
class AdapterDescription:
    """What an adapter says of itself; see `teachers.adapters.seeded.AdaptedPolicy`. None: it does not say.

    parameters: weights of its networks; torch, python: versions in its process; hardware: what it runs on. obstacle: why its
    own network cannot become a one-step student, "" where it can; saves: whether it can write that in its own format.
    """

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
    obstacle: str
    saves: bool
    instruction: str = ""


LAUNCHED_BY = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher of several processes tells each of them; TORCHELASTIC_* and ACCELERATE_*, too."""


def own_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of an adapter's process: nobody's rank, and the GPU of the process that owns it.

    With several processes on a machine with several GPUs, each adapter sees one of them, as ``cuda:0``.
    """
    prefixes = ("TORCHELASTIC_", "ACCELERATE_", "ROLE_")
    own = {name: value for name, value in environment.items() if name not in LAUNCHED_BY and not name.startswith(prefixes)}
    if int(environment.get("LOCAL_WORLD_SIZE", "1")) > 1:
        named = environment.get("CUDA_VISIBLE_DEVICES", "")
        devices = named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
        if len(devices) > 1:
            own["CUDA_VISIBLE_DEVICES"] = devices[int(environment["LOCAL_RANK"]) % len(devices)]
    return own


class AdapterGone(ValueError):
    """The adapter's process ended: killed, out of memory, or by its own code."""


class AdapterTeacher:
    """An adapter as a teacher (`teachers.contract.Teacher`), and as one that draws each chunk from a seed of its own.

    Every method raises ValueError in one line when the adapter raises (its file, its line), does not answer in time, or its
    process ends. Close it, or use it as a context manager: its process ends with it.

    features: the features it is given of an observation; None: all. is_student: whether its chunks are those of its own
    network after fine-tuning, at one evaluation (`student`).
    """

    def __init__(self, adapter: AdapterFile) -> None:
        self.adapter, self.is_student = adapter, False
        self._student: AdapterTeacher | None = None
        self._violations: list[str] = []
        self._process = SupervisedProcess(
            [adapter.python or sys.executable], Path(program.__file__).resolve(), environment=own_environment(os.environ)
        )
        options = {
            "file": str(adapter.file), "function": adapter.function, "arguments": dict(adapter.arguments),
            "threads": torch.get_num_threads(), "solvers": str(Path(solvers.__file__).resolve()),
        }  # fmt: skip
        try:
            described, _ = self._exchange("open", options)
        except BaseException:
            self.close()
            raise
        for name in ("features", "action_names"):
            described[name] = None if described[name] is None else tuple(described[name])
        self.description = AdapterDescription(**described)
        self.features = self.description.features

    # -- the contract ----------------------------------------------------------------------------------------------

    def sample(
        self, observation: Observation, num_hypotheses: int, num_steps: int, generator: torch.Generator
    ) -> Tensor:
        """`[B, K, T, A]` raw actions; one seed, which everything is drawn from, is taken from the generator."""
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        answer, arrays = self.request(
            "sample", self.arrays(observation), num_hypotheses=num_hypotheses, num_steps=num_steps, seed=seed
        )
        self._violations += [each for each in answer["violations"] if each not in self._violations]
        return _tensor(arrays, observation)

    def evaluations(self, num_steps: int) -> int:
        """Network evaluations (NFE) of a chunk in `num_steps` solver steps."""
        return int(self.request("evaluations", num_steps=num_steps)[0]["evaluations"])

    def contract_violations(self) -> list[str]:
        """Violations that the adapter's process saw in all calls of `sample`; the process boundary hides them here."""
        return list(self._violations)

    # -- beyond it -------------------------------------------------------------------------------------------------

    def sample_from_seeds(self, observation: Observation, seeds_BK: np.ndarray, num_steps: int) -> Tensor:
        """`[B, K, T, A]` raw actions, each from its own seed (an adapter with `sample`: an observation's from its first)."""
        arrays = {**self.arrays(observation), "seeds": np.ascontiguousarray(seeds_BK, dtype=np.int64)}
        return _tensor(self.request("draw", arrays, num_steps=num_steps)[1], observation)

    def time_call(
        self, observation: Observation, seed: int, num_steps: int, samples: int = 1
    ) -> tuple[float, list[float]]:
        """Milliseconds of one call for one observation, measured in the adapter's process: whole, then its four stages.

        samples: chunks that are drawn in that call.
        The stages are those of distill.evaluation.latency: to tensors, encode, head, to arrays. Without an `encode` of the
        adapter, the head holds everything.
        """
        answer, _ = self.request("time", self.arrays(observation), num_steps=num_steps, seed=seed, samples=samples)
        stages_ms = [float(value) for value in answer["stages_ms"]]
        return sum(stages_ms), stages_ms

    def arrays(self, observation: Observation) -> dict[str, np.ndarray]:
        """What is sent of an observation."""
        return {name: value.detach().cpu().numpy() for name, value in observation.items()
                if self.features is None or name in self.features}  # fmt: skip

    def in_place_violations(self, observation: Observation) -> list[str]:
        """What is wrong with what it offers for training its own network, a line each; [] where it offers nothing."""
        if self.description.obstacle or self.is_student:
            return []
        found: list[str] = self.request("check", self.arrays(observation))[0]["faults"]
        return found

    def another(self) -> AdapterTeacher:
        """The same adapter in a further process, for weights that are to change."""
        made = AdapterTeacher(self.adapter)
        made.features = self.features
        return made

    def student(self, weights: Path) -> AdapterTeacher:
        """Its own network with fine-tuned weights, at one evaluation: in a further process, which ends with this one.

        Called again, that process takes the other weights. Raises ValueError for weights of another network.
        """
        if self._student is None:
            self._student = self.another()
        self._student.use(weights)
        return self._student

    def use(self, weights: Path) -> None:
        """From now on its chunks are those of its own network with these weights, at one evaluation."""
        self.request("use", weights=str(weights.resolve()))
        self.is_student = True

    # -- the process -----------------------------------------------------------------------------------------------

    def request(self, command: str, arrays: Mapping[str, np.ndarray] | None = None, **fields: Any) -> Message:
        """The answer to a command of teachers/adapters/program.py. Raises ValueError, of which AdapterGone is one."""
        return self._exchange(command, {"command": command, **fields}, arrays)

    def _exchange(self, command: str, message: dict[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> Message:
        name = f"the adapter {self.adapter}"
        try:
            answer, back = self._process.exchange(message, arrays, self.adapter.timeout_s)
        except TimeoutError as error:
            self.close()
            raise ValueError(f"{name} gave no answer to {command!r} within {self.adapter.timeout_s:g} s; raise "
                             "--adapter.timeout-s, or see where it waits") from error  # fmt: skip
        except ProcessGone as error:
            self.close()
            raise AdapterGone(f"{name} is gone ({self._process.status_text}) while asked to {command!r}; what it "
                             "said stands above") from error  # fmt: skip
        if "failed" in answer:
            raise ValueError(f"{name}: {answer['text']}")
        return answer, back

    def close(self) -> None:
        """Ends the process: its socket closes, and what is left after `program.GRACE_S` is killed."""
        if self._student is not None:
            self._student.close()
        self._process.stop(program.GRACE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _tensor(arrays: Mapping[str, np.ndarray], observation: Observation) -> Tensor:
    return torch.from_numpy(arrays["chunks"]).to(next(iter(observation.values())).device)
