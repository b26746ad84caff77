"""The object that an adapter's `build` returns, wrapped so that every chunk is drawn from a seed of its own.

It runs in the adapter's process, in the user's interpreter: teachers/adapters/program.py loads it by its path. So it imports
torch and nothing of ours. Python 3.9 or newer.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Observation = dict[str, Tensor]
CALL_ARGUMENTS = {
    "sample": ("observation", "num_hypotheses", "num_steps", "generator"), "velocity": ("observation", "x", "t"),
    "denoise": ("observation", "x", "t"), "encode": ("observation",), "to_actions": ("x",),
    "one_step": ("condition", "noise"), "trained": (), "save": ("folder",), "reload": ("folder",),
}  # fmt: skip
"""Positional arguments of the functions of an adapter's object."""

Integrate = Callable[..., Tensor]
"""`teachers.solvers.integrate`."""

INTERFACES = (
    "sample(observation, num_hypotheses, num_steps, generator), velocity(observation, x, t), or denoise(observation, x, t) "
    "beside a diffusers scheduler (attribute scheduler); see docs/adapter.md"
)


class AdaptedPolicy:
    """Observation to condition (`encode`), condition and seeds to raw chunks (`head`); see the three kinds below.

    horizon, action_size: T and A, None where the adapter does not say; observation_steps: O; num_steps: the solver steps it
    is used with; features: those it uses, None: whatever was recorded; separable: whether it has an `encode` of its own;
    violations: of the teacher's contract, seen since they were last cleared.
    Raises ValueError for attributes of the wrong type.
    """

    kind = ""

    def __init__(self, built: Any) -> None:
        self.built = built
        self.horizon, self.action_size = _count(built, "horizon"), _count(built, "action_size")
        self.observation_steps = _count(built, "observation_steps") or 1
        self.num_steps = _count(built, "num_steps") or 10
        features = getattr(built, "features", None)
        self.features = None if features is None else [str(name) for name in features]
        self.device = _device(built)
        self.separable = callable(getattr(built, "encode", None))
        self.violations: list[str] = []

    def encode(self, observation: Observation) -> Any:
        """The adapter's own `encode`, once for all chunks of an observation; without one, the observation as it is."""
        return self.built.encode(observation) if self.separable else observation

    def head(self, condition: Any, seeds: Sequence[Sequence[int]], num_steps: int) -> Tensor:
        """Raw chunks `[B, K, T, A]`, one for each of the seeds `[B][K]`."""
        raise NotImplementedError

    def sample(self, observation: Observation, num_hypotheses: int, num_steps: int, seed: int) -> Tensor:
        """The contract's `sample`: all B observations in one call, all randomness from one seed."""
        batch = len(next(iter(observation.values())))
        drawn = torch.randint(2**62, (batch, num_hypotheses), generator=torch.Generator().manual_seed(seed))
        return self.head(self.encode(observation), drawn.tolist(), num_steps)

    def repeated(self, condition: Any, count: int) -> Any:
        """Every row of every tensor of a condition `count` times."""
        return _repeated(condition, count)

    def tensors(self, condition: Any) -> list[Tensor]:
        """All tensors in a condition."""
        return _tensors(condition)

    def evaluations(self, num_steps: int) -> int:
        """Network evaluations (NFE) of a chunk: by the adapter's own `evaluations`, else one per step."""
        own = getattr(self.built, "evaluations", None)
        return int(own(num_steps)) if callable(own) else num_steps


