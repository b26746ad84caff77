"""The one-step student: the teacher's network without time, one evaluation from a latent to an action chunk."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from envs.specs import STATE
from teachers.contract import Observation
from teachers.native import TrainedTeacher
from teachers.networks import PolicyShape, TrajectoryTransformer
from teachers.pretrained import PretrainedPolicy

CODE_GAIN = 8.0
"""A step sees few of the codes, so each of them learns by this factor faster than the other weights."""


class OneStepStudent(PretrainedPolicy):
    """(observation, latent `[Z]`) to a chunk `[T, A]` in one pass, for M latents per observation at once.

    The latent is lifted to a chunk-shaped input, so that every other weight has a twin in the teacher; the constant
    `time_C` stands where the teacher added its time embedding. The first number of a latent chooses one of `codes`
    learned inputs, evenly; the others are lifted linearly. A continuous map from a continuous latent has to pass between
    two ways wherever it changes from one to the other, and what it makes there hits the obstacle; codes need not.
    """

    KIND = "one_step_student"

    def __init__(self, shape: PolicyShape, latent_size: int, identity: bool = False, codes: int = 0) -> None:
        """codes: 0 lifts all of the latent linearly; identity: and begins with a latent that is the chunk-shaped input
        itself, for the teacher's own noise as latent."""
        super().__init__(shape)
        if latent_size < 1:
            raise ValueError(f"latent_size must be at least 1, got {latent_size}")
        if codes < 0 or codes == 1 or (codes and identity):
            raise ValueError(f"codes: got {codes}, expected at least 2, or 0 for none (with identity: none)")
        self.latent_size, self.codes = latent_size, codes
        self.time_C = nn.Parameter(torch.zeros(shape.width))
        chunk_size, linear_size = shape.horizon * shape.action_size, latent_size - bool(codes)
        # each entry of the lifted latent has unit variance, as the noise had that the teacher's trunk was trained on
        self.code_book = nn.Parameter(torch.randn(codes, chunk_size) / CODE_GAIN) if codes else None
        self.from_latent = nn.Linear(linear_size, chunk_size, bias=False) if linear_size else None
        if self.from_latent is not None and identity:
            nn.init.eye_(self.from_latent.weight)
        elif self.from_latent is not None:
            nn.init.normal_(self.from_latent.weight, std=latent_size**-0.5)
        self.trunk = TrajectoryTransformer(shape)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.latent_size,)

    def warm_start(self, teacher: TrainedTeacher) -> None:
        """Take the weights of a teacher of the same shape, with its time frozen at pure noise."""
        self.encoder.load_state_dict(teacher.encoder.state_dict())
        self.trunk.load_state_dict(teacher.trunk.state_dict())
        with torch.no_grad():
            self.time_C.copy_(teacher.start_condition())

    def lift(self, latents_BMZ: Tensor) -> Tensor:
        """Standard normal latents to inputs `[B, M, T*A]` of unit variance."""
        lifted: Tensor | float = 0.0
        linear = latents_BMZ
        if self.code_book is not None:
            # the share of the normal distribution below the first number is even between 0 and 1
            below_BM = 0.5 * (1 + torch.erf(latents_BMZ[..., 0] / math.sqrt(2)))
            code_BM = (below_BM * self.codes).long().clamp(max=self.codes - 1)
            lifted, linear = CODE_GAIN * self.code_book[code_BM], latents_BMZ[..., 1:]
        if self.from_latent is not None:
            lifted = lifted + self.from_latent(linear)
        assert isinstance(lifted, Tensor)
        return lifted

    def generate(self, condition_BC: Tensor, latents_BMZ: Tensor) -> Tensor:
        """One network evaluation: condition and latents to normalised chunks `[B, M, T, A]`."""
        batch, samples = latents_BMZ.shape[:2]
        lifted = self.lift(latents_BMZ).reshape(batch * samples, self.shape.horizon, self.shape.action_size)
        chunks: Tensor = self.trunk(lifted, condition_BC + self.time_C)
        return chunks.unflatten(0, (batch, samples))

    def forward(self, observation: Observation, latents_BMZ: Tensor, normalised: bool = False) -> Tensor:
        """`[B, M, T, A]` actions in raw units, or in normalised ones, where the objectives live.

        Raises ValueError when the latents are not `[B, M, Z]`.
        """
        batch = observation[STATE].shape[0]
        if latents_BMZ.ndim != 3 or latents_BMZ.shape[0] != batch or latents_BMZ.shape[2] != self.latent_size:
            raise ValueError(f"latents: got {tuple(latents_BMZ.shape)}, expected ({batch}, M, {self.latent_size})")
        chunks_BMTA = self.generate(self.encode(observation), latents_BMZ)
        return chunks_BMTA if normalised else self.normaliser.unnormalise_action(chunks_BMTA)

    def settings(self) -> dict[str, Any]:
        return {"latent_size": self.latent_size, "codes": self.codes}

    @classmethod
    def from_settings(cls, shape: PolicyShape, settings: dict[str, Any]) -> Self:
        return cls(shape, settings["latent_size"], codes=settings.get("codes", 0))
