"""Which policy to take, and what speaks against the student: the teacher at few steps is a rival like any other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from distill.report.policies import Policy, Results, comparison, default_student, reference_policy
from distill.report.tables import is_missing, number, percent

LOSES_AT_MOST = 0.03
"""Success that a policy may lose against the reference, measured on the same starts, and still count as good as it."""
SUCCESS_GAINS, DISTANCE_GAINS = 0.01, 0.1
"""A slower policy is only named where it solves this much more, or where its energy distance is this share smaller."""
FEWEST_TIMES = 1.5
"""A student that is less than this many times as fast as the teacher is called hardly faster."""
AS_FAST = 1.1
"""A policy that takes at most this many times as long as another counts as equally fast."""
LOW_RECALL = 0.6
"""A student whose recall is below this share of the teacher's own is called one that misses a part of it."""


@dataclass(frozen=True)
class Objection:
    """Something that speaks against the student. kind: "rival", "slow" or "recall". clause: for a title. line: with numbers."""

    kind: str
    clause: str
    line: str


def frontier(results: Results) -> list[Policy]:
    """The policies that are worth their time, the fastest first: each is better than all that are faster."""
    kept: list[Policy] = []
    useful = [policy for policy in _timed(results) if policy.get("success_rate") != 0]
    for policy in sorted(useful, key=_latency):
        if not kept or _gains(results, policy, kept[-1]):
            kept.append(policy)
    return kept


def _timed(results: Results) -> list[Policy]:
    """Policies with a latency; a baseline is there for comparison only."""
    return [policy for policy in results["policies"] if policy.get("latency") and policy["kind"] != "baseline"]


def _latency(policy: Policy) -> float:
    return float(policy["latency"]["median_ms"])


def _gains(results: Results, policy: Policy, faster: Policy) -> bool:
    if results["measured_success"]:
        return bool(policy["success_rate"] >= faster["success_rate"] + SUCCESS_GAINS)
    mine, its = (_distance(each) for each in (policy, faster))
    return mine < (1 - DISTANCE_GAINS) * its and its > _floor(results)


def _distance(policy: Policy) -> float:
    """Energy distance to the reference's samples; an unbiased estimate may fall below zero."""
    measured = (policy.get("fidelity") or {}).get("energy_distance")
    if measured is None:
        return 0.0 if policy.get("is_reference_teacher") else math.inf
    return max(float(measured), 0.0)


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


def taken(results: Results) -> Policy | None:
    """The fastest policy that is as good as the reference; None where fewer than two were timed."""
    reference, timed = reference_policy(results), _timed(results)
    if reference is None or reference not in timed or len(timed) < 2:
        return None
    return min((policy for policy in timed if as_good(results, policy)), key=_latency)


def verdict(results: Results) -> Sequence[str]:
    """One sentence: the policy to take; () where nothing was timed."""
    reference, best = reference_policy(results), taken(results)
    if reference is None or best is None:
        return ()
    slow = f"{reference['label']}: {number(_latency(reference))} ms, {quality(results, reference)}"
    if best is reference:
        what = "the first policy" if results["kind"] == "comparison" else "the teacher as it is"
        return (f"Take {what}: no faster policy is as good ({slow}).",)
    told = f"{number(_latency(best))} ms a call, {quality(results, best)}; {slow}"
    if best["kind"] == "teacher" and results["kind"] != "comparison":
        return (f"Take {_named(results, best)}, no student is needed: {told}.",)
    return (f"Take {best['label']}: {told}.",)


def _named(results: Results, teacher: Policy) -> str:
    """A teacher at some steps, in a sentence."""
    steps, whose = teacher.get("num_steps"), "your" if results["kind"] == "conversion" else "the"
    return f"{whose} teacher at {steps} step{'s' if steps != 1 else ''}"


def objections(results: Results) -> tuple[Objection, ...]:
    """What speaks against the default student, the weightiest first; () where nothing does, or there is none."""
    student, reference = default_student(results), reference_policy(results)
    if student is None or reference is None:
        return ()
    found = [_rival(results, student), _slow(student), _narrow(results, student)]
    return tuple(each for each in found if each is not None)


