"""Which policy to take at which latency, by hand."""

from __future__ import annotations

from typing import Any

from distill.report.sections.verdict import VERDICT
from distill.report.verdict import as_good, baseline_line, frontier, objections, verdict


def policy(name: str, ms: float, energy: float, success: float | None = None, **more: Any) -> dict[str, Any]:
    """A row of the report, as far as a verdict looks at it."""
    told = {
        "name": name, "label": name, "kind": "teacher" if name.startswith("teacher") else "student", "nfe": 1,
        "latency": {"median_ms": ms}, "num_steps": int(name.split("_")[1]) if name.startswith("teacher") else 1,
        "is_reference_teacher": name == "teacher_20",
        "fidelity": {"energy_distance": energy, "recall": 0.9, "coverage": 0.8, "off_support_share": 0.1},
    }  # fmt: skip
    if success is not None:
        told |= {"success_rate": success, "success_low": success, "success_high": success, "successes": 0, "episodes": 1,
                 "difference": success - 0.9, "difference_low": success - 0.95, "difference_high": success - 0.85,
                 "mcnemar_p": 0.01 if success < 0.8 else 0.5}  # fmt: skip
    return told | more


def results(*policies: dict[str, Any], measured: bool = False, kind: str = "conversion") -> dict[str, Any]:
    floor = {"energy_distance": -0.001}
    return {"kind": kind, "measured_success": measured, "policies": list(policies), "fidelity_floor": floor}


def test_a_student_that_is_as_good_and_faster_is_taken(tmp_path: Any) -> None:
    found = results(policy("teacher_20", 20.0, 0.0), policy("teacher_2", 2.0, 0.05), policy("in_place", 1.5, 0.004),
                    policy("fresh", 3.0, 0.003))  # fmt: skip
    assert verdict(found)[0].startswith("Take in_place: 1.50 ms a call, recall 90.0 %, coverage 80.0 %, energy distance 0.004")
    assert [each["name"] for each in frontier(found)] == ["in_place"]  # what is slower is no better
    part = VERDICT.part(found, tmp_path)
    assert part is not None and part.table is not None and len(part.table.rows) == 1


def test_the_teacher_at_two_steps_may_be_the_one_to_take() -> None:
    found = results(policy("teacher_20", 20.0, 0.0), policy("teacher_2", 2.0, 0.009), policy("in_place", 1.5, 0.06))
    assert verdict(found)[0].startswith("Take your teacher at 2 steps, no student is needed: 2.00 ms a call")
    assert [each["name"] for each in frontier(found)] == ["in_place", "teacher_2"]
    assert verdict({**found, "kind": "comparison"})[0].startswith("Take teacher_2: ")


def test_success_decides_where_it_was_measured() -> None:
    found = results(policy("teacher_20", 20.0, 0.0, 0.9), policy("teacher_2", 2.0, 0.001, 0.6),
                    policy("in_place", 1.5, 0.02, 0.88), measured=True)  # fmt: skip
    assert verdict(found)[0].startswith("Take in_place: 1.50 ms a call, success 88.0 %")
    assert [as_good(found, each) for each in found["policies"]] == [True, False, True]
    worse = results(policy("teacher_20", 20.0, 0.0, 0.9), policy("in_place", 1.5, 0.0, 0.7), measured=True)
    assert verdict(worse)[0].startswith("Take the teacher as it is: no faster policy is as good")


def test_nothing_is_said_of_what_was_not_timed() -> None:
    alone = results(policy("teacher_20", 20.0, 0.0))
    untimed = results(policy("teacher_20", 20.0, 0.0, latency=None), policy("in_place", 1.0, 0.0))
    assert verdict(alone) == verdict(untimed) == ()


# -- what speaks against a student ----------------------------------------------------------------------------------------


def student(ms: float, energy: float, success: float | None = None, **more: Any) -> dict[str, Any]:
    made = policy("in_place", ms, energy, success, is_default_student=True, speedup=20.0 / ms)
    made["fidelity"] |= more
    return made


