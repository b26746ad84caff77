"""An adapter with the interface of a policy, so that rollouts, fidelity and latency treat it like one of ours."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill.evaluation.policies import RawObservation, preprocess
from students.selection import Memory, Selection, choose, draw_candidates
from teachers.adapters.teacher import AdapterTeacher
from teachers.contract import Observation
from teachers.networks.normalisation import Normaliser
from teachers.networks.observations import feature_shape, sources_of
from teachers.networks.shapes import PolicyShape


class Statistics(nn.Module):
    """The normaliser with which an adapter's chunks are compared, and the device they are compared on."""

    def __init__(self, normaliser: Normaliser) -> None:
        super().__init__()
        self.normaliser = normaliser
        self.place = nn.Parameter(torch.zeros(0), requires_grad=False)


@dataclass(frozen=True)
class AdapterPolicy:
    """An adapter at a number of solver steps. shape: its features and chunk size; its network sizes mean nothing."""

    teacher: AdapterTeacher
    module: Statistics
    shape: PolicyShape
    num_steps: int
    name: str

    @property
    def is_student(self) -> bool:
        """Whether it is the adapter's own network at one evaluation: its speed can buy a choice among samples."""
        return self.teacher.is_student

    @property
    def evaluations(self) -> int:
        return self.teacher.evaluations(self.num_steps)

    def draw(self, samples: int, generator: torch.Generator) -> Tensor:
        """A seed per sample, `[S]` int64."""
        return torch.randint(2**62, (samples,), generator=generator)

    def encode(self, observation: Observation) -> Tensor:
        """The observation as one row `[B, D]`; the adapter encodes it in its own process when it is queried."""
        return torch.cat([observation[name].flatten(1) for name in sources_of(self.shape)], dim=1)

    def head(self, condition_BC: Tensor, draws: Tensor) -> Tensor:
        """Normalised chunks `[B, S, T, A]`."""
        shapes = {name: feature_shape(self.shape, name) for name in sources_of(self.shape)}
        parts = condition_BC.split([math.prod(shape) for shape in shapes.values()], dim=1)
        seen = {name: part.unflatten(1, shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)}
        raw_BSTA = self.teacher.sample_from_seeds(seen, draws.cpu().numpy(), self.num_steps)
        return self.module.normaliser.normalise_action(raw_BSTA)

    def time_call(
        self, seen: RawObservation, generator: torch.Generator, selection: Selection, executed: int
    ) -> tuple[float, list[float]]:
        """See `distill.evaluation.latency.RemotelyTimed`. The choice among samples is timed here."""
        observation = preprocess(self, seen)
        draws, _ = draw_candidates(selection, Memory(), lambda samples: self.draw(samples, generator), executed,
                                   self.shape.horizon)  # fmt: skip
        whole_ms, stages_ms = self.teacher.time_call(observation, int(draws[0]) % 2**61, self.num_steps, len(draws))
        if len(draws) == 1:
            return whole_ms, stages_ms
        candidates_1NTA = self.head(self.encode(observation), draws[None])
        weights_A = torch.tensor(self.shape.action_weights, device=candidates_1NTA.device)
        begin = time.perf_counter_ns()
        choose(selection, candidates_1NTA, [Memory()], executed, weights_A)
        choice_ms = (time.perf_counter_ns() - begin) / 1e6
        return whole_ms + choice_ms, [*stages_ms[:-1], stages_ms[-1] + choice_ms]