def _rival(results: Results, student: Policy) -> Objection | None:
    """The best teacher at fewer steps that is as fast as the student and better."""
    if not student.get("latency"):
        return None
    limit = AS_FAST * _latency(student)
    rivals = [each for each in _timed(results)
              if each["kind"] == "teacher" and not each.get("is_reference_teacher") and _latency(each) <= limit
              and _beats(results, each, student)]  # fmt: skip
    if not rivals:
        return None
    best = min(rivals, key=_distance)
    its, mine = (f"{number(_latency(each))} ms, {quality(results, each)}" for each in (best, student))
    name = _named(results, best)
    better = "solves at least as much" if results["measured_success"] else "is closer to the full teacher"
    return Objection(
        "rival", f"{name} is at least as fast and {better}",
        f"Without any training, {name} is at least as fast as the student and {better}: {its}; student: {mine}.",
    )


def _beats(results: Results, rival: Policy, student: Policy) -> bool:
    """Closer to the reference by more than chance, and, where it was measured, no less successful."""
    closer = _distance(rival) < (1 - DISTANCE_GAINS) * _distance(student)
    if results["measured_success"]:
        more = rival["success_rate"] - student["success_rate"]
        return bool(more >= SUCCESS_GAINS or (more >= 0 and closer))
    return closer and _distance(student) > _floor(results)


def _slow(student: Policy) -> Objection | None:
    times = student.get("speedup")
    if is_missing(times) or times >= FEWEST_TIMES:  # type: ignore[operator]
        return None
    if times <= 1 / 1.05:  # type: ignore[operator]
        how = f"takes {number(1 / times)} times as long as the teacher"  # type: ignore[operator]
    else:
        how = f"is hardly faster than the teacher ({number(times)} times)"
    return Objection("slow", f"the student {how}", f"Speed is no reason to take the student: it {how}.")


def _narrow(results: Results, student: Policy) -> Objection | None:
    sets, own = student.get("fidelity") or {}, (results.get("fidelity_floor") or {}).get("recall")
    recall = sets.get("recall")
    if is_missing(recall) or float(recall) >= LOW_RECALL * (1.0 if is_missing(own) else float(own)):  # type: ignore[arg-type]
        return None
    told = f"recall {percent(recall)}, coverage {percent(sets.get('coverage'))}"
    compared = "" if is_missing(own) else f"; a second set of the teacher's own has recall {percent(own)}"
    modes = " The same number of modes over a whole evaluation does not exclude that." if results["measured_success"] else ""
    return Objection(
        "recall", f"the student reproduces only part of what the teacher does (recall {percent(recall)})",
        f"For one observation the student's samples reproduce only a part of the teacher's: {told}{compared}.{modes}",
    )  # fmt: skip


def quality(results: Results, policy: Policy) -> str:
    """What stands for how good a policy is, in a sentence."""
    sets = policy.get("fidelity") or {}
    told = f"recall {percent(sets.get('recall'))}, coverage {percent(sets.get('coverage'))}"
    if results["measured_success"]:
        return f"success {percent(policy['success_rate'])}, {told}"
    return f"{told}, energy distance {number(sets.get('energy_distance'))}"


def baseline_line(results: Results) -> str:
    """What the nearest-demonstration baseline says about this task; "" where it was not measured."""
    baseline = next((each for each in results["policies"] if each["kind"] == "baseline"), None)
    student, teacher = default_student(results), reference_policy(results)
    if baseline is None or teacher is None or not results["measured_success"]:
        return ""
    told = f"{baseline['label']}, which replays recorded actions and trains nothing, solves {percent(baseline['success_rate'])}"
    best = max(each["success_rate"] for each in (teacher, student) if each is not None)
    fewer = baseline["modes_reached"] < teacher["modes_reached"]
    modes = f"{baseline['modes_reached']} of {baseline['modes_total']} modes, mode entropy {number(baseline.get('entropy'))}"
    if baseline["success_high"] < best:
        return f"{told}: on this task success needs more than memory, so the success rates above mean something."
    if student is not None and (fewer or (baseline.get("entropy") or 0) < (student.get("entropy") or 0) - 0.05):
        return (f"{told}, at least as much as the learned policies: success alone does not show that learning was needed here. "
                f"The difference is in diversity: it reaches {modes}; the student {student['modes_reached']}, entropy "
                f"{number(student.get('entropy'))}.")  # fmt: skip
    return (f"{told} and reaches {modes}, at least as much as the learned policies: this task can be solved from memory, so "
            "its results say little about learning.")  # fmt: skip
