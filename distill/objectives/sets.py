"""Set objectives: the distance of a student's M chunks from the teacher's K chunks, always per observation.

Every function takes student_BMTA, teacher_BKTA (both normalised) and weights, `[A]` or `[T, A]`, and returns a scalar.
The distance between two chunks is d(a, b) = sqrt( sum_ta w_ta (a_ta - b_ta)^2 / sum_ta w_ta ), the weighted root mean
square difference, so its unit is half of an action dimension's range, whatever T and A are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from distill.hypotheses.distances import (
    chamfer,
    chamfer_energy,
    coverage,
    distances,
    embed,
    energy_distance,
    fidelity,
    neighbour_radii,
    paired,
    partner_distances,
)
from distill.hypotheses.neighbours import nearest
from distill.objectives.drift import drift
from envs.specs import nearest_name


def regression(student_BMTA: Tensor, teacher_BKTA: Tensor, weights_A: Tensor) -> Tensor:
    """1/(MK) sum_mk d(s_m, t_k)^2: its minimum is the mean of the hypotheses, the baseline that averages modes."""
    student_BMD, teacher_BKD = embed(student_BMTA, weights_A), embed(teacher_BKTA.detach(), weights_A)
    mean_B1D = teacher_BKD.mean(1, keepdim=True)
    # about the hypotheses' mean the mixed term is zero, so no pair has to be formed
    from_mean_B = (student_BMD - mean_B1D).square().sum(-1).mean(-1) + (teacher_BKD - mean_B1D).square().sum(-1).mean(-1)
    return from_mean_B.mean()


def _pairs(student_BMTA: Tensor, teacher_BKTA: Tensor, weights_A: Tensor) -> Tensor:
    return distances(embed(student_BMTA, weights_A), embed(teacher_BKTA.detach(), weights_A))


def rs_imle(student_BMTA: Tensor, teacher_BKTA: Tensor, weights_A: Tensor, epsilon: float = 0.03) -> Tensor:
    """RS-IMLE: mean over k of min { d(t_k, s_m) : m with d(t_k, s_m) > epsilon } (Vashist et al. 2024, arXiv 2409.17439).

    Samples nearer than epsilon are rejected, so that the selected ones are distributed like the prior. A hypothesis all of
    whose samples are rejected is left out, as it is matched well enough.
    """
    return _rejecting(student_BMTA, teacher_BKTA, weights_A, torch.full((1, 1, 1), epsilon, device=student_BMTA.device))


def rs_imle_adaptive(student_BMTA: Tensor, teacher_BKTA: Tensor, weights_A: Tensor, scale: float = 0.5) -> Tensor:
    """RS-IMLE with epsilon = `scale` x the median distance of an observation's hypotheses to their nearest other one.

    A fixed epsilon rejects every sample where the hypotheses are close together, and nothing is learned there.
    """
    epsilon_B = scale * neighbour_radii(embed(teacher_BKTA.detach(), weights_A), 1).median(-1).values
    return _rejecting(student_BMTA, teacher_BKTA, weights_A, epsilon_B[:, None, None])


def _rejecting(student_BMTA: Tensor, teacher_BKTA: Tensor, weights_A: Tensor, epsilon_B11: Tensor) -> Tensor:
    distance_BMK = _pairs(student_BMTA, teacher_BKTA, weights_A)
    kept_BK = distance_BMK.masked_fill(distance_BMK <= epsilon_B11, torch.inf).amin(1)
    valid_BK = kept_BK.isfinite()
    # the zero of an empty selection still has a graph, so that backward finds every parameter
    kept_BK = torch.where(valid_BK, kept_BK, 0.0 * distance_BMK.sum(1))
    return (kept_BK.sum(1) / valid_BK.sum(1).clamp(min=1)).mean()


def hungarian(student_BMTA: Tensor, teacher_BKTA: Tensor, weights_A: Tensor) -> Tensor:
    """Optimal transport between the two sets with equal weights within each: min over couplings of E d(s, t).

    With M = K this is the assignment problem (Kuhn 1955). Otherwise each set is repeated up to the least common multiple of M
    and K, which gives the same value as an assignment.
    """
    from scipy.optimize import linear_sum_assignment

    distance_BMK = _pairs(student_BMTA, teacher_BKTA, weights_A)
    _, samples, hypotheses = distance_BMK.shape
    size = math.lcm(samples, hypotheses)
    row = torch.arange(size, device=distance_BMK.device) % samples
    column = torch.arange(size, device=distance_BMK.device) % hypotheses
    square_BLL = distance_BMK[:, row[:, None], column[None]]
    cost = square_BLL.detach().cpu().double().numpy()
    matched = torch.stack([torch.from_numpy(linear_sum_assignment(one)[1]) for one in cost]).to(distance_BMK.device)
    return square_BLL.gather(2, matched[..., None]).mean()


def sinkhorn(
    student_BMTA: Tensor, teacher_BKTA: Tensor, weights_A: Tensor, temperature: float = 0.02, iterations: int = 50
) -> Tensor:
    """Debiased Sinkhorn divergence OT(s, t) - OT(s, s) / 2 - OT(t, t) / 2 (Feydy et al. 2019, eq. 3), cost d.

    temperature: of the entropic regularisation, in units of d. It is annealed to that value from the largest distance of an
    observation, by a factor of 0.7 per iteration: started at 0.02, fifty iterations leave up to a third of the plan wrong. By
    the envelope theorem, the gradient of each term is that of sum_ij P_ij d_ij with the plan P held fixed.
    """
    student_BMD, teacher_BKD = embed(student_BMTA, weights_A), embed(teacher_BKTA.detach(), weights_A)

    def transport(cost_BMK: Tensor) -> Tensor:
        with torch.no_grad():
            _, samples, hypotheses = cost_BMK.shape
            largest_B1, first_BM = cost_BMK.amax((1, 2))[:, None], torch.zeros_like(cost_BMK[:, :, 0])
            for step in range(iterations):
                temperature_B1 = (largest_B1 * 0.7**step).clamp(min=temperature)
                score_BMK = (first_BM[:, :, None] - cost_BMK) / temperature_B1[:, None]
                second_BK = temperature_B1 * (math.log(samples) - score_BMK.logsumexp(1))
                score_BMK = (second_BK[:, None] - cost_BMK) / temperature_B1[:, None]
                first_BM = temperature_B1 * (math.log(hypotheses) - score_BMK.logsumexp(2))
            # log of the plan over that of independent sets; OT also counts the plan's entropy, which has no gradient
            # here but makes equal sets come out at zero
            ratio_BMK = (first_BM[:, :, None] + second_BK[:, None] - cost_BMK) / temperature
            plan_BMK = ratio_BMK.exp() / (samples * hypotheses)
        return (plan_BMK * (cost_BMK + temperature * ratio_BMK)).sum((1, 2)).mean()

    return (
        transport(distances(student_BMD, teacher_BKD))
        - 0.5 * transport(distances(student_BMD, student_BMD))
        - 0.5 * transport(distances(teacher_BKD, teacher_BKD))
    )


def soft_chamfer(student_BMTA: Tensor, teacher_BKTA: Tensor, weights_A: Tensor, temperature: float = 0.02) -> Tensor:
    """Chamfer with a soft minimum: min_k d_k becomes -tau log( 1/K sum_k exp(-d_k / tau) ), both ways.

    As tau goes to 0 it is Chamfer; for large tau the mean of all distances. Unlike the minimum it also moves samples that are
    not the nearest.
    """
    score_BMK = -_pairs(student_BMTA, teacher_BKTA, weights_A) / temperature
    fidelity_BM = score_BMK.logsumexp(2) - math.log(score_BMK.shape[2])
    coverage_BK = score_BMK.logsumexp(1) - math.log(score_BMK.shape[1])
    return -temperature * (fidelity_BM.mean() + coverage_BK.mean())


def best_set(pool_BPTA: Tensor, teacher_BKTA: Tensor, weights_A: Tensor, num_latents: int) -> Tensor:
    """Index `[B, M]` of the set, among P / M sets of M = `num_latents` consecutive chunks, with the least Chamfer distance."""
    distance_BJMK = _pairs(pool_BPTA, teacher_BKTA, weights_A).unflatten(1, (-1, num_latents))
    best_B = (distance_BJMK.amin(-1).mean(-1) + distance_BJMK.amin(-2).mean(-1)).argmin(-1)
    return best_B[:, None] * num_latents + torch.arange(num_latents, device=best_B.device)


def pool_winners(pool_BPTA: Tensor, teacher_BKTA: Tensor, weights_A: Tensor, num_latents: int) -> Tensor:
    """Index `[B, K + M]`: the chunk nearest to each of the K hypotheses, then the first M = `num_latents` of the pool."""
    index_BK = nearest(embed(teacher_BKTA.detach(), weights_A), embed(pool_BPTA.detach(), weights_A))[1]
    return torch.cat([index_BK, torch.arange(num_latents, device=index_BK.device).expand(len(index_BK), -1)], dim=1)


def large_pool(student_BMTA: Tensor, teacher_BKTA: Tensor, weights_A: Tensor) -> Tensor:
    """1/K sum_k d(t_k, w_k) + fidelity of the other samples; the first K samples are the winners w_k of a large pool.

    Chamfer whose coverage searches its nearest samples in a large pool generated without gradient (IMLE, 1809.09087, algorithm
    1); only the winners are generated again with one. Raises ValueError unless there are more than K samples.
    """
    hypotheses = teacher_BKTA.shape[1]
    if student_BMTA.shape[1] <= hypotheses:
        raise ValueError(f"got {student_BMTA.shape[1]} samples, expected {hypotheses} winners and at least one other")
    winner_BKD = embed(student_BMTA[:, :hypotheses], weights_A)
    covered = partner_distances(winner_BKD, embed(teacher_BKTA.detach(), weights_A)).mean()
    return covered + fidelity(student_BMTA[:, hypotheses:], teacher_BKTA, weights_A)


@dataclass(frozen=True)
class Objective:
    """A loss between sets, and what it needs of the training step.

    loss: (student_BMTA, teacher_BKTA, weights) to a scalar. label: in the report.
    parameter: name of its one parameter that ``@value`` in the objective's name sets; "": none.
    one_sample: its minimum does not depend on the latent, so M = 1 trains it as well as any M.
    noise: the latents are the noise that the first M hypotheses were generated from, in their order.
    pool_factor, choose: pool_factor x M latents per observation are evaluated without gradient; those whose index `choose`
    returns (given pool_BPTA, teacher_BKTA, weights and M) are evaluated again with one.
    """

    loss: Callable[..., Tensor]
    label: str
    parameter: str = ""
    one_sample: bool = False
    noise: bool = False
    pool_factor: int = 1
    choose: Callable[[Tensor, Tensor, Tensor, int], Tensor] | None = None


OBJECTIVES = {
    "regression": Objective(regression, "Regression student", one_sample=True),
    "fidelity": Objective(fidelity, "Fidelity alone"),
    "imle": Objective(coverage, "One-sided IMLE student"),
    "rs_imle": Objective(rs_imle, "RS-IMLE student", parameter="epsilon"),
    "rs_imle_adaptive": Objective(rs_imle_adaptive, "RS-IMLE student, adaptive", parameter="scale"),
    # min over candidate sets S_j of Chamfer(S_j, T), per observation (MoFlow-IMLE, arXiv 2503.09950)
    "set_imle": Objective(chamfer, "IMLE over sets", pool_factor=8, choose=best_set),
    "chamfer": Objective(chamfer, "Chamfer student"),
    "soft_chamfer": Objective(soft_chamfer, "Soft-min Chamfer student", parameter="temperature"),
    "large_pool": Objective(large_pool, "Large-pool Chamfer student", pool_factor=8, choose=pool_winners),
    "hungarian": Objective(hungarian, "Hungarian student"),
    "sinkhorn": Objective(sinkhorn, "Sinkhorn student", parameter="temperature"),
    "energy_distance": Objective(energy_distance, "Energy distance student"),
    "chamfer_energy": Objective(chamfer_energy, "Chamfer + energy student"),
    "drift": Objective(drift, "Drifting student", parameter="floor"),
    "drift_dimension": Objective(partial(drift, groups="dimension"), "Drifting student, by dimension", parameter="floor"),
    "drift_step": Objective(partial(drift, groups="step"), "Drifting student, by time step", parameter="floor"),
    "noise_regression": Objective(paired, "Regression on the teacher's noise", noise=True),
}
"""One line per objective. Weighted sums of them need no line: see `objective`."""

_TERM = re.compile(r"(?P<weight>\d*\.?\d+)?(?P<name>[a-z][a-z_]*)(@(?P<value>\d*\.?\d+))?")


def terms_of(name: str) -> list[tuple[float, str, str]]:
    """Weight, objective and value after @ ("" for none) of each term of a sum. Raises ValueError for an unknown objective."""
    terms = []
    for text in name.split("+"):
        match = _TERM.fullmatch(text)
        if match is None or match["name"] not in OBJECTIVES:
            unknown = match["name"] if match else text
            raise ValueError(f"unknown objective {unknown!r}; expected one of {sorted(OBJECTIVES)}, or a weighted sum "
                             f"such as 'chamfer+0.5energy_distance'{nearest_name(unknown, OBJECTIVES)}")
        terms.append((float(match["weight"] or 1.0), match["name"], match["value"] or ""))
    return terms


def objective(name: str) -> Objective:
    """The objective of a name, or of a weighted sum such as ``chamfer+0.5energy_distance`` or ``rs_imle@0.1``.

    ``0.5`` before a name is its weight, ``@0.1`` after it sets its parameter. Raises ValueError for an unknown name, a value
    for an objective without a parameter, or a sum whose terms need different latents.
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    terms: list[tuple[float, Objective]] = []
    for weight, each, value in terms_of(name):
        term = OBJECTIVES[each]
        if value:
            if not term.parameter:
                raise ValueError(f"objective {each!r} has nothing to set by '@{value}'; leave that out")
            term = replace(term, loss=partial(term.loss, **{term.parameter: float(value)}))
        terms.append((weight, term))
    noise = any(term.noise for _, term in terms)
    if len({(term.pool_factor, term.choose) for _, term in terms}) > 1 or (noise and terms[0][1].pool_factor > 1):
        raise ValueError(f"objective {name!r}: these terms need different latents and cannot be added; train them separately")

    def loss(student_BMTA: Tensor, teacher_BKTA: Tensor, weights_A: Tensor) -> Tensor:
        values = [weight * term.loss(student_BMTA, teacher_BKTA, weights_A) for weight, term in terms]
        return torch.stack(values).sum()

    first = terms[0][1]
    one_sample = all(term.one_sample for _, term in terms)
    return replace(first, loss=loss, label=name, parameter="", one_sample=one_sample, noise=noise)


ANCHORED = "2fidelity+imle+0.5energy_distance+0.3noise_regression"
"""Fidelity, coverage, mode frequencies, and each sample near the chunk of its own noise."""

OBJECTIVES["anchored"] = replace(objective(ANCHORED), label="Anchored set student")
