"""The one-step student: the teacher's network without time, one evaluation from a latent to an action chunk."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from teachers.contract import Observation, batch_of
from teachers.networks.pretrained import PretrainedPolicy
from teachers.networks.shapes import PolicyShape
from teachers.networks.transformer import TrajectoryTransformer
from teachers.trained import TrainedTeacher

CODE_GAIN = 8.0
"""Learning-rate factor of the codes: a training step uses only few of them."""

SHARE_GAIN = 8.0
"""Learning-rate factor of the shares' logarithms: they start at zero and must change much."""

SHARE_NORM = 3.0
"""Norm to which the condition is rescaled for the shares, where it comes from an encoder of images or points. Such an encoder's
norm is arbitrary (25, against 1.4 to 5 for states), and a share's learning rate grows with its square: without rescaling, modes
died out within the first steps. A state's condition is used unchanged."""


class OneStepStudent(PretrainedPolicy):
    """(observation, latent `[Z]`) to a chunk `[T, A]` in one pass, for M latents per observation at once.

    The latent is lifted to a chunk-shaped input, so that every other weight has a counterpart in the teacher; the constant
    `time_C` replaces the teacher's time embedding. The first number of a latent selects one of `codes` learned inputs; the
    others are lifted linearly. A continuous map from a continuous latent must pass between two modes wherever it changes from
    one to the other, and its chunks there hit the obstacle; discrete codes avoid that. With `shares` the condition decides how
    often each code is selected, else all are equally likely. So a code whose mode ends is no longer selected instead of having
    to change its mode, and the modes get the teacher's shares (distill.objectives.code_shares).
    """

    KIND = "one_step_student"

    def __init__(
        self, shape: PolicyShape, latent_size: int, identity: bool = False, codes: int = 0, shares: bool = False
    ) -> None:
        """latent_size: Z. codes: 0 lifts the whole latent linearly. identity: the lift starts as the identity, for the
        teacher's own noise as latent. shares: learn the codes' shares, which start equal. ValueError for inconsistent ones."""
        super().__init__(shape)
        if latent_size < 1:
            raise ValueError(f"latent_size must be at least 1, got {latent_size}")
        if codes < 0 or codes == 1 or (codes and identity):
            raise ValueError(f"codes: got {codes}, expected at least 2, or 0 for none (with identity: none)")
        if shares and not codes:
            raise ValueError("shares: got codes 0, expected at least 2: shares are of codes")
        self.latent_size, self.codes = latent_size, codes
        self.time_C = nn.Parameter(torch.zeros(shape.width))
        chunk_size, linear_size = shape.horizon * shape.action_size, latent_size - bool(codes)
        # the lifted latent has unit variance, like the noise in the teacher's training
        self.code_book = nn.Parameter(torch.randn(codes, chunk_size) / CODE_GAIN) if codes else None
        self.from_latent = nn.Linear(linear_size, chunk_size, bias=False) if linear_size else None
        if self.from_latent is not None and identity:
            nn.init.eye_(self.from_latent.weight)
        elif self.from_latent is not None:
            nn.init.normal_(self.from_latent.weight, std=latent_size**-0.5)
        self.trunk = TrajectoryTransformer(shape)
        self.share_head = nn.Linear(shape.width, codes) if shares else None
        self.share_correction: nn.Sequential | None = None
        if self.share_head is not None:
            # the linear head is trained with the student; the correction is frozen then, and trained by
            # distill.objectives.code_shares.calibrate
            last = nn.Linear(shape.width, codes)
            for parameter in (*self.share_head.parameters(), *last.parameters()):
                nn.init.zeros_(parameter)
            self.share_correction = nn.Sequential(
                nn.Linear(shape.width, shape.width), nn.GELU(), nn.Linear(shape.width, shape.width), nn.GELU(), last
            ).requires_grad_(False)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(Z,)."""
        return (self.latent_size,)

    @torch.no_grad()
    def warm_start(self, teacher: TrainedTeacher, chunks_JTA: Tensor | None = None) -> None:
        """Copies the weights of a teacher of the same shape, with its time fixed at pure noise.

        A student with fewer blocks takes evenly spaced ones of the teacher's, including the last: blocks are residual, so that
        some can be omitted.
        chunks_JTA: normalised chunks of the teacher, one per code. Then the codes start on the teacher's path from their noise
        to these chunks (`TrainedTeacher.warm_start_inputs`), and the time is fixed there.
        """
        self.copy_encoding(teacher)
        self.trunk.load_state_dict(_with_depth(self.shape.depth, teacher.trunk.state_dict(), teacher.shape.depth))
        if chunks_JTA is None or self.code_book is None:
            self.time_C.copy_(teacher.noise_time_embedding())
            return
        inputs_JTA, time_C = teacher.warm_start_inputs(CODE_GAIN * self.code_book.view_as(chunks_JTA), chunks_JTA)
        self.time_C.copy_(time_C)
        self.code_book.copy_(inputs_JTA.flatten(1) / CODE_GAIN)

    def log_shares(self, condition_BC: Tensor) -> Tensor | None:
        """Logarithm of each code's share, `[B, J]`; None where all are equal."""
        if self.share_head is None or self.share_correction is None:
            return None
        condition_BC, _ = self.split_origin(condition_BC)
        scaled_BC = condition_BC
        if self.shape.encoder is not None:
            length_B1 = torch.linalg.vector_norm(condition_BC, dim=-1, keepdim=True)
            scaled_BC = SHARE_NORM * (condition_BC / length_B1.clamp(min=1e-12))
        logits_BJ: Tensor = SHARE_GAIN * self.share_head(scaled_BC) + self.share_correction(condition_BC)
        return logits_BJ.log_softmax(-1)

    def choose_codes(self, latents_BMZ: Tensor, log_share_BJ: Tensor | None = None) -> Tensor:
        """Index `[B, M]` of the code that the first number of each latent selects; log_share_BJ: None for equal shares."""
        # the normal distribution function of the first number is uniform in 0 .. 1
        below_BM = 0.5 * (1 + torch.erf(latents_BMZ[..., 0] / math.sqrt(2)))
        if log_share_BJ is None:
            code_BM = (below_BM * self.codes).long()
        else:
            up_to_BJ = log_share_BJ.detach().exp().cumsum(-1)
            # strictly below the sum, so that a last code without a share is never taken
            below_BM = below_BM.clamp(max=1 - 2**-23) * up_to_BJ[:, -1:]
            code_BM = (below_BM[..., None] >= up_to_BJ[:, None]).sum(-1)
        return code_BM.clamp(max=self.codes - 1)

    def lift(self, latents_BMZ: Tensor, log_share_BJ: Tensor | None = None) -> Tensor:
        """Standard normal latents to inputs `[B, M, T*A]` of unit variance."""
        return self._lift(self.choose_codes(latents_BMZ, log_share_BJ) if self.codes else None, latents_BMZ)

    def _lift(self, code: Tensor | None, latents_BMZ: Tensor) -> Tensor:
        lifted: Tensor | float = 0.0
        linear = latents_BMZ
        if self.code_book is not None:
            lifted, linear = CODE_GAIN * self.code_book[code], latents_BMZ[..., 1:]
        if self.from_latent is not None:
            lifted = lifted + self.from_latent(linear)
        assert isinstance(lifted, Tensor)
        return lifted

    def generate(self, condition_BC: Tensor, latents_BMZ: Tensor) -> Tensor:
        """One network evaluation: condition and latents to normalised chunks `[B, M, T, A]`."""
        return self.generate_from_lifted(condition_BC, self.lift(latents_BMZ, self.log_shares(condition_BC)))

    def generate_from_codes(self, condition_BC: Tensor, code_BJ: Tensor, latents_BJZ: Tensor) -> Tensor:
        """The normalised chunks `[B, J, T, A]` of given codes `[B, J]`; the latents' first number is not used.

        Raises ValueError for a student without codes.
        """
        if not self.codes:
            raise ValueError("generate_from_codes: this student has no codes")
        return self.generate_from_lifted(condition_BC, self._lift(code_BJ, latents_BJZ))

    def generate_from_lifted(self, condition_BC: Tensor, lifted_BMD: Tensor) -> Tensor:
        """The trunk's normalised chunks `[B, M, T, A]` from lifted inputs `[B, M, T*A]`."""
        inputs = lifted_BMD.reshape(-1, self.shape.horizon, self.shape.action_size)
        chunks = self.predict(inputs, condition_BC, self.time_C)
        return chunks.unflatten(0, tuple(lifted_BMD.shape[:2]))

    def forward(
        self, observation: Observation, latents_BMZ: Tensor, normalised: bool = False, seeds_B: Tensor | None = None
    ) -> Tensor:
        """Actions `[B, M, T, A]` in raw units, or normalised, as the objectives need them.

        seeds_B: `encoder_draws`, in training. Raises ValueError unless the latents are `[B, M, Z]`.
        """
        batch, _ = batch_of(observation)
        if latents_BMZ.ndim != 3 or latents_BMZ.shape[0] != batch or latents_BMZ.shape[2] != self.latent_size:
            raise ValueError(f"latents: got {tuple(latents_BMZ.shape)}, expected ({batch}, M, {self.latent_size})")
        chunks_BMTA = self.generate(self.encode(observation, seeds_B), latents_BMZ)
        return chunks_BMTA if normalised else self.normaliser.unnormalise_action(chunks_BMTA)

    def settings(self) -> dict[str, Any]:
        """See `PretrainedPolicy.settings`."""
        return {"latent_size": self.latent_size, "codes": self.codes, "shares": self.share_head is not None}

    @classmethod
    def from_settings(cls, shape: PolicyShape, settings: dict[str, Any]) -> Self:
        """See `PretrainedPolicy.from_settings`."""
        return cls(
            shape, settings["latent_size"], codes=settings.get("codes", 0), shares=settings.get("shares", False)
        )


def _with_depth(depth: int, weights: dict[str, Tensor], deeper: int) -> dict[str, Tensor]:
    """Weights of a trunk of `depth` blocks from those of one of `deeper` blocks; unchanged for equal depths."""
    taken = {(block + 1) * deeper // depth - 1: block for block in range(depth)}
    found = {}
    for name, value in weights.items():
        part, _, rest = name.partition(".")
        if part != "blocks":
            found[name] = value
            continue
        block, _, rest = rest.partition(".")
        if int(block) in taken:
            found[f"blocks.{taken[int(block)]}.{rest}"] = value
    return found
