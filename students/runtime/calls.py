"""A policy in a run mode: one observation and its random numbers to the chunk to execute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from envs.specs import DEPTH
from students import Student
from students.runtime.graphs import Network, StudentCall, TeacherCall, TeacherEncoding, TeacherStep
from students.runtime.modes import Array, Graph, Mode
from students.selection import Selection
from teachers.flow import FlowTeacher
from teachers.networks.encoding import EncodingPolicy
from teachers.networks.observations import fake_observation, sources_of
from teachers.solvers import SOLVERS


@dataclass(frozen=True)
class Outcome:
    """One call's result. chunk_TA: raw, to execute. candidates_NTA: all drawn ones, normalised. index: the selected one."""

    chunk_TA: np.ndarray
    candidates_NTA: np.ndarray
    index: int


class StudentInMode:
    """A student's whole call in a run mode; see `StudentCall`.

    selection, executed: as in `students.selection`. samples: N, latents a call takes.
    """

    def __init__(self, student: Student, mode: Mode, selection: Selection, executed: int) -> None:
        """Compiles, records or exports. Raises RuntimeError where a compiler fails."""
        self.mode, self._device = mode, _device(student)
        module = StudentCall(student, selection, executed).to(self._device).eval()
        self.samples = selection.drawn(executed, student.shape.horizon)
        shape = student.shape
        examples = [*_examples(student), torch.randn(1, self.samples, *student.latent_shape, device=self._device)]
        self._no_plan = np.zeros((1, shape.horizon, shape.action_size), np.float32)
        self._is_there = {True: np.ones(1, np.float32), False: np.zeros(1, np.float32)}
        self._takes_last = module.takes_last_plan
        if self._takes_last:
            examples += [torch.zeros(self._no_plan.shape, device=self._device), torch.ones(1, device=self._device)]
        self._names, self._shapes = module.names, [tuple(each.shape) for each in examples]
        self._graph = _warm(student, mode, module, examples)

    def __call__(self, observation: Mapping[str, np.ndarray], latents: np.ndarray, last_TA: np.ndarray | None) -> Outcome:
        """observation: raw, `[1, O, ..]`; latents `[N, ...]`; last_TA: the last plan, normalised, where one is remembered.

        Raises ValueError for an input of another shape, and for NaN or infinity outside of depth.
        """
        inputs = [*_observed(observation, self._names, self._shapes), latents[None]]
        if self._takes_last:
            inputs += [self._no_plan if last_TA is None else last_TA[None], self._is_there[last_TA is not None]]
        outputs = self._graph(*(self.mode.array(each, self._device) for each in inputs))
        chunk, candidates, index = (self.mode.host(each) for each in outputs)
        return Outcome(chunk[0], candidates[0], int(index[0]))


class NetworkInMode:
    """A student's network alone in a run mode, at a number of samples: the bare evaluation that a call is compared with."""

    def __init__(self, student: Student, mode: Mode, samples: int) -> None:
        self.mode, self._device = mode, _device(student)
        module = Network(student).to(self._device).eval()
        examples = [*_examples(student), torch.randn(1, samples, *student.latent_shape, device=self._device)]
        self._names, self._shapes = module.names, [tuple(each.shape) for each in examples]
        self._graph = _warm(student, mode, module, examples)

    def __call__(self, observation: Mapping[str, np.ndarray], latents: np.ndarray) -> np.ndarray:
        """The normalised chunks `[N, T, A]` of latents `[N, ...]`."""
        inputs = [*(observation[name] for name in self._names), latents[None]]
        outputs = self._graph(*(self.mode.array(each, self._device) for each in inputs))
        chunks: np.ndarray = self.mode.host(outputs[0])[0]
        return chunks


