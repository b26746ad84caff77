"""What an adapter's `build` gave, made into a teacher that draws every chunk from a seed of its own.

It runs in the adapter's process, whose interpreter and packages are the user's: teachers/adapters/program.py loads it by its
path. So it imports torch and nothing of ours. Python 3.9 or newer.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Observation = dict[str, Tensor]
TAKES = {
    "sample": ("observation", "num_hypotheses", "num_steps", "generator"), "velocity": ("observation", "x", "t"),
    "denoise": ("observation", "x", "t"), "encode": ("observation",), "to_actions": ("x",),
}  # fmt: skip
"""What the functions of an adapter's object are called with, one after the other."""

Integrate = Callable[..., Tensor]
"""`teachers.solvers.integrate`."""

WAYS = (
    "sample(observation, num_hypotheses, num_steps, generator), velocity(observation, x, t), or denoise(observation, x, t) "
    "beside a diffusers scheduler (attribute scheduler); see docs/adapter.md"
)


class Adapted:
    """Observation to condition (`encode`), condition and seeds to raw chunks (`head`); see the three kinds below.

    horizon, action_size: T and A, None where the adapter does not say; observation_steps: O; num_steps: how many solver steps
    it is used with; features: those it looks at, None: whatever was recorded; faults: what a teacher must not do, seen since
    the last call.
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
        self.faults: list[str] = []

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

    def evaluations(self, num_steps: int) -> int:
        """Network evaluations (NFE) of a chunk: what the adapter's own `evaluations` says, else one a step."""
        told = getattr(self.built, "evaluations", None)
        return int(told(num_steps)) if callable(told) else num_steps


class Sampler(Adapted):
    """An adapter with `sample`: all of the work is its own."""

    kind = "sampler"

    def __init__(self, built: Any) -> None:
        super().__init__(built)
        self.separable = False

    def head(self, condition: Any, seeds: Sequence[Sequence[int]], num_steps: int) -> Tensor:
        # observation by observation, so that what is drawn for one does not depend on which others are asked with it
        rows = []
        for row, each in enumerate(seeds):
            one = {name: value[row : row + 1] for name, value in condition.items()}
            rows.append(self._ask(one, len(each), num_steps, each[0]).float())
        return torch.cat(rows)

    def sample(self, observation: Observation, num_hypotheses: int, num_steps: int, seed: int) -> Tensor:
        before = {name: value.clone() for name, value in observation.items()}
        chunks = self._ask(observation, num_hypotheses, num_steps, seed)
        changed = [name for name, value in before.items()
                   if not torch.equal(value.nan_to_num(), observation[name].nan_to_num())]  # fmt: skip
        if changed:
            self.faults.append(f"observation: {changed} was changed in place; work on a copy")
        return chunks

    def _ask(self, observation: Observation, num_hypotheses: int, num_steps: int, seed: int) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        chunks = self.built.sample(observation, num_hypotheses, num_steps, generator)
        if not isinstance(chunks, Tensor):
            raise TypeError(f"sample gave a {type(chunks).__name__}, expected a tensor [B, K, T, A]")
        if chunks.requires_grad:
            self.faults.append("gradient: the sample requires grad; wrap sample in torch.no_grad()")
        if chunks.dtype in (torch.bfloat16, torch.float16):
            self.faults.append(f"dtype: got {chunks.dtype}, expected torch.float32; end sample with .float()")
        if chunks.device.type != self.device.type:
            self.faults.append(f"device: the chunks are on {chunks.device}, the observation was given on {self.device}; "
                               "say where the adapter works (attribute device)")  # fmt: skip
        return chunks.detach()


class Field(Adapted):
    """What velocity fields and denoisers share: noise `[N, T, A]` from the seeds, `to_actions` at the end.

    The adapter's function is asked for N = B*K chunks at once, its condition's rows repeated K times each.
    """

    call = ""

    def __init__(self, built: Any) -> None:
        super().__init__(built)
        self.watched = False
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
        self.watched = True
        try:
            return super().sample(observation, num_hypotheses, num_steps, seed)
        finally:
            self.watched = False

    def solve(self, condition: Any, noise_NTA: Tensor, num_steps: int, generators: list[torch.Generator]) -> Tensor:
        raise NotImplementedError

    def ask(self, condition: Any, x_NTA: Tensor, time_N: Tensor) -> Tensor:
        """The adapter's own function. Raises ValueError when it gives another shape than it was given."""
        given = {"x": _tensors(x_NTA), "observation": _tensors(condition)} if self.watched else {}
        before = {name: [value.clone() for value in values] for name, values in given.items()}
        out = getattr(self.built, self.call)(condition, x_NTA, time_N)
        for name, values in given.items():
            same = all(torch.equal(old.nan_to_num(), new.nan_to_num()) for old, new in zip(before[name], values, strict=True))
            if not same:
                self.faults.append(f"{name}: {self.call} changed it in place; work on a copy")
        if not isinstance(out, Tensor) or out.shape != x_NTA.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"{self.call} gave {got}, expected {tuple(x_NTA.shape)}, as its x")
        return out.to(x_NTA.dtype)


