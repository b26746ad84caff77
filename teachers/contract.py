"""What a teacher must do, and a check that outsiders can run on their own."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

Observation = dict[str, Tensor]
"""Feature name to tensor, batched: ``observation.state`` is `[B, O, S]`, raw units."""


@runtime_checkable
class Teacher(Protocol):
    """Anything that can be asked for K action chunks per observation."""

    def sample(
        self, observation: Observation, num_hypotheses: int, num_steps: int, generator: torch.Generator
    ) -> Tensor:
        """`[B, K, T, A]` raw actions, drawn independently; no gradient; same generator state, same result."""
        ...

    def evaluations(self, num_steps: int) -> int:
        """Network evaluations (NFE) that `num_steps` solver steps cost."""
        ...


def check_teacher(
    teacher: Teacher, observation: Observation, action_size: int, num_steps: int = 2, num_hypotheses: int = 3
) -> None:
    """Raise ValueError with everything that is wrong with a teacher; return None when it keeps the contract.

    Checked: shape, finiteness, dtype, no gradient, same seed same result, different seed different result,
    hypotheses that differ within one observation, at least one network evaluation counted.
    """
    batch = next(iter(observation.values())).shape[0]
    device = next(iter(observation.values())).device

    def draw(seed: int) -> Tensor:
        return teacher.sample(observation, num_hypotheses, num_steps, torch.Generator(device).manual_seed(seed))

    first = draw(0)
    wrong = []
    if first.ndim != 4 or first.shape[:2] != (batch, num_hypotheses) or first.shape[-1] != action_size:
        wrong.append(f"shape: got {tuple(first.shape)}, expected ({batch}, {num_hypotheses}, T, {action_size})")
    if not bool(torch.isfinite(first).all()):
        wrong.append("values: got NaN or infinity, expected finite actions")
    if first.dtype != torch.float32:
        wrong.append(f"dtype: got {first.dtype}, expected torch.float32")
    if first.requires_grad:
        wrong.append("gradient: the sample requires grad; wrap sample in torch.no_grad()")
    if not torch.equal(first, draw(0)):
        wrong.append("determinism: one seed gave two results; draw all noise from the generator that is passed")
    if torch.equal(first, draw(1)):
        wrong.append("randomness: two seeds gave one result; draw the noise from the generator that is passed")
    if first.ndim == 4 and first.shape[1] > 1 and torch.equal(first[:, 0], first[:, 1]):
        wrong.append("hypotheses: the K chunks of one observation are equal; draw a noise for each")
    if teacher.evaluations(num_steps) < 1:
        wrong.append(f"evaluations: got {teacher.evaluations(num_steps)} for {num_steps} steps, expected at least 1")
    if wrong:
        raise ValueError("this teacher does not keep the contract:\n  " + "\n  ".join(wrong))
