"""Which policy to take at which latency, by hand."""

from __future__ import annotations

from typing import Any

from distill.report.sections.verdict import VERDICT
from distill.report.verdict import as_good, frontier, verdict


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
    assert verdict(worse)[0].startswith("Take the reference: no faster policy is as good")


def test_nothing_is_said_of_what_was_not_timed() -> None:
    alone = results(policy("teacher_20", 20.0, 0.0))
    untimed = results(policy("teacher_20", 20.0, 0.0, latency=None), policy("in_place", 1.0, 0.0))
    assert verdict(alone) == verdict(untimed) == ()
