"""The base class of the teachers that are trained here: their networks, and sampling from a generator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from teachers.contract import Observation, batch_of
from teachers.networks.pretrained import PretrainedPolicy
from teachers.networks.shapes import PolicyShape
from teachers.networks.transformer import TimeEmbedding, TrajectoryTransformer


class TrainedTeacher(PretrainedPolicy, ABC):
    """An encoder, a time embedding (0 is pure noise, 1 is data) and a transformer from chunk to chunk.

    A kind defines the training loss (`training_draws`, `forward`) and the sampler (`solve`). All randomness of a chunk is
    standard normal noise of shape `noise_shape(num_steps)`, so that it can be reproduced from one seed in any batch.
    """

    SOLVERS: ClassVar[tuple[str, ...]]
    """Names of its solvers, the default first."""
    CACHE_SOLVER: ClassVar[str]
    """The default solver for hypotheses: the best at the few steps that a cache can afford."""
    CACHE_STEPS: ClassVar[int]
    """Default number of its steps."""
    STOCHASTIC_SOLVERS: ClassVar[tuple[str, ...]] = ()
    """Solvers that take new noise at every step; with the others a chunk is a function of one noise of its own shape."""

    def __init__(self, shape: PolicyShape, solver: str) -> None:
        super().__init__(shape)
        self.use_solver(solver)
        self.time = TimeEmbedding(shape.width)
        self.trunk: nn.Module = TrajectoryTransformer(shape)

    # -- what a kind defines ---------------------------------------------------------------------------------------

    @abstractmethod
    def training_draws(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Random tensors `[B, ...]` of one training step, drawn on the CPU for the whole batch; the encoder's last."""

    @abstractmethod
    def forward(self, observation: Observation, action_BTA: Tensor, *draws: Tensor) -> Tensor:
        """The training loss, a scalar; action_BTA in raw units."""

    @abstractmethod
    def solve(self, condition_BC: Tensor, noise_BK: Tensor, num_steps: int) -> Tensor:
        """Condition and noise `[B, K, *noise_shape]` to normalised chunks `[B, K, T, A]`."""

    @abstractmethod
    def evaluations(self, num_steps: int) -> int:
        """Network evaluations (NFE) of `num_steps` solver steps."""

    @classmethod
    def check_steps(cls, num_steps: int, name: str = "num_steps") -> None:
        """Raises ValueError, with the name of the setting, for an invalid number of solver steps."""
        if num_steps < 1:
            raise ValueError(f"{name} must be at least 1, got {num_steps}")

    @classmethod
    def is_deterministic(cls, solver: str) -> bool:
        """Whether a chunk of this solver ("": `CACHE_SOLVER`) is a function of one noise `[T, A]`."""
        return (solver or cls.CACHE_SOLVER) not in cls.STOCHASTIC_SOLVERS

    def use_solver(self, solver: str) -> None:
        """Sets the solver, one of `SOLVERS`. Raises ValueError for another."""
        if solver not in self.SOLVERS:
            raise ValueError(f"unknown solver {solver!r} of a {self.KIND}; expected one of {sorted(self.SOLVERS)}")
        self.solver = solver

    def noise_shape(self, num_steps: int) -> tuple[int, ...]:
        """Shape of one chunk's noise: `[T, A]`, or `[1 + num_steps, T, A]` where each step takes its own.

        The last step's noise has weight zero: nothing is added to the clean chunk.
        """
        chunk = self.shape.horizon, self.shape.action_size
        return chunk if self.is_deterministic(self.solver) else (1 + num_steps, *chunk)

    # -- sampling --------------------------------------------------------------------------------------------------

    def noise_time_embedding(self) -> Tensor:
        """The time embedding `[C]` at pure noise, from which a student with this teacher's weights starts."""
        return self.time(torch.zeros(1, device=self.time.frequencies.device))[0]

    def warm_start_inputs(self, noise_NTA: Tensor, chunk_NTA: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs of the trunk `[N, T, A]`, and their time embedding `[C]`, from which a student with codes starts.

        noise_NTA, chunk_NTA: noise and the normalised chunks drawn from it. The default is the noise; a teacher that knows a
        path between noise and chunk takes a point on it.
        """
        return noise_NTA, self.noise_time_embedding()

    @torch.no_grad()
    def sample_from_noise(self, observation: Observation, noise_BK: Tensor, num_steps: int) -> Tensor:
        """Chunks `[B, K, T, A]`, raw actions, from noise `[B, K, *noise_shape]`; the encoder runs once."""
        return self.normaliser.unnormalise_action(self.solve(self.encode(observation), noise_BK, num_steps))

    @torch.no_grad()
    def sample(
        self, observation: Observation, num_hypotheses: int, num_steps: int, generator: torch.Generator
    ) -> Tensor:
        """K independent chunks per observation, `[B, K, T, A]` raw actions; see `teachers.contract.Teacher`.

        Raises ValueError for fewer than one hypothesis, and as `encode` and `solve`.
        """
        if num_hypotheses < 1:
            raise ValueError(f"num_hypotheses must be at least 1, got {num_hypotheses}")
        batch, device = batch_of(observation)
        shape = (batch, num_hypotheses, *self.noise_shape(num_steps))
        noise_BK = torch.randn(shape, generator=generator, device=generator.device).to(device)
        return self.sample_from_noise(observation, noise_BK, num_steps)

    # -- on disk ---------------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """See `PretrainedPolicy.settings`."""
        return {"solver": self.solver}

    @classmethod
    def from_settings(cls, shape: PolicyShape, settings: dict[str, Any]) -> Self:
        """See `PretrainedPolicy.from_settings`."""
        return cls(shape, **settings)