class TeacherInMode:
    """A flow teacher's whole call in a run mode, one sample, at any number of solver steps."""

    def __init__(self, teacher: FlowTeacher, mode: Mode, num_steps: int, shared: TeacherInMode | None = None) -> None:
        """shared: the same teacher in the same mode at another number of steps, whose graphs are used again."""
        self.mode, self._device, self.num_steps = mode, _device(teacher), num_steps
        self._solver, shape = SOLVERS[teacher.solver], teacher.shape
        observed = _examples(teacher)
        noise = torch.randn(1, shape.horizon, shape.action_size, device=self._device)
        self._names, self._shapes = sources_of(shape), [tuple(each.shape) for each in observed]
        centre, scale = teacher.normaliser.centre_scale("action")
        varies = teacher.normaliser.action_high != teacher.normaliser.action_low
        self._centre_A, self._scale_A = centre.cpu().numpy(), (scale * varies).cpu().numpy()
        self._whole: Graph | None = None
        self._encode: Graph
        self._step: Graph
        self._last: Graph
        if mode.unrolls:
            self._whole = _warm(teacher, mode, TeacherCall(teacher, num_steps), [*observed, noise])
            return
        if shared is not None:
            self._encode, self._step, self._last = shared._encode, shared._step, shared._last
            self._steps = self._schedule()
            return
        self._encode = _warm(teacher, mode, TeacherEncoding(teacher), observed)
        with torch.no_grad():
            condition = TeacherEncoding(teacher)(*observed)[0]
        inputs = [condition, noise, torch.zeros(1, device=self._device), torch.full((1,), 0.5, device=self._device)]
        self._step = self._last = _warm(teacher, mode, TeacherStep(teacher), inputs)
        if self._solver.ends_early:
            self._last = _warm(teacher, mode, TeacherStep(teacher, last=True), inputs)
        self._steps = self._schedule()

    def __call__(self, observation: Mapping[str, np.ndarray], noise_1TA: np.ndarray, last_TA: np.ndarray | None) -> Outcome:
        """observation: raw, `[1, O, ..]`; noise `[1, T, A]`. Raises as `StudentInMode`; a teacher ignores the last plan."""
        observed = _observed(observation, self._names, self._shapes)
        arrays = [self.mode.array(each, self._device) for each in observed]
        x = self.mode.array(noise_1TA, self._device)
        if self._whole is not None:
            x = self._whole(*arrays, x)[0]
        else:
            condition = self._encode(*arrays)[0]
            for step, time, dt in self._steps:
                x = step(condition, x, time, dt)[0]
        candidates_1TA = self.mode.host(x)
        return Outcome(candidates_1TA[0] * self._scale_A + self._centre_A, candidates_1TA, 0)

    def _schedule(self) -> list[tuple[Graph, Array, Array]]:
        """The graph of each solver step, and its time and length as inputs."""
        at = [self._solver.time(index / self.num_steps) for index in range(self.num_steps + 1)]
        graphs = [self._step] * (self.num_steps - 1) + [self._last]
        return [
            (graph, *(self.mode.array(np.full(1, value, np.float32), self._device) for value in (begin, end - begin)))
            for graph, begin, end in zip(graphs, at, at[1:], strict=False)
        ]


def _device(policy: EncodingPolicy) -> torch.device:
    return next(policy.parameters()).device


def _examples(policy: EncodingPolicy) -> list[Tensor]:
    observation = fake_observation(policy.shape, 1)
    return [observation[name].to(_device(policy)) for name in sources_of(policy.shape)]


def _warm(policy: EncodingPolicy, mode: Mode, module: torch.nn.Module, examples: Sequence[Tensor]) -> Graph:
    """The module's graph, after a run in PyTorch: it computes what is derived from weights once, which a graph cannot."""
    policy.normaliser.check()
    with torch.no_grad():
        module(*examples)
    return mode.graph(module, examples)


def _observed(
    observation: Mapping[str, np.ndarray], names: Sequence[str], shapes: Sequence[tuple[int, ...]]
) -> list[np.ndarray]:
    """The sources as float32 arrays. Raises ValueError for another shape, and for values that a graph cannot refuse."""
    found = []
    for name, shape in zip(names, shapes, strict=False):
        value = np.ascontiguousarray(observation[name][:, -shape[1] :], dtype=np.float32)
        if value.shape != shape:
            raise ValueError(f"{name}: got the shape {value.shape}, expected {shape}: the graph has a fixed size")
        if not name.startswith(DEPTH) and not np.isfinite(value).all():
            raise ValueError(f"{name}: got NaN or infinity, expected finite numbers")
        found.append(value)
    return found
