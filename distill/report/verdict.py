"""Which policy to take at which latency: the teacher at few steps is a rival like any student."""

from __future__ import annotations

from collections.abc import Sequence

from distill.report.policies import Policy, Results, comparison, reference_policy
from distill.report.tables import number, percent

LOSES_AT_MOST = 0.03
"""Success that a policy may lose against the reference, measured on the same starts, and still count as good as it."""
SUCCESS_GAINS, DISTANCE_GAINS = 0.01, 0.1
"""A slower policy is only named where it solves this much more, or where its energy distance is this share smaller."""


def frontier(results: Results) -> list[Policy]:
    """The policies that are worth their time, the fastest first: each is better than all that are faster."""
    timed = sorted((policy for policy in results["policies"] if policy.get("latency")), key=_latency)
    kept: list[Policy] = []
    for policy in timed:
        if not kept or _gains(results, policy, kept[-1]):
            kept.append(policy)
    return kept


def _latency(policy: Policy) -> float:
    return float(policy["latency"]["median_ms"])


def _gains(results: Results, policy: Policy, faster: Policy) -> bool:
    if results["measured_success"]:
        return bool(policy["success_rate"] >= faster["success_rate"] + SUCCESS_GAINS)
    mine, its = (_distance(each) for each in (policy, faster))
    return mine < (1 - DISTANCE_GAINS) * its and its > _floor(results)


def _distance(policy: Policy) -> float:
    """Energy distance to the reference's samples; an unbiased estimate may fall below zero."""
    return max(float(policy["fidelity"]["energy_distance"]), 0.0)


def _floor(results: Results) -> float:
    """The distance up to which sets count as the reference's own: twice what it scores against itself, at least .01."""
    return max(2 * float((results.get("fidelity_floor") or {}).get("energy_distance") or 0.0), 0.01)


def as_good(results: Results, policy: Policy) -> bool:
    """Whether it counts as good as the reference: in success where that was measured, else by its sets of samples."""
    if policy.get("is_reference_teacher"):
        return True
    if results["measured_success"]:
        difference = policy.get("difference")
        return comparison(policy) != "worse" and difference is not None and difference >= -LOSES_AT_MOST
    return _distance(policy) <= _floor(results)


def verdict(results: Results) -> Sequence[str]:
    """One sentence: the fastest policy that is as good as the reference; () where nothing was timed."""
    reference, timed = reference_policy(results), [policy for policy in results["policies"] if policy.get("latency")]
    if reference is None or reference not in timed or len(timed) < 2:
        return ()
    taken = min((policy for policy in timed if as_good(results, policy)), key=_latency)
    slow = f"{reference['label']}: {number(_latency(reference))} ms, {quality(results, reference)}"
    if taken is reference:
        return (f"Take the reference: no faster policy is as good ({slow}). What less time buys stands below.",)
    told = f"{number(_latency(taken))} ms a call, {quality(results, taken)}; {slow}"
    if taken["kind"] == "teacher" and results["kind"] == "conversion":
        steps = taken.get("num_steps")
        return (f"Take your teacher at {steps} step{'s' if steps != 1 else ''}, no student is needed: {told}.",)
    return (f"Take {taken['label']}: {told}.",)


def quality(results: Results, policy: Policy) -> str:
    """What stands for how good a policy is, in a sentence."""
    sets = policy["fidelity"]
    told = f"recall {percent(sets['recall'])}, coverage {percent(sets['coverage'])}"
    if results["measured_success"]:
        return f"success {percent(policy['success_rate'])}, {told}"
    return f"{told}, energy distance {number(sets['energy_distance'])}"
