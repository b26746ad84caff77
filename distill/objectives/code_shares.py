"""How often a student takes each of its codes: learned while it trains, and set right on the hypotheses afterwards.

A set objective says where a student's samples should lie. How often each way is taken is another question, whose proper
answer is the energy distance, E(p) = 2 sum_j p_j a_j - sum_ij p_i p_j D_ij for codes with shares p, a_j the mean distance of
code j's chunk to the teacher's hypotheses and D_ij that between two codes' chunks: convex in p, least at the teacher's own
shares (Szekely and Rizzo 2013).
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
"""Of `calibrate`: steps, observations a step, the rate it begins with (a cosine to zero follows), AdamW's decay."""

TRIED = 64
"""How many codes are tried for each observation, those that were taken most there in training. What lies beyond them counts
as a whole half range outside: it was hardly trained there, and to make its chunks would double the price."""

FAITH = 0.015
"""Weight of the divergence from the shares that were learned in training. A code that was hardly taken there was hardly
trained there, and what it makes cannot be trusted: without this, calibrated students fail several times as often."""


def constants() -> dict[str, float]:
    """All that `calibrate` is made with, for the key of what is made by it."""
    return {"steps": STEPS, "rows": ROWS, "learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY,
            "tried": TRIED, "faith": FAITH}  # fmt: skip


def energy_of_shares(share_BJ: Tensor, to_teacher_BJ: Tensor, among_BJJ: Tensor) -> Tensor:
    """E(p) `[B]`, exactly, of a_j and D_ij; less the teacher's own term, which no share changes."""
    return 2 * (share_BJ * to_teacher_BJ).sum(-1) - torch.einsum("bi,bij,bj->b", share_BJ, among_BJJ, share_BJ)


def outside(codes_BJD: Tensor, teacher_BKD: Tensor) -> Tensor:
    """How far `[B, J]` each code's chunk lies beyond the teacher's support, as `fidelity.set_fidelity` draws its border.

    The energy distance hardly minds a chunk halfway between two ways, where both are equally far; a robot does.
    """
    border_B1 = neighbour_radii(teacher_BKD, 1).amax(-1, keepdim=True).clamp(min=SAME_PLAN)
    return (torch.cdist(codes_BJD, teacher_BKD).amin(-1) - border_B1).clamp(min=0)


@dataclass(frozen=True)
class _Codes:
    """What is known of the codes tried for each of N observations.

    condition_NC: the encoder's; so_far_NJ: logarithm of the shares of all codes; tried_NI: which are tried; to_teacher_NI: a;
    among_NII: D; outside_NI: how far beyond the teacher's support each lies.
    """

    condition_NC: Tensor
    so_far_NJ: Tensor
    tried_NI: Tensor
    to_teacher_NI: Tensor
    among_NII: Tensor
    outside_NI: Tensor


@torch.no_grad()
def _look_at_codes(
    student: OneStepStudent, batches: Iterable[dict[str, Tensor]], weights_TA: Tensor, generator: torch.Generator
) -> _Codes:
    parts: list[tuple[Tensor, ...]] = []
    for batch in batches:
        condition_BC = student.encode(observation_of(batch))
        so_far_BJ = student.log_shares(condition_BC)
        assert so_far_BJ is not None
        tried_BI = so_far_BJ.topk(min(TRIED, student.codes), -1).indices
        latents_BIZ = torch.randn(*tried_BI.shape, student.latent_size, generator=generator).to(weights_TA.device)
        codes_BID = embed(student.generate_from_codes(condition_BC, tried_BI, latents_BIZ), weights_TA)
        teacher_BKD = embed(batch["hypotheses"], weights_TA)
        parts.append((condition_BC, so_far_BJ, tried_BI, torch.cdist(codes_BID, teacher_BKD).mean(-1),
                      torch.cdist(codes_BID, codes_BID), outside(codes_BID, teacher_BKD)))  # fmt: skip
    return _Codes(*(torch.cat(column) for column in zip(*parts, strict=True)))


def calibrate(
    student: OneStepStudent, batches: Iterable[dict[str, Tensor]], weights_TA: Tensor, seed: int
) -> dict[str, float]:
    """Train the correction of the shares, the chunks of the codes known: least E(p) + expected distance outside + FAITH x
    KL(p, the shares so far), over all observations.

    batches: observations (or their ``features`` `[B, F]`) and ``hypotheses`` `[B, K, T, A]`, gone through once. Returns the
    mean of E(p) and of the distance outside before and after. Raises ValueError for a student that learns no shares.
    """
    correction = student.share_correction
    if correction is None:
        raise ValueError("calibrate: this student learns no shares of its codes")
    first, last = correction[0], correction[-1]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    for parameter in last.parameters():  # begin at the shares that were learned in training, however often this is called
        nn.init.zeros_(parameter)
    generator = torch.Generator().manual_seed(seed)
    codes = _look_at_codes(student, batches, weights_TA, generator)
    # it learns on standardised conditions; afterwards they are folded into its first layer
    mean_C, scale_C = codes.condition_NC.mean(0), codes.condition_NC.std(0, unbiased=False) + 1e-6
    standard_NC = (codes.condition_NC - mean_C) / scale_C

    def losses(row_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        so_far_BJ = codes.so_far_NJ[row_B]
        log_share_BJ = (so_far_BJ + correction(standard_NC[row_B])).log_softmax(-1)
        share_BI = log_share_BJ.gather(-1, codes.tried_NI[row_B]).exp()
        tried_B1 = share_BI.sum(-1, keepdim=True)
        share_BI = share_BI / tried_B1
        energy_B = energy_of_shares(share_BI, codes.to_teacher_NI[row_B], codes.among_NII[row_B])
        beyond_B = (share_BI * codes.outside_NI[row_B]).sum(-1) + (1 - tried_B1[:, 0])
        divergence_B = (log_share_BJ.exp() * (log_share_BJ - so_far_BJ)).sum(-1)
        return energy_B.mean(), beyond_B.mean(), divergence_B.mean()

    @torch.no_grad()
    def figures(when: str) -> dict[str, float]:
        rows = torch.arange(len(standard_NC), device=standard_NC.device).split(ROWS)
        sums = torch.tensor([[len(row_B) * float(value) for value in losses(row_B)] for row_B in rows]).sum(0)
        return {f"{name}_{when}": float(value) / len(standard_NC)
                for name, value in zip(("energy", "outside", "divergence"), sums, strict=True)}  # fmt: skip

    before = figures("before")
    correction.requires_grad_(True)
    optimizer = torch.optim.AdamW(correction.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        row_B = torch.randint(len(standard_NC), (ROWS,), generator=generator).to(standard_NC.device)
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