class VelocityField(Field):
    """An adapter with `velocity`: dx/dt = v(x, t) from noise to data. Its attributes, both optional:

    solver: euler (the default), midpoint, heun or shrinking; noise_time: 0 (the default: noise at t=0, data at t=1) or 1 for a
    field whose time runs the other way, as in pi0 and in diffusers.
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
                return self.ask(condition, x_NTA, time_N)
            return -self.ask(condition, x_NTA, 1 - time_N)  # its time runs backwards: dt' = -dt

        chunk_NTA = self.integrate(velocity, noise_NTA, num_steps, self.solver)
        self.calls[num_steps] = calls
        return chunk_NTA

    def evaluations(self, num_steps: int) -> int:
        return self.calls.get(num_steps) or super().evaluations(num_steps)


class Denoiser(Field):
    """An adapter with a network and a `scheduler`, any of diffusers': noise is taken away timestep by timestep.

    With `denoise`, t is the scheduler's own timestep and the result what its prediction_type says (a flow-matching scheduler:
    the velocity noise - data). With `velocity`, the field is ours, t from 0 (noise) to 1 (data) and v = data - noise, and
    a flow-matching scheduler of diffusers', whose sigma runs from 1 (noise) to 0 (data), only chooses the steps.
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
        scheduler.set_timesteps(num_steps)  # which also makes it forget the last chunk's steps
        further = {"generator": generators} if self.takes_generator else {}
        x_NTA = noise_NTA if self.is_flow else noise_NTA * scheduler.init_noise_sigma
        for index, timestep in enumerate(scheduler.timesteps):
            given = x_NTA if self.is_flow else scheduler.scale_model_input(x_NTA, timestep)
            if self.call == "velocity":
                out = -self.ask(condition, given, self._rows(1 - scheduler.sigmas[index], x_NTA))
            else:
                out = self.ask(condition, given, self._rows(timestep, x_NTA))
            x_NTA = scheduler.step(out, timestep, x_NTA, return_dict=False, **further)[0]
        return x_NTA

    @staticmethod
    def _rows(time: Tensor, x_NTA: Tensor) -> Tensor:
        return time.to(x_NTA.device).expand(len(x_NTA))

    def evaluations(self, num_steps: int) -> int:
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(num_steps)
        return len(scheduler.timesteps)


def adapt(built: Any, integrate: Integrate) -> Adapted:
    """The teacher that an adapter's object is. Raises ValueError with what it must have, and how it must be called."""
    made = _of_kind(built, integrate)
    for name in ("sample",) if isinstance(made, Sampler) else ("velocity", "denoise", "encode", "to_actions"):
        _check_call(built, name)
    return made


def _of_kind(built: Any, integrate: Integrate) -> Adapted:
    has = {name for name in ("sample", "velocity", "denoise") if callable(getattr(built, name, None))}
    scheduler = getattr(built, "scheduler", None) is not None
    if "sample" in has:
        return Sampler(built)
    if scheduler and has:
        return Denoiser(built, "denoise" if "denoise" in has else "velocity")
    if "velocity" in has:
        return VelocityField(built, integrate)
    lack = "denoise, but no scheduler" if has else "none of them"
    raise ValueError(f"build() gave a {type(built).__name__} with {lack}; expected one of {WAYS}")


def _check_call(built: Any, name: str) -> None:
    """Raise ValueError where this function of the object's is there, but cannot be called as it will be."""
    function = getattr(built, name, None)
    if not callable(function):
        return
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C
        return
    try:
        signature.bind(*TAKES[name])
    except TypeError as error:
        code = getattr(inspect.unwrap(function), "__code__", None)
        place = f"{code.co_filename}:{code.co_firstlineno}: " if code is not None else ""
        called = ", ".join(TAKES[name])
        raise ValueError(f"{place}{name}{signature} is called as {name}({called}), one after the other: {error}") from error


def parameters(built: Any) -> int | None:
    """Weights of the networks that an adapter's object is or holds; None where none is seen."""
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
    """Where it works: what its attribute `device` says, else where its network's weights are, else the processor."""
    told = getattr(built, "device", None)
    if told is not None:
        return torch.device(told)
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
