"""How often a student takes each of its codes: learned while it trains, and set right on the hypotheses afterwards.

A set objective says where a student's samples should lie. How often each way is taken is another question, whose proper
answer is the energy distance, E(p) = 2 sum_j p_j a_j - sum_ij p_i p_j D_ij for codes with shares p, a_j the mean distance of
code j's chunk to the teacher's hypotheses and D_ij that between two codes' chunks: convex in p, least at the teacher's own
shares (Szekely and Rizzo 2013).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from distill.objectives import distances, embed, neighbour_radii
from envs.specs import STATE
from students.one_step import OneStepStudent
from students.selection import ALIKE

STEPS, ROWS, LEARNING_RATE, WEIGHT_DECAY = 1000, 64, 3e-3, 1e-3
"""Of `calibrate`: steps, observations a step, the rate it begins with (a cosine to zero follows), AdamW's decay."""

FAITH = 0.04
"""Weight of the divergence from the shares that were learned in training. A code that was hardly taken there was hardly
trained there, and what it makes cannot be trusted: without this, calibrated students fail several times as often."""


def share_loss(log_share_BM: Tensor, student_BMTA: Tensor, teacher_BKTA: Tensor, weights_A: Tensor) -> Tensor:
    """A scalar whose gradient, in expectation over the codes that were drawn, is that of E(p); its value says nothing.

    The score function (Williams 1992): dE/dp_j = 2 a_j - 2 sum_i p_i D_ij, estimated for each of the M samples by the
    hypotheses and the other samples, less the E(p) of these other samples, which does not depend on the sample itself (a
    mean over all would, and would weaken the repulsion to (M - 2) / (M - 1) of itself: rare ways would die out).
    log_share_BM: of the codes that the samples were made of. Chunks have no gradient here. Raises ValueError for a single
    sample, which has no others.
    """
    samples = student_BMTA.shape[1]
    if samples < 2:
        raise ValueError(f"got {samples} sample an observation, expected at least 2: a share is learned by comparing")
    student_BMD, teacher_BKD = embed(student_BMTA.detach(), weights_A), embed(teacher_BKTA.detach(), weights_A)
    to_teacher_BM = distances(student_BMD, teacher_BKD).mean(-1)
    among_BM = distances(student_BMD, student_BMD).sum(-1)
    slope_BM = 2 * to_teacher_BM - 2 * among_BM / (samples - 1)
    others_BM = to_teacher_BM.sum(-1, keepdim=True) - to_teacher_BM
    among_others_BM = among_BM.sum(-1, keepdim=True) - 2 * among_BM
    baseline_BM = 2 * others_BM / (samples - 1) - 2 * among_others_BM / ((samples - 1) * max(samples - 2, 1))
    return ((slope_BM - baseline_BM) * log_share_BM).mean()


def energy_of_shares(share_BJ: Tensor, codes_BJD: Tensor, teacher_BKD: Tensor) -> Tensor:
    """E(p) `[B]`, exactly, for embedded chunks; less the teacher's own term, which no share changes."""
    to_teacher_B = (share_BJ * torch.cdist(codes_BJD, teacher_BKD).mean(-1)).sum(-1)
    among_B = torch.einsum("bi,bij,bj->b", share_BJ, torch.cdist(codes_BJD, codes_BJD), share_BJ)
    return 2 * to_teacher_B - among_B


def outside(codes_BJD: Tensor, teacher_BKD: Tensor) -> Tensor:
    """How far `[B, J]` each code's chunk lies beyond the teacher's support, as `fidelity.set_fidelity` draws its border.

    The energy distance hardly minds a chunk halfway between two ways, where both are equally far; a robot does.
    """
    border_B1 = neighbour_radii(teacher_BKD, 1).amax(-1, keepdim=True).clamp(min=ALIKE)
    return (torch.cdist(codes_BJD, teacher_BKD).amin(-1) - border_B1).clamp(min=0)


def calibrate(
    student: OneStepStudent, batches: Iterable[dict[str, Tensor]], weights_TA: Tensor, seed: int
) -> dict[str, float]:
    """Train the correction of the shares, every code's chunk known: least E(p) + expected distance outside + FAITH x
    KL(p, the shares so far), over all observations.

    batches: ``observation.state`` `[B, O, S]` and ``hypotheses`` `[B, K, T, A]`, gone through once. Returns the mean of
    E(p) and of the distance outside before and after. Raises ValueError for a student that learns no shares.
    """
    correction = student.share_correction
    if correction is None:
        raise ValueError("calibrate: this student learns no shares of its codes")
    first, last = correction[0], correction[-1]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    for parameter in last.parameters():  # begin at the shares that were learned in training, however often this is called
        nn.init.zeros_(parameter)
    conditions, codes, hypotheses = [], [], []
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for batch in batches:
            conditions.append(student.encode({STATE: batch[STATE]}))
            latents = torch.randn(len(conditions[-1]), student.codes, student.latent_size, generator=generator)
            codes.append(embed(student.every_code(conditions[-1], latents.to(weights_TA.device)), weights_TA))
            hypotheses.append(embed(batch["hypotheses"], weights_TA))
        condition_NC, codes_NJD, teacher_NKD = torch.cat(conditions), torch.cat(codes), torch.cat(hypotheses)
        so_far_NJ = student.log_shares(condition_NC)
        assert so_far_NJ is not None
        # it learns on standardised conditions; afterwards they are folded into its first layer
        mean_C, scale_C = condition_NC.mean(0), condition_NC.std(0, unbiased=False) + 1e-6
        standard_NC = (condition_NC - mean_C) / scale_C
        outside_NJ = torch.cat([outside(*rows) for rows in zip(codes_NJD.split(ROWS), teacher_NKD.split(ROWS), strict=True)])

    def losses(row_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_share_BJ = (so_far_NJ[row_B] + correction(standard_NC[row_B])).log_softmax(-1)
        share_BJ = log_share_BJ.exp()
        energy = energy_of_shares(share_BJ, codes_NJD[row_B], teacher_NKD[row_B]).mean()
        beyond = (share_BJ * outside_NJ[row_B]).sum(-1).mean()
        return energy, beyond, (share_BJ * (log_share_BJ - so_far_NJ[row_B])).sum(-1).mean()

    @torch.no_grad()
    def figures(when: str) -> dict[str, float]:
        rows = torch.arange(len(condition_NC), device=condition_NC.device).split(ROWS)
        sums = torch.tensor([[len(row_B) * float(value) for value in losses(row_B)] for row_B in rows]).sum(0)
        return {f"{name}_{when}": float(value) / len(condition_NC)
                for name, value in zip(("energy", "outside", "divergence"), sums, strict=True)}  # fmt: skip

    before = figures("before")
    correction.requires_grad_(True)
    optimizer = torch.optim.AdamW(correction.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        row_B = torch.randint(len(condition_NC), (ROWS,), generator=generator).to(condition_NC.device)
        energy, beyond, divergence = losses(row_B)
        optimizer.zero_grad()
        (energy + beyond + FAITH * divergence).backward()
        optimizer.step()
    correction.requires_grad_(False)
    after = figures("after")
    with torch.no_grad():
        first.weight.div_(scale_C)
        first.bias.sub_(first.weight @ mean_C)
    return {**before, **after}
