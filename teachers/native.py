"""What the teachers that are trained here share: their parts, drawing chunks from a generator, and their folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from envs.specs import STATE
from teachers.contract import Observation
from teachers.networks import PolicyShape, StateEncoder, TimeEmbedding, TrajectoryTransformer
from teachers.normalisation import Normaliser
from teachers.pretrained import load_weights, read_config, save_policy


class TrainedTeacher(nn.Module, ABC):
    """A state encoder, a time embedding (0 is pure noise, 1 is data) and a transformer from chunk to chunk.

    A kind says what the network is trained for (`training_draws`, `forward`) and how chunks are made with it (`solve`).
    All its randomness is standard normal numbers of `noise_shape(num_steps)` per chunk, so that a chunk can be made
    again from one seed, whatever batch it was drawn in.
    """

    KIND: str
    SOLVERS: ClassVar[tuple[str, ...]]
    """Names that `solver` takes, the default first."""
    CACHE_SOLVER: ClassVar[str]
    """The one that hypotheses are drawn with unless another is asked for: the best at the few steps a cache can afford."""

    def __init__(self, shape: PolicyShape, solver: str) -> None:
        super().__init__()
        self.use_solver(solver)
        self.shape = shape
        self.normaliser = Normaliser(shape.state_size, shape.action_size)
        self.encoder: nn.Module = StateEncoder(shape.observation_steps, shape.state_size, shape.width)
        self.time = TimeEmbedding(shape.width)
        self.trunk: nn.Module = TrajectoryTransformer(shape)

    # -- what a kind brings ----------------------------------------------------------------------------------------

    @abstractmethod
    def training_draws(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Random tensors `[B, ...]` that one training step needs, drawn on the CPU for the whole batch."""

    @abstractmethod
    def forward(self, observation: Observation, action_BTA: Tensor, *draws: Tensor) -> Tensor:
        """The training loss, a scalar; action_BTA in raw units."""

    @abstractmethod
    def noise_shape(self, num_steps: int) -> tuple[int, ...]:
        """Shape of the standard normal numbers that one chunk is made from."""

    @abstractmethod
    def solve(self, condition_BC: Tensor, noise_BK: Tensor, num_steps: int) -> Tensor:
        """Condition and noise `[B, K, *noise_shape]` to normalised chunks `[B, K, T, A]`."""

    @abstractmethod
    def evaluations(self, num_steps: int) -> int:
        """Network evaluations (NFE) that `num_steps` solver steps cost."""

    def use_solver(self, solver: str) -> None:
        """Draw chunks with this one of `SOLVERS` from now on. Raises ValueError for another."""
        if solver not in self.SOLVERS:
            raise ValueError(f"unknown solver {solver!r} of a {self.KIND}; expected one of {sorted(self.SOLVERS)}")
        self.solver = solver

    # -- sampling --------------------------------------------------------------------------------------------------

    def encode(self, observation: Observation) -> Tensor:
        """Raw observation to the condition `[B, C]`, once for all chunks that are drawn from it."""
        condition_BC: Tensor = self.encoder(self.normaliser.normalise_state(observation[STATE]))
        return condition_BC

    def start_condition(self) -> Tensor:
        """What stands for the time `[C]` at pure noise: a student that starts from this teacher goes on from there."""
        return self.time(torch.zeros(1, device=self.time.frequencies.device))[0]

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
        state = observation[STATE]
        shape = (state.shape[0], num_hypotheses, *self.noise_shape(num_steps))
        noise_BK = torch.randn(shape, generator=generator, device=generator.device).to(state.device)
        return self.sample_from_noise(observation, noise_BK, num_steps)

    # -- on disk ---------------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments beside the shape, as `config.json` holds them."""
        return {"solver": self.solver}

    def save_pretrained(self, folder: Path | str) -> None:
        """Write ``config.json`` and ``model.safetensors`` (statistics included); refuses unset statistics."""
        self.normaliser.check()
        save_policy(folder, self.KIND, {"shape": asdict(self.shape), **self.settings()}, self)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> Self:
        """Read a folder that `save_pretrained` wrote; ValueError says what is wrong with it."""
        config = read_config(folder, cls.KIND)
        try:
            teacher = cls(PolicyShape(**config.pop("shape")), **config)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder}/config.json does not describe a {cls.KIND}: {error}") from error
        load_weights(folder, teacher)
        teacher.normaliser.check()
        return teacher.eval()
