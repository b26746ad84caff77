"""A program for envs/process/serving.py that runs a user's adapter: in its own interpreter, its own folder first on the path.

It is loaded by its path, and loads what it needs of ours by path, under names that no user's package has: a folder with
packages of its own named envs, teachers, students or distill works. Python 3.9 or newer. Messages and answers:

    options      file, function, arguments, threads, solvers (path of teachers/solvers.py) -> `AdapterProgram.opened`
    sample       num_hypotheses, num_steps, seed; the observation -> violations, evaluations; chunks `[B, K, T, A]`
    draw         num_steps; the observation and seeds `[B, K]` -> evaluations; chunks
    time         num_steps, seed, samples; one observation -> stages_ms; chunks
    evaluations  num_steps -> evaluations

and of its own network as a one-step student (one_step.py, training.py):

    check        the observation -> faults: what is wrong with what it offers for that
    condition    the observation -> bytes of one condition, seconds to encode it
    encode       path; the observation: writes its conditions there
    train        losses, resume, store (paths), conditions (folder, shard_size; "" without), what `InPlaceTraining` takes; one
                 observation and its arrays -> state, weights: how many
    observe      first; hypotheses, seeds; without stored conditions the observation
    steps        seeds, rates, averages; rows `[S, B]` -> loss, seconds, cpu_seconds
    write        weights, resume (paths; the former may be ""), state: what `train` then answers
    use          weights (path): from then on chunks are the student's
    export       path; the observation -> inputs, and what the graph that was written there should give
    save         folder; one observation, seeds -> saved, difference between its chunks and those of what was saved
"""

from __future__ import annotations

import importlib.util
import platform
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

GRACE_S = 3.0
"""How long a user's code may take to end by itself [s]: its exit handlers run. See envs/process/serving.py."""

HERE = Path(__file__).resolve().parent
Arrays = Mapping[str, np.ndarray]


def start(options: dict[str, Any], load: Callable[[Path], Any]) -> AdapterProgram:
    """The adapter that the options name. Raises AdapterError."""
    program = AdapterProgram(load(Path(__file__).parent / "seeded.py"), load(Path(options["solvers"])), load)
    program.open(options)
    return program


def text_of(error: Exception) -> str:
    """See envs/process/serving.py."""
    text = " ".join(str(error).split())
    return text if type(error) in (AdapterError, ValueError) else f"{type(error).__name__}: {text}"


class AdapterError(Exception):
    """Whatever the user's code raised, in one line with its file and line number."""


