"""benchmarks/rlbench.py: the table of RLBench runs, from runs made by hand."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from benchmarks.rlbench import BEGIN, END, PAGE, RESULTS, pooled, section, written

POLICY = {"num_steps": 50, "nfe": 50, "refused_actions": 1, "is_default_student": False}
ROW: dict[str, Any] = {
    "task": "open_drawer", "seed": 0, "date": "2026-11-30 12:00 UTC", "hardware": {}, "processes": 1, "demonstrations": 100,
    "arm": "planning", "training_steps": 10, "sources": ["state", "points"], "max_steps": 80,
    "oracle": {"episodes": 4, "successes": 3, "failures": {"timeout": 1}},
    "generalisation": {"rows": [{"label": "Teacher", "training": {"position_m": {"mean": 0.004}},
                                 "held_out": {"position_m": {"mean": 0.005}}}]},
    "policies": [
        {**POLICY, "name": "teacher_50", "label": "Teacher, 50 steps", "kind": "teacher", "is_reference_teacher": True,
         "episode_success": [True, True, True, False], "failures": {"planner_error": 1}, "call_ms": 60.0},
        {**POLICY, "name": "chamfer", "label": "Student", "kind": "student", "is_reference_teacher": False, "nfe": 1,
         "episode_success": [True, True, True, True], "failures": {}, "call_ms": 4.0},
    ],
    "minutes": {"recording": 8.0, "training": 20.0, "all": 59.6},
}  # fmt: skip


def _other_seed() -> dict[str, Any]:
    row = copy.deepcopy(ROW)
    row["seed"], row["policies"][0]["failures"] = 1, {"planner_error": 1, "timeout": 1}
    row["policies"][0]["episode_success"] = [False, True, True, False]
    row["policies"][0]["call_ms"] = 80.0
    return row


def test_seeds_are_pooled_by_policy() -> None:
    teacher, student = pooled([ROW, _other_seed()])
    assert teacher["episode_success"] == [True, True, True, False, False, True, True, False]
    assert teacher["failures"] == {"planner_error": 2, "timeout": 1} and teacher["refused_actions"] == 2
    assert student["failures"] == {} and len(student["episode_success"]) == 8
    assert ROW["policies"][0]["failures"] == {"planner_error": 1}  # the rows are not changed


def test_the_table_says_success_speed_errors_and_minutes() -> None:
    lines = section({"rows": [_other_seed(), ROW]}).splitlines()
    oracle, teacher, student = (next(line for line in lines if f"| {name} |" in line)
                                for name in ("oracle", "Teacher, 50 steps", "Student"))  # fmt: skip
    assert oracle.startswith("| `open_drawer` | points | oracle |") and "| 6 of 8 |" in oracle and "| 2 timeout |" in oracle
    assert "| 5 of 8 |" in teacher and "| 2 planner_error, 1 timeout |" in teacher and "| 70.0 | 14 | 1.0 x |" in teacher
    # 3 of 8 episodes more than the teacher, paired
    assert "| 1 | 8 of 8 |" in student and "| +37.5 (" in student and "| 4.0 | 250 | 17.5 x |" in student
    assert "| `open_drawer` | points | 0 | 100 | 4.0 | 5.0 | 1.25 | 8 | 20 | 60 | 1 | 2026-11-30 |" in lines


def test_a_page_without_its_place_is_refused() -> None:
    page = f"before\n{BEGIN}old\n{END}after\n"
    assert written(page, {"rows": [ROW]}) == f"before\n{BEGIN}{section({'rows': [ROW]})}{END}after\n"
    with pytest.raises(ValueError, match="expected each once"):
        written("no place", {"rows": [ROW]})


def test_the_page_is_what_the_stored_results_say() -> None:
    assert written(PAGE.read_text(), json.loads(RESULTS.read_text())) == PAGE.read_text(), "run benchmarks/rlbench.py"
