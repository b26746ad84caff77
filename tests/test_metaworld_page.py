"""benchmarks/metaworld.py: the table of Meta-World runs, from runs made by hand, and the page as it is written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.metaworld import BEGIN, END, PAGE, RESULTS, group_of, section, written
from distill.presets import shipped


def policy(name: str, success: list[bool], call_ms: float) -> dict[str, Any]:
    return {"name": name, "episode_success": success, "call_ms": call_ms}


ROW: dict[str, Any] = {
    "task": "push", "seed": 0, "date": "2026-11-30 12:00 UTC", "hardware": "a machine", "training_cpu_minutes": 1.0,
    "versions": {"metaworld": "3.1.1", "mujoco": "3.3.0"}, "papers": [0.5, 1.0, 1.0, 1.0, 0.9, 0.6],
    "policies": [policy("teacher_10", [True, True, False, False], 40.0), policy("teacher_1", [True] * 4, 5.0),
                 policy("chamfer", [True, True, True, False], 8.0)],
}  # fmt: skip


def test_the_table_pools_seeds_and_pairs_the_student_with_its_teacher() -> None:
    other = {**ROW, "seed": 1, "training_cpu_minutes": 3.0, "papers": [0.3] * 5}
    line = next(line for line in section({"rows": [other, ROW]}).splitlines() if line.startswith("| `push`"))
    assert line.startswith("| `push` | hard | 2 | 4 of 8 (") and "| 8 of 8 (" in line and "| 6 of 8 (" in line
    assert "| +25.0 (" in line  # two of eight more
    # five best of six: (1 + 1 + 1 + .9 + .6) / 5 = .9, and .3
    assert line.endswith("| 60.0 % | 25 | 125 | 2.0 |")


def test_the_mean_is_over_tasks() -> None:
    solved = [policy(name, [True] * 4, 5.0) for name in ("teacher_10", "teacher_1", "chamfer")]
    easy = {**ROW, "task": "reach", "policies": solved}
    lines = section({"rows": [ROW, easy]}).splitlines()
    assert [line.split("`")[1] for line in lines if line.startswith("| `")] == ["reach", "push"]  # easy before hard
    assert "**mean of 2 tasks** | | | **75.0 %** | **100.0 %** | **87.5 %** | **+12.5**" in lines[4]


def test_every_preset_says_its_group() -> None:
    names = [name.removeprefix("metaworld/") for name in shipped() if name.startswith("metaworld/") and "state" not in name]
    assert len(names) >= 10 and {group_of(name) for name in names} == {"easy", "medium", "hard", "very hard"}
    assert group_of("stick_push") == "very hard" and group_of("assembly") == "hard"


def test_the_page_is_that_of_the_results() -> None:
    page = PAGE.read_text()
    assert written(page, json.loads(RESULTS.read_text())) == page and BEGIN in page and END in page
    with pytest.raises(ValueError, match="expected each once"):
        written("nothing", {"rows": [ROW]})
