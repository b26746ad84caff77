"""The most important numbers of a report, the teacher's and the student's side by side."""

from __future__ import annotations

from dataclasses import dataclass

from distill.report.policies import Policy, Results, best_ms, default_student, reference_policy
from distill.report.tables import NOTHING, is_missing, number, percent


@dataclass(frozen=True)
class Tile:
    """A number of the teacher and of the student. A tile with `both` shows that alone: it compares the two."""

    name: str
    what: str
    teacher: str = ""
    student: str = ""
    both: str = ""


def tiles(results: Results) -> list[Tile]:
    """The most important numbers; none without a teacher and a student."""
    teacher, student = reference_policy(results), default_student(results)
    if teacher is None or student is None:
        return []
    success = [
        Tile("Success", "episodes solved", percent(teacher["success_rate"]), percent(student["success_rate"])),
    ] if results["measured_success"] else []  # fmt: skip
    modes = [
        Tile("Modes", "reached in solved episodes", *(f"{each['modes_reached']}/{each['modes_total']}"
                                                      for each in (teacher, student))),
    ] if results["measured_success"] else []  # fmt: skip
    return [
        *success,
        Tile("Speed-up", f"teacher's latency / student's; network evaluations {teacher['nfe']} → {student['nfe']}"
             f"{_in_best_modes(teacher, student)}", both=speed_up(student)),
        Tile("Latency", f"median of a policy call; {_rate(teacher)} → {_rate(student)}", _latency(teacher), _latency(student)),
        *modes,
        Tile("Recall", "of the teacher's samples, per observation",
             _recall(results.get("fidelity_floor")), _recall(student.get("fidelity"))),
    ]  # fmt: skip


def speed_up(policy: Policy) -> str:
    """The reference's latency divided by the policy's, as text."""
    value = policy.get("speedup")
    return NOTHING if is_missing(value) else f"{number(value)}×"


def _in_best_modes(teacher: Policy, student: Policy) -> str:
    if not all((each.get("latency") or {}).get("modes") for each in (teacher, student)):
        return ""
    return f"; each in its fastest run mode {number(best_ms(teacher) / best_ms(student))}×"


def _latency(policy: Policy) -> str:
    return f"{number(policy['latency']['median_ms'])} ms" if policy.get("latency") else NOTHING


def _rate(policy: Policy) -> str:
    return f"{number(policy['latency']['hz'])} Hz" if policy.get("latency") else NOTHING


def _recall(sets: Policy | None) -> str:
    """Of the teacher it is that of a second set of its own, which a student cannot be expected to exceed."""
    return percent((sets or {}).get("recall"))