class SamplerPolicy(AdaptedPolicy):
    """An adapter with `sample`, which does everything itself."""

    kind = "sampler"

    def __init__(self, built: Any) -> None:
        super().__init__(built)
        self.separable = False

    def head(self, condition: Any, seeds: Sequence[Sequence[int]], num_steps: int) -> Tensor:
        # observation by observation, so that the chunks of one do not depend on the others in the batch
        rows = []
        for row, each in enumerate(seeds):
            one = {name: value[row : row + 1] for name, value in condition.items()}
            rows.append(self._sample(one, len(each), num_steps, each[0]).float())
        return torch.cat(rows)

    def sample(self, observation: Observation, num_hypotheses: int, num_steps: int, seed: int) -> Tensor:
        before = {name: value.clone() for name, value in observation.items()}
        chunks = self._sample(observation, num_hypotheses, num_steps, seed)
        changed = [name for name, value in before.items()
                   if not torch.equal(value.nan_to_num(), observation[name].nan_to_num())]  # fmt: skip
        if changed:
            self.violations.append(f"observation: {changed} was changed in place; work on a copy")
        return chunks

    def _sample(self, observation: Observation, num_hypotheses: int, num_steps: int, seed: int) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        chunks = self.built.sample(observation, num_hypotheses, num_steps, generator)
        if not isinstance(chunks, Tensor):
            raise TypeError(f"sample gave a {type(chunks).__name__}, expected a tensor [B, K, T, A]")
        if chunks.requires_grad:
            self.violations.append("gradient: the sample requires grad; wrap sample in torch.no_grad()")
        if chunks.dtype in (torch.bfloat16, torch.float16):
            self.violations.append(f"dtype: got {chunks.dtype}, expected torch.float32; end sample with .float()")
        if chunks.device.type != self.device.type:
            self.violations.append(f"device: the chunks are on {chunks.device}, the observation was given on {self.device}; "
                               "say where the adapter works (attribute device)")  # fmt: skip
        return chunks.detach()


class IterativePolicy(AdaptedPolicy):
    """What velocity fields and denoisers share: noise `[N, T, A]` from the seeds, `to_actions` at the end.

    The adapter's function is called for N = B*K chunks at once, each row of its condition repeated K times.
    call: the function's name; check_inputs: whether to look for inputs changed in place.
    """

    call = ""

    def __init__(self, built: Any) -> None:
        super().__init__(built)
        self.check_inputs = False
        lacking = [name for name in ("horizon", "action_size") if getattr(self, name) is None]
        if lacking:
            raise ValueError(f"an adapter with {self.call} needs {' and '.join(lacking)}: how many actions a chunk has, and "
                             "how many numbers an action")  # fmt: skip

    def head(self, condition: Any, seeds: Sequence[Sequence[int]], num_steps: int) -> Tensor:
        count = len(seeds[0])
        generators = [torch.Generator().manual_seed(seed) for row in seeds for seed in row]
        assert self.horizon is not None and self.action_size is not None
        noise_NTA = torch.stack([torch.randn(self.horizon, self.action_size, generator=each) for each in generators])
        condition = _repeated(condition, count) if count > 1 else condition
        with torch.no_grad():
            chunk_NTA = self.solve(condition, noise_NTA.to(self.device), num_steps, generators)
            to_actions = getattr(self.built, "to_actions", None)
            chunk_NTA = to_actions(chunk_NTA) if callable(to_actions) else chunk_NTA
        return chunk_NTA.detach().float().unflatten(0, (len(seeds), count))

    def encode(self, observation: Observation) -> Any:
        with torch.no_grad():
            return super().encode(observation)

    def sample(self, observation: Observation, num_hypotheses: int, num_steps: int, seed: int) -> Tensor:
        self.check_inputs = True
        try:
            return super().sample(observation, num_hypotheses, num_steps, seed)
        finally:
            self.check_inputs = False

    def solve(self, condition: Any, noise_NTA: Tensor, num_steps: int, generators: list[torch.Generator]) -> Tensor:
        raise NotImplementedError

    def evaluate(self, condition: Any, x_NTA: Tensor, time_N: Tensor) -> Tensor:
        """One call of the adapter's function. Raises ValueError when its result has another shape than its input."""
        given = {"x": _tensors(x_NTA), "observation": _tensors(condition)} if self.check_inputs else {}
        before = {name: [value.clone() for value in values] for name, values in given.items()}
        out = getattr(self.built, self.call)(condition, x_NTA, time_N)
        for name, values in given.items():
            same = all(torch.equal(old.nan_to_num(), new.nan_to_num()) for old, new in zip(before[name], values, strict=True))
            if not same:
                self.violations.append(f"{name}: {self.call} changed it in place; work on a copy")
        if not isinstance(out, Tensor) or out.shape != x_NTA.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"{self.call} gave {got}, expected {tuple(x_NTA.shape)}, as its x")
        return out.to(x_NTA.dtype)


