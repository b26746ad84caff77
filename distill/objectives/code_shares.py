"""How often a student selects each of its codes: learned during training, then calibrated on the hypotheses.

A set objective determines where a student's samples lie. How often each mode is chosen is a separate question, answered by
the energy distance: for codes with shares p it is E(p) = 2 sum_j p_j a_j - sum_ij p_i p_j D_ij, with a_j the mean distance of
code j's chunk to the teacher's hypotheses and D_ij the distance between two codes' chunks. It is convex in p, with its minimum
at the teacher's own shares (Szekely and Rizzo 2013).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill.hypotheses.distances import embed, neighbour_radii
from distill.observation import observation_of
from students.one_step import OneStepStudent
from students.selection import SAME_PLAN

STEPS, ROWS, LEARNING_RATE, WEIGHT_DECAY = 1000, 64, 3e-3, 1e-3
"""Of `calibrate`: steps, observations per step, initial learning rate (a cosine to zero follows), AdamW's weight decay."""

MAX_CODES = 64
"""Calibration evaluates this many codes per observation, those with the largest trained shares there. The share of all others
counts as a full half range off support: they were hardly trained there, and generating their chunks would double the cost."""

DIVERGENCE_WEIGHT = 0.015
"""Weight of the KL divergence from the trained shares. A code that was rarely selected was hardly trained, so its chunks cannot
be trusted: without this term, calibrated students fail several times as often."""


def calibration_settings() -> dict[str, float]:
    """All constants of `calibrate`, for the keys of stages that use it."""
    return {"steps": STEPS, "rows": ROWS, "learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY,
            "tried": MAX_CODES, "faith": DIVERGENCE_WEIGHT}  # fmt: skip


def energy_of_shares(share_BJ: Tensor, to_teacher_BJ: Tensor, among_BJJ: Tensor) -> Tensor:
    """E(p) `[B]`, exact, from a_j and D_ij, without the teacher's own term, which no share changes."""
    return 2 * (share_BJ * to_teacher_BJ).sum(-1) - torch.einsum("bi,bij,bj->b", share_BJ, among_BJJ, share_BJ)


def off_support_distance(codes_BJD: Tensor, teacher_BKD: Tensor) -> Tensor:
    """Distance `[B, J]` of each code's chunk beyond the teacher's support, whose border is that of `fidelity.set_fidelity`.

    The energy distance hardly penalises a chunk halfway between two modes; such a chunk makes a robot fail.
    """
    border_B1 = neighbour_radii(teacher_BKD, 1).amax(-1, keepdim=True).clamp(min=SAME_PLAN)
    return (torch.cdist(codes_BJD, teacher_BKD).amin(-1) - border_B1).clamp(min=0)


@dataclass(frozen=True)
class _Codes:
    """The evaluated codes of each of N observations.

    condition_NC: of the encoder. trained_log_share_NJ: of all codes. code_NI: the evaluated codes. to_teacher_NI: a.
    among_NII: D. off_support_NI: distance of each beyond the teacher's support.
    """

    condition_NC: Tensor
    trained_log_share_NJ: Tensor
    code_NI: Tensor
    to_teacher_NI: Tensor
    among_NII: Tensor
    off_support_NI: Tensor


@torch.no_grad()
def _evaluate_codes(
    student: OneStepStudent, batches: Iterable[dict[str, Tensor]], weights_TA: Tensor, generator: torch.Generator
) -> _Codes:
    parts: list[tuple[Tensor, ...]] = []
    for batch in batches:
        condition_BC = student.encode(observation_of(batch))
        trained_log_share_BJ = student.log_shares(condition_BC)
        assert trained_log_share_BJ is not None
        code_BI = trained_log_share_BJ.topk(min(MAX_CODES, student.codes), -1).indices
        latents_BIZ = torch.randn(*code_BI.shape, student.latent_size, generator=generator).to(weights_TA.device)
        codes_BID = embed(student.generate_from_codes(condition_BC, code_BI, latents_BIZ), weights_TA)
        teacher_BKD = embed(batch["hypotheses"], weights_TA)
        distances = (torch.cdist(codes_BID, teacher_BKD).mean(-1), torch.cdist(codes_BID, codes_BID))
        alone_BC, _ = student.split_origin(condition_BC)
        parts.append((alone_BC, trained_log_share_BJ, code_BI, *distances, off_support_distance(codes_BID, teacher_BKD)))
    return _Codes(*(torch.cat(column) for column in zip(*parts, strict=True)))


def calibrate(
    student: OneStepStudent, batches: Iterable[dict[str, Tensor]], weights_TA: Tensor, seed: int
) -> dict[str, float]:
    """Train the correction of the code shares with the codes' chunks fixed: minimise E(p) + expected off-support distance +
    DIVERGENCE_WEIGHT x KL(p, trained shares), over all observations.

    batches: observations (or their ``features`` `[B, F]`) and ``hypotheses`` `[B, K, T, A]`, read once. Returns the means of
    the three terms before and after. Raises ValueError for a student without learned shares.
    """
    correction = student.share_correction
    if correction is None:
        raise ValueError("calibrate: this student learns no shares of its codes")
    first, last = correction[0], correction[-1]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    for parameter in last.parameters():  # start from the trained shares, even when called again
        nn.init.zeros_(parameter)
    generator = torch.Generator().manual_seed(seed)
    codes = _evaluate_codes(student, batches, weights_TA, generator)
    # it learns on standardised conditions; the scaling is folded into its first layer afterwards
    mean_C, scale_C = codes.condition_NC.mean(0), codes.condition_NC.std(0, unbiased=False) + 1e-6
    standard_NC = (codes.condition_NC - mean_C) / scale_C

    def losses(row_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        trained_log_share_BJ = codes.trained_log_share_NJ[row_B]
        log_share_BJ = (trained_log_share_BJ + correction(standard_NC[row_B])).log_softmax(-1)
        share_BI = log_share_BJ.gather(-1, codes.code_NI[row_B]).exp()
        tried_B1 = share_BI.sum(-1, keepdim=True)
        share_BI = share_BI / tried_B1
        energy_B = energy_of_shares(share_BI, codes.to_teacher_NI[row_B], codes.among_NII[row_B])
        beyond_B = (share_BI * codes.off_support_NI[row_B]).sum(-1) + (1 - tried_B1[:, 0])
        divergence_B = (log_share_BJ.exp() * (log_share_BJ - trained_log_share_BJ)).sum(-1)
        return energy_B.mean(), beyond_B.mean(), divergence_B.mean()

    @torch.no_grad()
    def figures(when: str) -> dict[str, float]:
        rows = torch.arange(len(standard_NC), device=standard_NC.device).split(ROWS)
        sums = torch.tensor([[len(row_B) * float(value) for value in losses(row_B)] for row_B in rows]).sum(0)
        return {f"{name}_{when}": float(value) / len(standard_NC)
                for name, value in zip(("energy", "off_support", "divergence"), sums, strict=True)}  # fmt: skip

    before = figures("before")
    correction.requires_grad_(True)
    optimizer = torch.optim.AdamW(correction.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        row_B = torch.randint(len(standard_NC), (ROWS,), generator=generator).to(standard_NC.device)
        energy, beyond, divergence = losses(row_B)
        optimizer.zero_grad()
        (energy + beyond + DIVERGENCE_WEIGHT * divergence).backward()
        optimizer.step()
    correction.requires_grad_(False)
    after = figures("after")
    with torch.no_grad():
        first.weight.div_(scale_C)
        first.bias.sub_(first.weight @ mean_C)
    return {**before, **after}
