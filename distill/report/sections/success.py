"""Success as pictures: over the speed of a policy, and by the modes that were reached."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill.report import figures
from distill.report.modes import mode_groups
from distill.report.policies import Results, default_student, reference_policy
from distill.report.section import Picture, Section, data_uri


def against_speed(results: Results, folder: Path) -> Sequence[Picture]:
    """Success rate over policy calls per second; none without latencies."""
    policies = results["policies"]
    if not results["measured_success"] or not any(policy.get("latency") for policy in policies):
        return []
    return [Picture(data_uri(figures.success_against_speed(policies)), "success rate over policy calls per second")]


def _speed_text(results: Results) -> Sequence[str]:
    squares = ", squares baselines" if any(policy["kind"] == "baseline" for policy in results["policies"]) else ""
    return (
        f"Up is better, right is faster; the bars are 95 % intervals. Circles are teachers, diamonds students{squares}.",
    )


def mode_shares(results: Results, folder: Path) -> Sequence[Picture]:
    """Histogram of the modes reached by the reference and the default student."""
    pair = (reference_policy(results), default_student(results))
    series = [
        (policy["label"], colour, policy["mode_counts"])
        for policy, colour in zip(pair, (figures.TEACHER, figures.STUDENT), strict=True)
        if policy and sum((policy.get("mode_counts") or {}).values())
    ]
    if not series:
        return []
    picture = figures.mode_histogram(mode_groups(results["task"]["modes"]), series)
    return [Picture(data_uri(picture), "share of successes by mode, teacher and student")]


def _modes_text(results: Results) -> Sequence[str]:
    return (
        "Successful episodes only, with 95 % intervals. A student that keeps the teacher's diversity has bars of the same "
        "height.",
    )


SPEED = Section(
    "Success against speed", text=_speed_text, pictures=against_speed, missing="Latency was not measured in this run."
)
MODES = Section(
    "How often each mode was reached", text=_modes_text, pictures=mode_shares,
    missing="No episode succeeded, so there are no modes to count.", level=3,
)  # fmt: skip
