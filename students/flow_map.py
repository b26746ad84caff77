"""The flow map student: the teacher's network with time and span as inputs; the whole span is one evaluation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from teachers.contract import Observation, batch_of
from teachers.flow import FlowTeacher
from teachers.networks.pretrained import PretrainedPolicy
from teachers.networks.shapes import PolicyShape
from teachers.networks.transformer import TimeEmbedding, TrajectoryTransformer


class FlowMapStudent(PretrainedPolicy):
    """(observation, noise `[T, A]`) to a chunk `[T, A]`, for M noises per observation at once.

    The network F(x_t, t, s | o) predicts where the straight line from x_t through x_{t+s} arrives at time 1, so that
    x_{t+s} = x_t + s v with the mean velocity v = (F - x_t) / (1 - t). For the span s = 0 it is the teacher's own prediction;
    for s = 1 - t it is the end point itself; for s = 0 at t = 1 nothing moves.
    Consistency, shortcut, mean flow and rectified models are trainings of this map: see `distill.objectives.flow_maps`.
    """

    KIND = "flow_map_student"

    def __init__(self, shape: PolicyShape) -> None:
        super().__init__(shape)
        self.time = TimeEmbedding(shape.width)
        self.span = TimeEmbedding(shape.width)
        # the span has no effect at first: a student with the teacher's weights is the teacher
        for value in self.span.layers[-1].parameters():
            nn.init.zeros_(value)
        self.trunk = TrajectoryTransformer(shape)

    @classmethod
    def from_teacher(cls, teacher: FlowTeacher, warm_start: bool = True) -> FlowMapStudent:
        """A student with the teacher's shape and statistics; with `warm_start` also its weights."""
        student = cls(teacher.shape)
        student.normaliser.load_state_dict(teacher.normaliser.state_dict())
        if warm_start:
            student.copy_encoding(teacher)
            student.time.load_state_dict(teacher.time.state_dict())
            student.trunk.load_state_dict(teacher.trunk.state_dict())
        return student

    @property
    def latent_shape(self) -> tuple[int, int]:
        """(T, A): a latent is the noise of a chunk."""
        return self.shape.horizon, self.shape.action_size

    # -- the map -------------------------------------------------------------------------------------------------

    def end_point(self, x_NTA: Tensor, time_B: Tensor, span_B: Tensor, condition_BC: Tensor) -> Tensor:
        """One network evaluation: F(x_t, t, s) `[N, T, A]`, N / B chunks for each condition `[B, C]`, time and span."""
        return self.predict(x_NTA, condition_BC, self.time(time_B) + self.span(span_B), data=time_B)

    def velocity(self, x_NTA: Tensor, time_B: Tensor, span_B: Tensor, condition_BC: Tensor) -> Tensor:
        """The mean velocity `[N, T, A]` from t to t + s: (F - x_t) / (1 - t), one network evaluation."""
        end_NTA = self.end_point(x_NTA, time_B, span_B, condition_BC)
        return (end_NTA - x_NTA) / _rows(1 - time_B, x_NTA).clamp(min=1e-3)

    def jump(self, x_NTA: Tensor, time_B: Tensor, span_B: Tensor, condition_BC: Tensor) -> Tensor:
        """The map itself: x_{t+s} `[N, T, A]` = x_t + s v(x_t, t, s); x_t to the last bit where s = 0."""
        return x_NTA + _rows(span_B, x_NTA) * self.velocity(x_NTA, time_B, span_B, condition_BC)

    # -- sampling ------------------------------------------------------------------------------------------------

    def generate(self, condition_BC: Tensor, latents_BMTA: Tensor, num_steps: int = 1) -> Tensor:
        """Condition and noise to normalised chunks `[B, M, T, A]`, in `num_steps` equal steps, one evaluation each.

        Several steps are for students trained with spans below 1 (shortcut, mean flow).
        Raises ValueError for fewer than one step.
        """
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        x_NTA, span_B = latents_BMTA.flatten(0, 1), condition_BC.new_full((len(condition_BC),), 1 / num_steps)
        for step in range(num_steps):
            time_B = torch.full_like(span_B, step / num_steps)
            # the last step ends at time 1, where the prediction is F itself
            move = self.end_point if step == num_steps - 1 else self.jump
            x_NTA = move(x_NTA, time_B, span_B, condition_BC)
        return x_NTA.unflatten(0, latents_BMTA.shape[:2])

    def refine(self, condition_BC: Tensor, chunks_BMTA: Tensor, noise_BMTA: Tensor, time: float) -> Tensor:
        """One more step of a consistency student: back to `time` with fresh noise, then to the end (Song et al. 2023, alg. 1).

        One evaluation; chunks and result are normalised, `[B, M, T, A]`.
        """
        x_NTA = ((1 - time) * noise_BMTA + time * chunks_BMTA).flatten(0, 1)
        time_B = condition_BC.new_full((len(condition_BC),), time)
        return self.end_point(x_NTA, time_B, 1 - time_B, condition_BC).unflatten(0, chunks_BMTA.shape[:2])

    def forward(
        self, observation: Observation, latents_BMTA: Tensor, normalised: bool = False, num_steps: int = 1,
        seeds_B: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Actions `[B, M, T, A]` in raw units, or normalised, as the losses need them.

        seeds_B: `encoder_draws`, in training. Raises ValueError unless the latents are `[B, M, T, A]`.
        """
        batch, _ = batch_of(observation)
        if latents_BMTA.ndim != 4 or latents_BMTA.shape[0] != batch or latents_BMTA.shape[2:] != self.latent_shape:
            horizon, actions = self.latent_shape
            raise ValueError(f"latents: got {tuple(latents_BMTA.shape)}, expected ({batch}, M, {horizon}, {actions})")
        chunks_BMTA = self.generate(self.encode(observation, seeds_B), latents_BMTA, num_steps)
        return chunks_BMTA if normalised else self.normaliser.unnormalise_action(chunks_BMTA)


def _rows(value_B: Tensor, like_NTA: Tensor) -> Tensor:
    """`[N, 1, 1]`: each of the B values for the N / B chunks that share it."""
    return value_B.repeat_interleave(len(like_NTA) // len(value_B))[:, None, None]