def kinds(found: dict[str, Any]) -> list[str]:
    return [each.kind for each in objections(found)]


def test_a_teacher_at_few_steps_that_is_as_fast_and_closer_is_named() -> None:
    teachers = [policy("teacher_20", 20.0, 0.0), policy("teacher_2", 2.0, 0.03)]
    found = results(*teachers, student(1.9, 0.05))
    assert kinds(found) == ["rival"]
    (told,) = objections(found)
    assert told.clause == "your teacher at 2 steps is at least as fast and is closer to the full teacher"
    assert told.line.startswith("Without any training, your teacher at 2 steps is at least as fast as the student and is")
    # 1.1 times as long still counts as as fast; 10 % closer is the least that counts, and only beyond the floor of 0.01
    assert kinds(results(*teachers, student(1.8, 0.05))) == []
    assert kinds(results(*teachers, student(1.9, 0.033))) == []
    assert kinds(results(policy("teacher_20", 20.0, 0.0), policy("teacher_2", 2.0, 0.001), student(1.9, 0.009))) == []


def test_where_success_was_measured_a_rival_must_solve_as_much() -> None:
    full = policy("teacher_20", 20.0, 0.0, 0.9)
    mine = student(2.0, 0.05, 0.88)

    def against(success: float, energy: float) -> list[str]:
        return kinds(results(full, policy("teacher_2", 2.0, energy, success), mine, measured=True))

    assert against(0.89, 0.2) == ["rival"] and against(0.88, 0.03) == ["rival"]
    assert against(0.88, 0.05) == [] and against(0.87, 0.0) == []


def test_a_student_that_is_hardly_faster_or_slower_is_named() -> None:
    full = policy("teacher_20", 20.0, 0.0)
    assert kinds(results(full, student(10.0, 0.0))) == []
    (told,) = objections(results(full, student(16.0, 0.0)))
    assert told.kind == "slow" and told.clause == "the student is hardly faster than the teacher (1.25 times)"
    (told,) = objections(results(full, student(40.0, 0.0)))
    assert told.clause == "the student takes 2.00 times as long as the teacher"


def test_a_low_recall_is_named_beside_that_of_the_teacher_itself() -> None:
    found = results(policy("teacher_20", 20.0, 0.0), student(2.0, 0.0, recall=0.5))
    assert kinds(found) == ["recall"]  # without the teacher's own it is compared with 1
    found["fidelity_floor"]["recall"] = 0.8
    assert kinds(found) == []  # 0.6 * 0.8 = 0.48
    found["fidelity_floor"]["recall"] = 0.9
    (told,) = objections(found)
    assert "recall 50.0 %, coverage 80.0 %; a second set of the teacher's own has recall 90.0 %." in told.line


def test_a_baseline_is_neither_taken_nor_on_the_frontier() -> None:
    nearest = policy("nearest", 0.1, 0.5, 1.0, kind="baseline", label="Nearest demonstration", modes_reached=2, modes_total=2,
                     entropy=0.95, success_high=1.0)  # fmt: skip
    full = policy("teacher_20", 20.0, 0.0, 0.9, modes_reached=2, modes_total=2, entropy=0.95)
    mine = student(2.0, 0.0, 0.9) | {"modes_reached": 2, "modes_total": 2, "entropy": 0.97}
    found = results(full, nearest, mine, measured=True, kind="run")
    assert [each["name"] for each in frontier(found)] == ["in_place"] and verdict(found)[0].startswith("Take in_place")
    assert "trains nothing, solves 100.0 % and reaches 2 of 2 modes" in baseline_line(found)
    assert "solved from memory" in baseline_line(found)
    nearest |= {"entropy": 0.5, "modes_reached": 1}
    assert "The difference is in diversity: it reaches 1 of 2 modes, mode entropy 0.500" in baseline_line(found)
    nearest |= {"success_rate": 0.3, "success_high": 0.4}
    assert "success needs more than memory" in baseline_line(found)
    assert baseline_line(results(full, mine, measured=True)) == ""
