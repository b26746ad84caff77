"""The program in which a user's adapter runs: its own process, its own interpreter, its own folder first on the path.

    python program.py <socket's descriptor> <wire.py> <seeded.py> <solvers.py>

Started by teachers/adapters/teacher.py. What it needs of ours it loads by path, under names that no user's package has, so that
a folder with packages of its own named envs, teachers, students or distill works. Messages go over the private socket
(envs/process/wire.py), so that prints disturb nothing. It ends when the other side closes the socket. Python 3.9 or newer.
"""

from __future__ import annotations

import importlib.util
import platform
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch


def load(name: str, path: Path) -> Any:
    """The module at a path, under this name."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class Worker:
    """Answers the questions about one adapter."""

    def __init__(self, adapted: Any, solvers: Any) -> None:
        self._adapted, self._solvers = adapted, solvers
        self.file = Path()

    def open(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Import the adapter and call its `build`; what it is."""
        path = Path(told["file"])
        self.file = path
        torch.set_num_threads(int(told["threads"]))
        # in the place of this program's own folder, as if the file were run by itself
        sys.path[0] = str(path.parent)
        module = load(path.stem, path)
        build = getattr(module, told["function"], None)
        if not callable(build):
            names: Any = sorted(name for name, value in vars(module).items() if callable(value) and not name.startswith("_"))
            raise ValueError(f"{path} has no function {told['function']!r}; it has {names}. Name one: "
                             f"--teacher {path}:<function>")  # fmt: skip
        self.it = self._adapted.adapt(build(**told["arguments"]), self._solvers.integrate)
        built = self.it.built
        names, dt_s = getattr(built, "action_names", None), getattr(built, "dt_s", None)
        return {
            "kind": self.it.kind, "horizon": self.it.horizon, "action_size": self.it.action_size,
            "observation_steps": self.it.observation_steps, "num_steps": self.it.num_steps, "features": self.it.features,
            "separable": self.it.separable, "device": str(self.it.device),
            "action_names": None if names is None else [str(name) for name in names],
            "dt_s": None if dt_s is None else float(dt_s), "parameters": self._adapted.parameters(built),
            "instruction": str(getattr(built, "instruction", None) or ""),
            "torch": torch.__version__, "python": platform.python_version(), "hardware": self._hardware(),
        }  # fmt: skip

    def sample(self, told: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], np.ndarray]:
        """One call of the contract's `sample`, and what was seen of it that the wire would hide."""
        self.it.faults = []
        chunks = self.it.sample(self._seen(arrays), told["num_hypotheses"], told["num_steps"], told["seed"])
        chunks = chunks.float() if chunks.dtype in (torch.bfloat16, torch.float16) else chunks
        return {"faults": self.it.faults, "evaluations": self.it.evaluations(told["num_steps"])}, chunks.cpu().numpy()

    def draw(self, told: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], np.ndarray]:
        """Chunks from a seed each."""
        observation = {name: value for name, value in arrays.items() if name != "seeds"}
        condition = self.it.encode(self._seen(observation))
        chunks = self.it.head(condition, arrays["seeds"].tolist(), told["num_steps"])
        return {"evaluations": self.it.evaluations(told["num_steps"])}, chunks.cpu().numpy()

    def time(self, told: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], np.ndarray]:
        """One call timed as a whole, from arrays to arrays, then once more part by part [ms]."""
        seeds, steps = [[int(told["seed"])]], told["num_steps"]

        def whole() -> np.ndarray:
            return self.it.head(self.it.encode(self._seen(arrays)), seeds, steps).cpu().numpy()

        chunks, whole_ms = self._timed(whole)
        observation, preprocess_ms = self._timed(lambda: self._seen(arrays))
        condition, encode_ms = self._timed(lambda: self.it.encode(observation))
        drawn, head_ms = self._timed(lambda: self.it.head(condition, seeds, steps))
        _, post_ms = self._timed(lambda: drawn.cpu().numpy())
        return {"whole_ms": whole_ms, "stages_ms": [preprocess_ms, encode_ms, head_ms, post_ms]}, chunks

    def evaluations(self, told: Mapping[str, Any]) -> dict[str, Any]:
        return {"evaluations": self.it.evaluations(told["num_steps"])}

    def answer(self, told: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], np.ndarray | None]:
        """Whatever the user's code raises is told, not died of."""
        try:
            if told["do"] in ("open", "evaluations"):
                return getattr(self, told["do"])(told), None
            answered: tuple[dict[str, Any], np.ndarray] = getattr(self, told["do"])(told, arrays)
            return answered
        except (Exception, SystemExit) as error:
            given = ""
            if isinstance(error, RuntimeError) and told["do"] != "open":  # torch's own, as a rule about shapes
                shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in arrays.items() if name != "seeds")
                given = f"; it was given {shapes}" if shapes else ""
            return {"error": self.where(error) + given}, None

    def where(self, error: BaseException) -> str:
        """In one line: the adapter's file and line, and what was raised there."""
        here = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(self.file)]
        text = " ".join(str(error).split())
        kind = "" if type(error) is ValueError and not here else f"{type(error).__name__}: "
        if isinstance(error, SyntaxError) and error.filename:
            return f"{error.filename}:{error.lineno}: {kind}{error.msg}"
        return f"{here[-1].filename}:{here[-1].lineno}: {kind}{text}" if here else f"{kind}{text}"

    def _seen(self, arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(value).to(self.it.device) for name, value in arrays.items()}

    def _timed(self, call: Callable[[], Any]) -> tuple[Any, float]:
        self._synchronise()
        begin = time.perf_counter_ns()
        result = call()
        self._synchronise()
        return result, (time.perf_counter_ns() - begin) / 1e6

    def _synchronise(self) -> None:
        if self.it.device.type == "cuda":
            torch.cuda.synchronize(self.it.device)

    def _hardware(self) -> str:
        return torch.cuda.get_device_name(self.it.device) if self.it.device.type == "cuda" else "the processor"


def serve(descriptor: int, wire: Any, worker: Worker) -> None:
    """Answer messages until the other side is gone."""
    with socket.socket(fileno=descriptor) as connection, connection.makefile("rwb") as stream:
        while True:
            try:
                told, arrays = wire.receive(stream)
            except wire.WireError:  # the stream ended: the other side is gone, or has closed
                return
            answer, chunks = worker.answer(told, arrays)
            try:
                wire.send(stream, answer, {} if chunks is None else {"chunks": chunks})
            except ValueError as error:  # chunks of complex numbers, or a dt_s that is not finite
                wire.send(stream, {"error": worker.where(error)})
            except OSError:
                return


def main(arguments: list[str]) -> None:
    wire = load("_flow2one_wire", Path(arguments[1]))
    adapted, solvers = load("_flow2one_adapted", Path(arguments[2])), load("_flow2one_solvers", Path(arguments[3]))
    serve(int(arguments[0]), wire, Worker(adapted, solvers))


if __name__ == "__main__":
    main(sys.argv[1:])
