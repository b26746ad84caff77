"""The last lines of a command, from the content of report.json."""

from __future__ import annotations

from typing import Any

from distill.report.ending import ending
from distill.report.headline import headline


def test_a_run_ends_with_success_modes_recall_time_and_speed_up(results: dict[str, Any]) -> None:
    results["policies"][0]["fidelity"] = {"recall": 0.95, "coverage": 0.97, "energy_distance": 0.001}
    lines = ending(results)
    assert lines[0] == headline(results).title + "."
    assert lines[1:3] == [
        "  Teacher, 50 steps          success 98.0 %, modes 2/2, recall 95.0 %, coverage 97.0 %, 80.0 ms (12.5 Hz), "
        "speed-up 1.00×",
        "  Student, Chamfer + energy  success 96.5 %, modes 2/2, recall 89.3 %, coverage 87.4 %, 2.00 ms (500 Hz), "
        "speed-up 40.0×",
    ]
    assert lines[3].startswith("Take Student, Chamfer + energy: 2.00 ms a call")
    assert lines[4].startswith("Distilling cost 21 % of the teacher's training") and len(lines) == 5
    results["policies"][2]["latency"]["p95_ms"] = 9.0
    assert ending(results)[-1].startswith("Warning: the machine was busy while policies were timed: p95 is 4.5 times")


def test_without_success_it_ends_with_fidelity_and_time(results: dict[str, Any]) -> None:
    for policy in results["policies"]:
        for name in ("success_rate", "modes_reached"):
            del policy[name]
    results |= {"kind": "comparison", "measured_success": False, "external": [], "distilling": {}}
    results["policies"][2]["is_default_student"] = False
    lines = ending(results)
    assert lines[0] == "3 policies on the same observations, compared with Teacher, 50 steps."
    assert lines[1] == "  Teacher, 50 steps          80.0 ms (12.5 Hz), speed-up 1.00×"
    assert lines[2] == (
        "  Student, regression        recall 89.3 %, coverage 87.4 %, energy distance 0.00417, 2.00 ms (500 Hz), speed-up 40.0×"
    )
    assert len(lines) == 5 and lines[4].startswith("Take Student, ")
    results["policies"][1] |= {"latency": None, "speedup": None}
    assert ending(results)[2].endswith("energy distance 0.00417, latency –, speed-up –")
