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
"""A step sees few of the codes, so each of them learns by this factor faster than the other weights."""

SHARE_GAIN = 8.0
"""Logarithms of shares begin at zero and have far to go: they learn by this factor faster."""

SHARE_NORM = 3.0
"""Length of the condition that the shares are told from, where an encoder of images or points made it. Its own is what the
encoder happened to learn, 25 rather than the 1.4 to 5 of a state's, and how fast a share learns goes with its square: ways
died out within the first steps. (A state's condition is taken as it is.)"""


class OneStepStudent(PretrainedPolicy):
    """(observation, latent `[Z]`) to a chunk `[T, A]` in one pass, for M latents per observation at once.

    The latent is lifted to a chunk-shaped input, so that every other weight has a twin in the teacher; the constant
    `time_C` stands where the teacher added its time embedding. The first number of a latent chooses one of `codes`
    learned inputs; the others are lifted linearly. A continuous map from a continuous latent has to pass between two ways
    wherever it changes from one to the other, and what it makes there hits the obstacle; codes need not. With `shares` the
    condition says how often each code is chosen, else all are alike: so a code need not leave a way that ends, it is only
    no longer taken, and the ways are as frequent as the teacher's although no code is (distill.objectives.code_shares).
    """

    KIND = "one_step_student"

    def __init__(
        self, shape: PolicyShape, latent_size: int, identity: bool = False, codes: int = 0, shares: bool = False
    ) -> None:
        """codes: 0 lifts all of the latent linearly; identity: and begins with a latent that is the chunk-shaped input
        itself, for the teacher's own noise as latent; shares: the codes' shares are learned, even to begin with."""
        super().__init__(shape)
        if latent_size < 1:
            raise ValueError(f"latent_size must be at least 1, got {latent_size}")
        if codes < 0 or codes == 1 or (codes and identity):
            raise ValueError(f"codes: got {codes}, expected at least 2, or 0 for none (with identity: none)")
        if shares and not codes:
            raise ValueError("shares: got codes 0, expected at least 2: there is nothing to share out")
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
        self.share_head = nn.Linear(shape.width, codes) if shares else None
        self.share_correction: nn.Sequential | None = None
        if self.share_head is not None:
            # learned with everything else is the linear part; the correction is frozen then, and learned by
            # distill.objectives.code_shares.calibrate
            last = nn.Linear(shape.width, codes)
            for parameter in (*self.share_head.parameters(), *last.parameters()):
                nn.init.zeros_(parameter)
            self.share_correction = nn.Sequential(
                nn.Linear(shape.width, shape.width), nn.GELU(), nn.Linear(shape.width, shape.width), nn.GELU(), last
            ).requires_grad_(False)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.latent_size,)

    @torch.no_grad()
    def warm_start(self, teacher: TrainedTeacher, chunks_JTA: Tensor | None = None) -> None:
        """Take the weights of a teacher of the same shape, with its time frozen at pure noise.

        A student of fewer blocks takes as many of the teacher's, evenly spread, the last among them: a block adds to what it
        is given, so that one can be left out.
        chunks_JTA: normalised chunks of the teacher, one for each code: then the codes begin on the teacher's way from
        their noise to these (`TrainedTeacher.warm_start_inputs`), and the time is frozen there.
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
        """Logarithm of the share of every code, `[B, J]`; None where all are alike."""
        if self.share_head is None or self.share_correction is None:
            return None
        told_BC = condition_BC
        if self.shape.encoder is not None:
            length_B1 = torch.linalg.vector_norm(condition_BC, dim=-1, keepdim=True)
            told_BC = SHARE_NORM * (condition_BC / length_B1.clamp(min=1e-12))
        logits_BJ: Tensor = SHARE_GAIN * self.share_head(told_BC) + self.share_correction(condition_BC)
        return logits_BJ.log_softmax(-1)

    def choose_codes(self, latents_BMZ: Tensor, log_share_BJ: Tensor | None = None) -> Tensor:
        """Index `[B, M]` of the code that the first number of each latent stands for, even shares unless given others."""
        # the share of the normal distribution below the first number is even between 0 and 1
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
        """The normalised chunks `[B, J, T, A]` of given codes; of the latents all but the first number is used.

        Raises ValueError for a student without codes.
        """
        if not self.codes:
            raise ValueError("generate_from_codes: this student has no codes")
        return self.generate_from_lifted(condition_BC, self._lift(code_BJ, latents_BJZ))

    def generate_from_lifted(self, condition_BC: Tensor, lifted_BMD: Tensor) -> Tensor:
        """The trunk's normalised chunks `[B, M, T, A]` of inputs `[B, M, T*A]`."""
        inputs = lifted_BMD.reshape(-1, self.shape.horizon, self.shape.action_size)
        chunks: Tensor = self.trunk(inputs, condition_BC + self.time_C)
        return chunks.unflatten(0, tuple(lifted_BMD.shape[:2]))

    def forward(
        self, observation: Observation, latents_BMZ: Tensor, normalised: bool = False, seeds_B: Tensor | None = None
    ) -> Tensor:
        """`[B, M, T, A]` actions in raw units, or in normalised ones, where the objectives live.

        seeds_B: `encoder_draws`, in training. Raises ValueError when the latents are not `[B, M, Z]`.
        """
        batch, _ = batch_of(observation)
        if latents_BMZ.ndim != 3 or latents_BMZ.shape[0] != batch or latents_BMZ.shape[2] != self.latent_size:
            raise ValueError(f"latents: got {tuple(latents_BMZ.shape)}, expected ({batch}, M, {self.latent_size})")
        chunks_BMTA = self.generate(self.encode(observation, seeds_B), latents_BMZ)
        return chunks_BMTA if normalised else self.normaliser.unnormalise_action(chunks_BMTA)

    def settings(self) -> dict[str, Any]:
        return {"latent_size": self.latent_size, "codes": self.codes, "shares": self.share_head is not None}

    @classmethod
    def from_settings(cls, shape: PolicyShape, settings: dict[str, Any]) -> Self:
        return cls(
            shape, settings["latent_size"], codes=settings.get("codes", 0), shares=settings.get("shares", False)
        )


def _with_depth(depth: int, weights: dict[str, Tensor], deeper: int) -> dict[str, Tensor]:
    """The weights of a trunk of `depth` blocks from those of one of `deeper`; of as many blocks they are the same."""
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
