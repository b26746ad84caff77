"""One interface for teachers and students: raw observation in, raw action chunk out, each stage callable separately."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from students import Student
from students.selection import Memory, Selection, choose
from teachers.contract import Observation
from teachers.networks.observations import sources_of
from teachers.networks.shapes import PolicyShape
from teachers.trained import TrainedTeacher

RawObservation = Mapping[str, np.ndarray]
"""Raw observations on the host: every feature by name, `[B, O, ..]`; always includes the state."""


class Policy(Protocol):
    """What rollouts, latency and fidelity need of a policy. B observations, S samples each."""

    @property
    def name(self) -> str: ...
    @property
    def evaluations(self) -> int:
        """Network evaluations (NFE) per chunk."""
        ...

    @property
    def shape(self) -> PolicyShape: ...
    @property
    def module(self) -> torch.nn.Module: ...
    def draw(self, samples: int, generator: torch.Generator) -> Tensor:
        """The randomness `[S, ...]` of S samples for one observation; the generator lives on the CPU."""
        ...

    def encode(self, observation: Observation) -> Tensor:
        """Raw observation to the condition `[B, C]`."""
        ...

    def head(self, condition_BC: Tensor, draws: Tensor) -> Tensor:
        """Condition and randomness `[B, S, ...]` to normalised chunks `[B, S, T, A]`."""
        ...


@dataclass(frozen=True)
class TeacherPolicy:
    """A teacher at a number of solver steps."""

    module: TrainedTeacher
    num_steps: int

    @property
    def name(self) -> str:
        return f"teacher_{self.num_steps}"

    @property
    def evaluations(self) -> int:
        return self.module.evaluations(self.num_steps)

    @property
    def shape(self) -> PolicyShape:
        return self.module.shape

    def draw(self, samples: int, generator: torch.Generator) -> Tensor:
        return torch.randn(samples, *self.module.noise_shape(self.num_steps), generator=generator)

    def encode(self, observation: Observation) -> Tensor:
        return self.module.encode(observation)

    def head(self, condition_BC: Tensor, draws: Tensor) -> Tensor:
        return self.module.solve(condition_BC, draws, self.num_steps)


@dataclass(frozen=True)
class StudentPolicy:
    """A one-step student; `name` is the name of its recipe."""

    module: Student
    name: str

    @property
    def evaluations(self) -> int:
        return 1

    @property
    def shape(self) -> PolicyShape:
        return self.module.shape

    def draw(self, samples: int, generator: torch.Generator) -> Tensor:
        return torch.randn(samples, *self.module.latent_shape, generator=generator)

    def encode(self, observation: Observation) -> Tensor:
        return self.module.encode(observation)

    def head(self, condition_BC: Tensor, draws: Tensor) -> Tensor:
        return self.module.generate(condition_BC, draws)


def device_of(policy: Policy) -> torch.device:
    """The device of the policy's parameters."""
    return next(policy.module.parameters()).device


def preprocess(policy: Policy, seen: RawObservation) -> Observation:
    """A raw observation as tensors on the policy's device; features that it does not use are left out.

    Of more steps than it observes, the newest are used.
    """
    device, steps = device_of(policy), policy.shape.observation_steps
    return {
        name: torch.from_numpy(np.ascontiguousarray(seen[name][:, -steps:], dtype=np.float32)).to(device)
        for name in sources_of(policy.shape) if name in seen  # the encoder refuses a missing feature by name
    }  # fmt: skip


def postprocess(policy: Policy, chunks: Tensor) -> np.ndarray:
    """Normalised chunks `[.., T, A]` to raw actions on the host."""
    raw: np.ndarray = policy.module.normaliser.unnormalise_action(chunks).cpu().numpy()  # type: ignore[operator,union-attr]
    return raw


@torch.inference_mode()
def sample_set(
    policy: Policy, seen: RawObservation, generator: torch.Generator, samples: int, selection: Selection, executed: int
) -> Tensor:
    """`[S, T, A]` normalised chunks that would be executed at this one observation, in S independent queries without memory."""
    condition_1C = policy.encode(preprocess(policy, seen))
    device = device_of(policy)
    candidates = selection.candidates if selection.kind == "outlier_rejection" else 1  # the others need a last chunk
    draws = policy.draw(samples * candidates, generator)[None].to(device)
    candidates_SNTA = policy.head(condition_1C, draws)[0].unflatten(0, (samples, candidates))
    weights_A = torch.tensor(policy.shape.action_weights, device=device)
    return choose(selection, candidates_SNTA, [Memory()] * samples, executed, weights_A)[0]


def raw_sample_set(
    policy: Policy, seen: RawObservation, generator: torch.Generator, samples: int, selection: Selection, executed: int
) -> np.ndarray:
    """The same in raw units, on the host."""
    return postprocess(policy, sample_set(policy, seen, generator, samples, selection, executed))
