"""What the teachers that are trained here share: their parts, and drawing chunks from a generator."""

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

    A kind says what the network is trained for (`training_draws`, `forward`) and how chunks are made with it (`solve`).
    All its randomness is standard normal numbers of `noise_shape(num_steps)` per chunk, so that a chunk can be made
    again from one seed, whatever batch it was drawn in.
    """

    SOLVERS: ClassVar[tuple[str, ...]]
    """Names that `solver` takes, the default first."""
    CACHE_SOLVER: ClassVar[str]
    """The one that hypotheses are drawn with unless another is asked for: the best at the few steps a cache can afford."""
    CACHE_STEPS: ClassVar[int]
    """How many of its steps."""
    STOCHASTIC_SOLVERS: ClassVar[tuple[str, ...]] = ()
    """Solvers that take new noise at every step; with the others a chunk comes from one noise of its own shape."""

    def __init__(self, shape: PolicyShape, solver: str) -> None:
        super().__init__(shape)
        self.use_solver(solver)
        self.time = TimeEmbedding(shape.width)
        self.trunk: nn.Module = TrajectoryTransformer(shape)

    # -- what a kind brings ----------------------------------------------------------------------------------------

    @abstractmethod
    def training_draws(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Random tensors `[B, ...]` that one training step needs, drawn on the CPU for the whole batch; the encoder's last."""

    @abstractmethod
    def forward(self, observation: Observation, action_BTA: Tensor, *draws: Tensor) -> Tensor:
        """The training loss, a scalar; action_BTA in raw units."""

    @abstractmethod
    def solve(self, condition_BC: Tensor, noise_BK: Tensor, num_steps: int) -> Tensor:
        """Condition and noise `[B, K, *noise_shape]` to normalised chunks `[B, K, T, A]`."""

    @abstractmethod
    def evaluations(self, num_steps: int) -> int:
        """Network evaluations (NFE) that `num_steps` solver steps cost."""

    @classmethod
    def check_steps(cls, num_steps: int, name: str = "num_steps") -> None:
        """Raise ValueError, with the name of the setting, for a number of solver steps that this kind cannot take."""
        if num_steps < 1:
            raise ValueError(f"{name} must be at least 1, got {num_steps}")

    @classmethod
    def is_deterministic(cls, solver: str) -> bool:
        """Whether this solver ("": the cache's) makes a chunk from one noise `[T, A]`."""
        return (solver or cls.CACHE_SOLVER) not in cls.STOCHASTIC_SOLVERS

    def use_solver(self, solver: str) -> None:
        """Draw chunks with this one of `SOLVERS` from now on. Raises ValueError for another."""
        if solver not in self.SOLVERS:
            raise ValueError(f"unknown solver {solver!r} of a {self.KIND}; expected one of {sorted(self.SOLVERS)}")
        self.solver = solver

    def noise_shape(self, num_steps: int) -> tuple[int, ...]:
        """Standard normal numbers of one chunk: `[T, A]`, or `[1 + num_steps, T, A]` where each step takes its own.

        The last step's are multiplied by zero: nothing is added to the clean chunk.
        """
        chunk = self.shape.horizon, self.shape.action_size
        return chunk if self.is_deterministic(self.solver) else (1 + num_steps, *chunk)

    # -- sampling --------------------------------------------------------------------------------------------------

    def noise_time_embedding(self) -> Tensor:
        """What stands for the time `[C]` at pure noise: a student that starts from this teacher goes on from there."""
        return self.time(torch.zeros(1, device=self.time.frequencies.device))[0]

    def warm_start_inputs(self, noise_NTA: Tensor, chunk_NTA: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs of the trunk `[N, T, A]`, and what stands for their time `[C]`, that a student with codes starts from.

        Here pure noise; where a teacher knows what lies between the noise and its chunks, rather that.
        """
        return noise_NTA, self.noise_time_embedding()

    @torch.no_grad()
    def sample_from_noise(self, observation: Observation, noise_BK: Tensor, num_steps: int) -> Tensor:
        """Chunks `[B, K, T, A]`, raw actions, made from noise `[B, K, *noise_shape]`; the encoder runs once."""
        return self.normaliser.unnormalise_action(self.solve(self.encode(observation), noise_BK, num_steps))

    @torch.no_grad()
    def sample(
        self, observation: Observation, num_hypotheses: int, num_steps: int, generator: torch.Generator
    ) -> Tensor:
        """K independent chunks per observation, `[B, K, T, A]` raw actions; see `teachers.contract.Teacher`."""
        if num_hypotheses < 1:
            raise ValueError(f"num_hypotheses must be at least 1, got {num_hypotheses}")
        batch, device = batch_of(observation)
        shape = (batch, num_hypotheses, *self.noise_shape(num_steps))
        noise_BK = torch.randn(shape, generator=generator, device=generator.device).to(device)
        return self.sample_from_noise(observation, noise_BK, num_steps)

    # -- on disk ---------------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        return {"solver": self.solver}

    @classmethod
    def from_settings(cls, shape: PolicyShape, settings: dict[str, Any]) -> Self:
        return cls(shape, **settings)