class AdapterProgram:
    """Answers the messages about one adapter. seeded, solvers: the modules teachers.adapters.seeded and teachers.solvers.

    load: a Python file as a module, for what only training needs.
    opened: what the adapter is, for `teachers.adapters.teacher.AdapterDescription`; set by `open`.
    """

    def __init__(self, seeded: Any, solvers: Any, load: Callable[[Path], Any]) -> None:
        self._seeded, self._solvers, self._load = seeded, solvers, load
        self._one_step = load(HERE / "one_step.py")
        self._training: Any = None
        self._conditions: Any = None
        self._file = Path()
        self.opened: dict[str, Any] = {}

    def open(self, options: Mapping[str, Any]) -> None:
        """Imports the adapter and calls its function. Raises AdapterError."""
        try:
            self.opened = self._open(options)
        except (Exception, SystemExit) as error:
            raise AdapterError(self._one_line(error)) from error

    def answer(self, message: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """See the module's docstring. Raises AdapterError for whatever the user's code raises."""
        commands: dict[str, Callable[..., Any]] = {
            "sample": self._sample, "draw": self._draw, "time": self._time, "evaluations": self._evaluations,
            "check": self._check, "condition": self._condition, "encode": self._encode, "train": self._train,
            "observe": self._observe, "steps": self._steps,
            "write": self._write, "use": self._use, "save": self._save, "export": self._export,
        }  # fmt: skip
        try:
            answered: tuple[dict[str, Any], dict[str, np.ndarray]] = commands[message["command"]](message, arrays)
            return answered
        except (Exception, SystemExit) as error:
            given = ""
            if isinstance(error, RuntimeError):  # torch's own, as a rule about shapes
                shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in arrays.items() if name != "seeds")
                given = f"; it was given {shapes}" if shapes else ""
            raise AdapterError(self._one_line(error) + given) from error

    def _open(self, options: Mapping[str, Any]) -> dict[str, Any]:
        path = self._file = Path(options["file"])
        torch.set_num_threads(int(options["threads"]))
        sys.path.insert(0, str(path.parent))  # as if the file were run by itself
        module = _load_user_module(path)
        build = getattr(module, options["function"], None)
        if not callable(build):
            names: Any = sorted(name for name, value in vars(module).items() if callable(value) and not name.startswith("_"))
            raise ValueError(f"{path} has no function {options['function']!r}; it has {names}. Name one: "
                             f"--teacher {path}:<function>")  # fmt: skip
        self._policy = self._seeded.adapt(build(**options["arguments"]), self._solvers.integrate)
        policy, built = self._policy, self._policy.built
        names, dt_s = getattr(built, "action_names", None), getattr(built, "dt_s", None)
        return {
            "kind": policy.kind, "horizon": policy.horizon, "action_size": policy.action_size,
            "observation_steps": policy.observation_steps, "num_steps": policy.num_steps, "features": policy.features,
            "separable": policy.separable, "obstacle": self._one_step.obstacle(built),
            "saves": callable(getattr(built, "save", None)), "device": str(policy.device),
            "action_names": None if names is None else [str(name) for name in names],
            "dt_s": None if dt_s is None else float(dt_s), "parameters": self._seeded.parameters(built),
            "instruction": str(getattr(built, "instruction", None) or ""),
            "torch": torch.__version__, "python": platform.python_version(), "hardware": self._hardware(),
        }  # fmt: skip

    def _sample(self, message: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """One call of the contract's `sample`, and the violations of the contract that the process boundary would hide."""
        policy = self._policy
        policy.violations = []
        chunks = policy.sample(self._observation(arrays), message["num_hypotheses"], message["num_steps"], message["seed"])
        chunks = chunks.float() if chunks.dtype in (torch.bfloat16, torch.float16) else chunks
        answer = {"violations": policy.violations, "evaluations": policy.evaluations(message["num_steps"])}
        return answer, {"chunks": chunks.cpu().numpy()}

    def _draw(self, message: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Chunks, each from its own seed."""
        observation = {name: value for name, value in arrays.items() if name != "seeds"}
        condition = self._policy.encode(self._observation(observation))
        chunks = self._policy.head(condition, arrays["seeds"].tolist(), message["num_steps"])
        return {"evaluations": self._policy.evaluations(message["num_steps"])}, {"chunks": chunks.cpu().numpy()}

    def _time(self, message: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """One call from arrays to arrays, timed part by part [ms]; the whole is the sum of its parts."""
        policy, steps, first = self._policy, message["num_steps"], int(message["seed"])
        seeds = [[first + number for number in range(int(message["samples"]))]]
        observation, preprocess_ms = self._timed(lambda: self._observation(arrays))
        condition, encode_ms = self._timed(lambda: policy.encode(observation))
        drawn, head_ms = self._timed(lambda: policy.head(condition, seeds, steps))
        chunks, postprocess_ms = self._timed(lambda: drawn.cpu().numpy())
        stages_ms = [preprocess_ms, encode_ms, head_ms, postprocess_ms]
        return {"stages_ms": stages_ms}, {"chunks": chunks}

    def _evaluations(self, message: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {"evaluations": self._policy.evaluations(message["num_steps"])}, {}

    # -- its own network as a one-step student -----------------------------------------------------------------------

    def _student(self) -> Any:
        """The policy at one evaluation, of which `use` makes the policy that is asked."""
        return self._policy if self._policy.kind == "one step" else self._one_step.OneStepPolicy(self._policy)

    def _check(self, message: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {"faults": self._student().faults(self._observation(arrays))}, {}

    def _condition(self, message: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        student, files = self._student(), self._load(HERE / "conditions.py")
        observation = self._observation(arrays)
        student.encode(observation)  # the first call is slower
        condition, milliseconds = self._timed(lambda: student.encode(observation))
        count = len(next(iter(arrays.values())))
        return {"bytes": files.size_bytes(condition) // count, "seconds": milliseconds / 1e3 / count}, {}

    def _encode(self, message: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        files = self._load(HERE / "conditions.py")
        files.write_shard(Path(message["path"]), self._student().encode(self._observation(arrays)))
        return {}, {}

    def _train(self, message: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Begins to train, or goes on from what was written last."""
        training, files = self._load(HERE / "training.py"), self._load(HERE / "conditions.py")
        losses, student = self._load(Path(message["losses"])), self._student()
        training.join(message["store"], message["rank"], message["world"], student.device)
        self._held = self._one_step.trainable(self._policy.built, student.trained())
        self._held.__enter__()  # as long as this process lives
        if message["conditions"]:
            seen = {name: value for name, value in arrays.items() if name not in ("weights", "centre", "scale")}
            like = files.detached(student.encode(self._observation(seen)))
            stored = message["conditions"]
            self._conditions = files.StoredConditions(Path(stored["folder"]), stored["shard_size"], like, student.device)
        else:
            self._conditions = files.ComputedConditions(student.encode, student.device)
        self._training = training.InPlaceTraining(student, losses, files, self._conditions, message, arrays)
        weights = sum(weight.numel() for weight in student.trained().values())
        return {"state": self._training.resume(Path(message["resume"])), "weights": weights}, {}

    def _observe(self, message: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        seen = {name: value for name, value in arrays.items() if name not in ("hypotheses", "seeds")}
        if seen:
            self._conditions.observe(message["first"], seen)
        self._training.observe(message["first"], arrays["hypotheses"], arrays["seeds"])
        return {}, {}

    def _steps(self, message: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        with torch.enable_grad():
            return self._training.steps(arrays["rows"].tolist(), message["seeds"], message["rates"], message["averages"]), {}

    def _write(self, message: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The averaged weights, where a path for them is named, and what a resume needs."""
        if message["weights"]:
            self._training.write(Path(message["weights"]))
        self._training.write_resume(Path(message["resume"]), message["state"])
        return {}, {}

    def _use(self, message: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        student, files = self._student(), self._load(HERE / "conditions.py")
        student.load(files.read_tensors(Path(message["weights"]))[0])
        self._policy = student
        return {}, {}

    def _save(self, message: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The student in its own format, read back by its own `reload`, where it has these."""
        student, built = self._student(), self._policy.built
        if not callable(getattr(built, "save", None)):
            return {"saved": False, "difference": None}, {}
        built.save(message["folder"])
        if not callable(getattr(built, "reload", None)):
            return {"saved": True, "difference": None}, {}
        seeds = arrays["seeds"].tolist()
        again = self._one_step.OneStepPolicy(self._seeded.adapt(built.reload(message["folder"]), self._solvers.integrate))
        again.starting_noises = student.starting_noises
        observation = self._observation({name: value for name, value in arrays.items() if name != "seeds"})
        mine, its = (each.head(each.encode(observation), seeds, 1) for each in (student, again))
        return {"saved": True, "difference": float((mine - its).abs().max())}, {}

    def _export(self, message: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        graph = self._load(HERE / "graph.py")
        inputs, expected = graph.write_graph(self._student(), self._observation(arrays), Path(message["path"]))
        return {"inputs": inputs}, expected

    def _one_line(self, error: BaseException) -> str:
        """In one line: the adapter's file and line, and what was raised there."""
        here = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(self._file)]
        text = " ".join(str(error).split())
        kind = "" if type(error) is ValueError and not here else f"{type(error).__name__}: "
        if isinstance(error, SyntaxError) and error.filename:
            return f"{error.filename}:{error.lineno}: {kind}{error.msg}"
        return f"{here[-1].filename}:{here[-1].lineno}: {kind}{text}" if here else f"{kind}{text}"

    def _observation(self, arrays: Arrays) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(value).to(self._policy.device) for name, value in arrays.items()}

    def _timed(self, call: Callable[[], Any]) -> tuple[Any, float]:
        self._synchronise()
        begin = time.perf_counter_ns()
        result = call()
        self._synchronise()
        return result, (time.perf_counter_ns() - begin) / 1e6

    def _synchronise(self) -> None:
        if self._policy.device.type == "cuda":
            torch.cuda.synchronize(self._policy.device)

    def _hardware(self) -> str:
        on_gpu = self._policy.device.type == "cuda"
        return torch.cuda.get_device_name(self._policy.device) if on_gpu else "the processor"


def _load_user_module(path: Path) -> Any:
    """The user's file as the module of its own name."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
