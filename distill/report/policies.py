"""Which policies of the results a report compares, and how one's success stands to the reference's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill.report.tables import Cell, is_missing, p_value, points

SURE = 0.05
"""The exact McNemar p below which a difference is not taken for chance."""

Policy = Mapping[str, Any]
Results = Mapping[str, Any]


def reference_policy(results: Results) -> Policy | None:
    """The policy that all others are compared with: the teacher, in a comparison the first policy."""
    return next((policy for policy in results["policies"] if policy.get("is_reference_teacher")), None)


def reference_name(results: Results) -> str:
    """What the reference is called in a sentence."""
    return "first policy" if results["kind"] == "comparison" else "teacher"


def default_student(results: Results) -> Policy | None:
    """The student that the report presents; None without one."""
    return next((policy for policy in results["policies"] if policy.get("is_default_student")), None)


def regression_student(results: Results) -> Policy | None:
    """The student that averages the teacher's samples, as a warning next to the default one (None when it is that one)."""
    named = [p for p in results["policies"] if "regression" in (p.get("objective"), p.get("name"))]
    return named[0] if named and not named[0].get("is_default_student") else None


def best_ms(policy: Policy) -> float:
    """The median call [ms] of a policy in its fastest run mode."""
    latency, mode = policy["latency"], policy["latency"].get("best_mode", "eager")
    return float(latency["median_ms"] if mode == "eager" else latency["modes"][mode]["median_ms"])


def label_of(results: Results, name: str) -> str:
    """How a policy, or the oracle, is called in the report."""
    labels = {"oracle": "Oracle", **{policy["name"]: str(policy["label"]) for policy in results["policies"]}}
    return labels.get(name, name)


def comparison(policy: Policy) -> str:
    """How a policy's success stands to the reference's: worse, lower, same, higher, better; "none" when not paired.

    Doubt speaks for the reference: worse when the exact test or the interval says so, better only when both do.
    """
    gap, p = policy.get("difference"), policy.get("mcnemar_p")
    if is_missing(gap):
        return "none"
    if gap == 0:
        return "same"
    low, high = policy.get("difference_low"), policy.get("difference_high")
    test = not is_missing(p) and float(p) < SURE  # type: ignore[arg-type]
    if gap < 0:  # type: ignore[operator]
        return "worse" if test or (not is_missing(high) and high < 0) else "lower"  # type: ignore[operator]
    return "better" if test and not is_missing(low) and low > 0 else "higher"  # type: ignore[operator]


def comparison_cell(policy: Policy, nothing: str) -> Cell:
    """The paired difference to the reference with its interval and test; `nothing` where there is none."""
    tone = comparison(policy)
    if tone == "none":
        return Cell("reference" if policy.get("is_reference_teacher") else nothing)
    ends = f"{points(policy.get('difference_low'))} to {points(policy.get('difference_high'))}"
    word = {"lower": "lower, may be chance", "higher": "higher, may be chance"}.get(tone, tone)
    colour = tone if tone in ("worse", "lower", "better") else ""
    return Cell(points(policy["difference"]), (ends, p_value(policy.get("mcnemar_p")), word), colour)
