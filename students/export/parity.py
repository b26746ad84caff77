"""Parity of exported graphs with the PyTorch student, on random observations and different numbers of samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.specs import DEPTH, POINTS, STATE
from students import Student
from students.export.graph import Call
from students.one_step import OneStepStudent
from teachers.contract import Observation
from teachers.networks.observations import fake_observation

TOLERANCE = 1e-4
"""Greatest accepted difference of an exported graph, in half ranges of an action."""

INPUTS = 1000
"""Number of random observations on which each graph is compared."""

SAMPLE_COUNTS = (16, 1, 5)
"""Numbers of samples that are tried in turn."""

BOUNDARY = 2e-6
"""A latent within this distance of the border between two codes' shares may select either, by float32 rounding."""


@dataclass(frozen=True)
class Parity:
    """The difference between an exported graph's chunks and the student's.

    inputs: number of observations; chunks: number of compared chunks; on_border: chunks left out, of latents that may select
    either of two codes (`BOUNDARY`). largest: largest absolute difference, raw units; largest_normalised: in half ranges of
    the action. Infinite for a graph that returns another number of chunks.
    """

    inputs: int
    chunks: int
    on_border: int
    largest: float
    largest_normalised: float

    @property
    def holds(self) -> bool:
        """Whether the difference is at most `TOLERANCE`."""
        return self.chunks > 0 and self.largest_normalised <= TOLERANCE  # false for NaN


@torch.no_grad()
def measure_parity(student: Student, calls: Mapping[str, Call], inputs: int = INPUTS, seed: int = 0) -> dict[str, Parity]:
    """Compares every graph with the student on `inputs` random observations, with different numbers of samples."""
    generator, block = torch.Generator().manual_seed(seed), 50
    chunks = on_border = 0
    largest = {name: torch.zeros(student.shape.action_size) for name in calls}
    for begin in range(0, inputs, block):
        count = min(block, inputs - begin)
        observation = random_observation(student, count, generator)
        samples = SAMPLE_COUNTS[begin // block % len(SAMPLE_COUNTS)]
        latents = torch.randn(count, samples, *student.latent_shape, generator=generator)
        expected_BMTA = student(observation, latents)
        clear_BM = ~_on_border(student, student.encode(observation), latents)
        chunks, on_border = chunks + int(clear_BM.sum()), on_border + int((~clear_BM).sum())
        for name, call in calls.items():
            for row in range(count):
                one = {source: value[row : row + 1] for source, value in observation.items()}
                actual_1MTA, clear_M = call(one, latents[row : row + 1]), clear_BM[row]
                if actual_1MTA.shape[1:] != expected_BMTA.shape[1:]:
                    largest[name].fill_(math.inf)
                    continue
                difference_A = (actual_1MTA[0] - expected_BMTA[row])[clear_M].abs().flatten(0, 1)
                if len(difference_A):
                    largest[name] = torch.maximum(largest[name], difference_A.amax(0))  # NaN stays
    _, scale_A = student.normaliser.centre_scale("action")
    return {
        name: Parity(inputs, chunks, on_border, float(difference_A.max()), float((difference_A / scale_A).max()))
        for name, difference_A in largest.items()
    }


def random_observation(student: Student, batch: int, generator: torch.Generator) -> Observation:
    """Random observations `[B, O, ..]` over the ranges in the student's statistics; states exceed them by a tenth per side."""
    seed = int(torch.randint(2**31, (), generator=generator))
    observation = fake_observation(student.shape, batch, seed)
    for key, beyond in ((STATE, 1.2), (DEPTH, 1.0), (POINTS, 1.0)):
        for name in [name for name in observation if name.startswith(key)]:
            centre, scale = student.normaliser.centre_scale(key.removeprefix("observation."))
            value = observation[name]
            uniform = beyond * (2 * torch.rand(value.shape, generator=generator) - 1)
            if key == POINTS:
                value[..., :3] = centre + scale * uniform[..., :3]
            else:
                value = torch.where(value.isnan(), value, centre + scale * uniform)  # unknown depth stays unknown
            observation[name] = value
    return observation


def _on_border(student: Student, condition_BC: Tensor, latents: Tensor) -> Tensor:
    """bool `[B, M]`: the latents so close to the border of two codes that rounding decides between them."""
    if not isinstance(student, OneStepStudent) or not student.codes:
        return torch.zeros(latents.shape[:2], dtype=torch.bool)
    log_share_BJ = student.log_shares(condition_BC)
    if log_share_BJ is None:
        log_share_BJ = latents.new_full((len(latents), student.codes), -math.log(student.codes))
    border_BJ = log_share_BJ.exp().cumsum(-1)
    position_BM = 0.5 * (1 + torch.erf(latents[..., 0] / math.sqrt(2)))
    return (position_BM[..., None] - border_BJ[:, None]).abs().amin(-1) < BOUNDARY