class VelocityFieldPolicy(IterativePolicy):
    """An adapter with `velocity`: dx/dt = v(x, t) from noise to data. It may have the attributes

    solver: euler (the default), midpoint, heun or shrinking; noise_time: 0 (the default: noise at t=0, data at t=1) or 1 for a
    field whose time runs the other way, as in pi0 and in diffusers. Raises ValueError for another noise_time.
    """

    kind, call = "velocity field", "velocity"

    def __init__(self, built: Any, integrate: Integrate) -> None:
        super().__init__(built)
        self.integrate, self.solver = integrate, str(getattr(built, "solver", "euler"))
        self.noise_time = getattr(built, "noise_time", 0)
        if self.noise_time not in (0, 1):
            raise ValueError(f"noise_time: got {self.noise_time!r}, expected 0 (noise at t=0) or 1 (noise at t=1)")
        self.calls: dict[int, int] = {}

    def solve(self, condition: Any, noise_NTA: Tensor, num_steps: int, generators: list[torch.Generator]) -> Tensor:
        calls = 0

        def velocity(x_NTA: Tensor, time_N: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if self.noise_time == 0:
                return self.evaluate(condition, x_NTA, time_N)
            return -self.evaluate(condition, x_NTA, 1 - time_N)  # its time runs backwards: dt' = -dt

        chunk_NTA = self.integrate(velocity, noise_NTA, num_steps, self.solver)
        self.calls[num_steps] = calls
        return chunk_NTA

    def evaluations(self, num_steps: int) -> int:
        return self.calls.get(num_steps) or super().evaluations(num_steps)


class DenoiserPolicy(IterativePolicy):
    """An adapter with a network and a `scheduler` of diffusers, which removes the noise timestep by timestep.

    With `denoise`, t is the scheduler's own timestep and the result is what its prediction_type says (a flow-matching
    scheduler: the velocity noise - data). With `velocity`, time runs from 0 (noise) to 1 (data), v = data - noise, and a
    flow-matching scheduler, whose sigma runs from 1 (noise) to 0 (data), only sets the steps.
    Raises ValueError for `velocity` with a scheduler that is not for flow matching.
    """

    kind = "denoiser"

    def __init__(self, built: Any, call: str) -> None:
        self.call = call
        super().__init__(built)
        self.scheduler = copy.deepcopy(built.scheduler)
        accepted = inspect.signature(self.scheduler.step).parameters
        self.takes_generator = "generator" in accepted
        self.is_flow = "init_noise_sigma" not in dir(self.scheduler) or "Flow" in type(self.scheduler).__name__
        flow_sigmas = self.is_flow or bool(getattr(self.scheduler.config, "use_flow_sigmas", False))
        if call == "velocity" and not (flow_sigmas and hasattr(self.scheduler, "sigmas")):
            raise ValueError(f"velocity goes with a flow-matching scheduler, got {type(self.scheduler).__name__}; call the "
                             "function denoise if it speaks that scheduler's own way")  # fmt: skip

    def solve(self, condition: Any, noise_NTA: Tensor, num_steps: int, generators: list[torch.Generator]) -> Tensor:
        scheduler = self.scheduler
        scheduler.set_timesteps(num_steps)  # which also clears its state of the last chunk's steps
        further = {"generator": generators} if self.takes_generator else {}
        x_NTA = noise_NTA if self.is_flow else noise_NTA * scheduler.init_noise_sigma
        for index, timestep in enumerate(scheduler.timesteps):
            given = x_NTA if self.is_flow else scheduler.scale_model_input(x_NTA, timestep)
            if self.call == "velocity":
                out = -self.evaluate(condition, given, self._rows(1 - scheduler.sigmas[index], x_NTA))
            else:
                out = self.evaluate(condition, given, self._rows(timestep, x_NTA))
            x_NTA = scheduler.step(out, timestep, x_NTA, return_dict=False, **further)[0]
        return x_NTA

    @staticmethod
    def _rows(time: Tensor, x_NTA: Tensor) -> Tensor:
        return time.to(x_NTA.device).expand(len(x_NTA))

    def evaluations(self, num_steps: int) -> int:
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(num_steps)
        return len(scheduler.timesteps)


def adapt(built: Any, integrate: Integrate) -> AdaptedPolicy:
    """Wraps an adapter's object. integrate: `teachers.solvers.integrate`. Raises ValueError, saying what it lacks, or which of
    its functions cannot be called with `CALL_ARGUMENTS`."""
    policy = _of_kind(built, integrate)
    trains = ("encode", "to_actions", "one_step", "trained", "save", "reload")
    own = ("sample",) if isinstance(policy, SamplerPolicy) else ("velocity", "denoise", "encode", "to_actions")
    for name in dict.fromkeys((*own, *(trains if callable(getattr(built, "trained", None)) else ()))):
        _check_call(built, name)
    return policy


def _of_kind(built: Any, integrate: Integrate) -> AdaptedPolicy:
    has = {name for name in ("sample", "velocity", "denoise") if callable(getattr(built, name, None))}
    scheduler = getattr(built, "scheduler", None) is not None
    if "sample" in has:
        return SamplerPolicy(built)
    if scheduler and has:
        return DenoiserPolicy(built, "denoise" if "denoise" in has else "velocity")
    if "velocity" in has:
        return VelocityFieldPolicy(built, integrate)
    lack = "denoise, but no scheduler" if has else "none of them"
    raise ValueError(f"build() gave a {type(built).__name__} with {lack}; expected one of {INTERFACES}")


def _check_call(built: Any, name: str) -> None:
    """Raises ValueError where the object has this function, but it does not take `CALL_ARGUMENTS`."""
    function = getattr(built, name, None)
    if not callable(function):
        return
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C
        return
    try:
        signature.bind(*CALL_ARGUMENTS[name])
    except TypeError as error:
        code = getattr(inspect.unwrap(function), "__code__", None)
        place = f"{code.co_filename}:{code.co_firstlineno}: " if code is not None else ""
        called = ", ".join(CALL_ARGUMENTS[name])
        raise ValueError(f"{place}{name}{signature} is called as {name}({called}), one after the other: {error}") from error


def parameters(built: Any) -> int | None:
    """Number of weights of the networks that an adapter's object is or holds; None where there are none."""
    held = [built] if isinstance(built, torch.nn.Module) else list(getattr(built, "__dict__", {}).values())
    counts = [sum(weight.numel() for weight in each.parameters()) for each in held if isinstance(each, torch.nn.Module)]
    return sum(counts) if counts else None


def _count(built: Any, name: str) -> int | None:
    value = getattr(built, name, None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: got {value!r}, expected a whole number of at least 1")
    return int(value)


def _device(built: Any) -> torch.device:
    """Where it runs: its attribute `device`, else the device of its first weights, else the CPU."""
    named = getattr(built, "device", None)
    if named is not None:
        return torch.device(named)
    held = [built] if isinstance(built, torch.nn.Module) else list(getattr(built, "__dict__", {}).values())
    weights = (weight for each in held if isinstance(each, torch.nn.Module) for weight in each.parameters())
    first = next(weights, None)
    return torch.device("cpu") if first is None else first.device


def _repeated(condition: Any, count: int) -> Any:
    """Every row of every tensor `count` times, in dicts, lists and tuples; plain numbers and text stay as they are."""
    if isinstance(condition, Tensor):
        return condition.repeat_interleave(count, dim=0)
    if isinstance(condition, dict):
        copied = copy.copy(condition)  # so that a dict of the user's own kind stays of that kind
        for name, value in condition.items():
            copied[name] = _repeated(value, count)
        return copied
    if isinstance(condition, (list, tuple)):
        parts = [_repeated(value, count) for value in condition]
        return type(condition)(*parts) if hasattr(condition, "_fields") else type(condition)(parts)
    if condition is None or isinstance(condition, (bool, int, float, str)):
        return condition
    raise TypeError(f"encode gave a {type(condition).__name__}, expected tensors [B, ..], in dicts, lists or tuples")


def _tensors(condition: Any) -> list[Tensor]:
    """All tensors in a condition."""
    if isinstance(condition, Tensor):
        return [condition]
    parts = condition.values() if isinstance(condition, dict) else condition if isinstance(condition, (list, tuple)) else ()
    return [each for part in parts for each in _tensors(part)]
