"""The table of what policies see from small files made by hand: seeds as one, what is missing, and nothing else of the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import seeing_page
from benchmarks.seeing_page import BEGIN, END, PAGE, RESULTS, STUDENT, TEACHER, section, written


def _policy(success: str, left: int, right: int) -> dict[str, object]:
    return {"success": success, "mode_counts": {"left": left, "right": right}, "parameters": 9}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    seen = [
        {"preset": "detour_points", "seed": seed, "policies": {TEACHER: _policy("1110", 2, 1), STUDENT: student}}
        for seed, student in enumerate((_policy("1111", 3, 1), _policy("1100", 1, 1)))
    ]
    state = [{"phase": "main", "row": "", "policy": name, **_policy("11", 1, 1)} for name in (TEACHER, STUDENT)]
    other = [{"phase": "small", "row": "less", "policy": name, **_policy("00", 0, 0)} for name in (TEACHER, STUDENT)]
    called = [
        {"preset": preset, "policy": policy, "ratio": ratio, "median_ms": ms, "parameters": size,
         "stages": {"encode_ms": 2.04}}
        for preset, size in (("detour", 9), ("detour_points", 8), ("detour_rgbd", 9))
        for policy, ratio, ms in ((TEACHER, 1.0, 70.0), ("student", 14.0, 5.0))
    ]  # fmt: skip
    (tmp_path / "objectives").mkdir()
    (tmp_path / "seeing.json").write_text(json.dumps({"rows": seen}))
    (tmp_path / "perception.json").write_text(json.dumps({"rows": called}))
    (tmp_path / "objectives/detour-seed2.json").write_text(json.dumps({"task": "detour", "seed": 2, "rows": [*state, *other]}))
    (tmp_path / "objectives/avoid-seed0.json").write_text(json.dumps({"task": "avoid", "seed": 0, "rows": state}))
    return tmp_path


def test_a_row_for_each_preset_of_which_anything_is_stored(results: Path) -> None:
    _, _, state, points, rgbd, _, other = section(results).splitlines()
    times = "| 2.0 | 70.0 / 5.00 | 14.0"
    assert state == f"| `detour` | state | 2 | 100.0 % of 2 | 100.0 % | 0.0 (0.0 to 0.0) | 1 : 1 / 1 : 1 | 1.00 {times} |"
    # two seeds as one: 6 of 8 and 6 of 8; 4 : 2 and 4 : 2, whose entropy is 0.918
    assert points.startswith("| `detour` | points | 0, 1 | 75.0 % of 8 | 75.0 % | 0.0 (−")
    assert points.endswith(f"| 4 : 2 / 4 : 2 | 0.918 {times} † |")
    assert other.startswith("† timed with a student of another size")
    assert rgbd == f"| `detour` | colours and depth | none yet | – | – | – | – | – {times} |"


def test_nothing_but_the_table_is_written(results: Path) -> None:
    page = f"before\n{BEGIN}old\n{END}after\n"
    once = written(page, results)
    assert once.startswith(f"before\n{BEGIN}| task") and once.endswith(f"\n{END}after\n") and "old" not in once
    assert written(once, results) == once
    with pytest.raises(ValueError, match="without the two lines"):
        written("before\nafter\n", results)


def test_the_page_is_what_the_stored_results_say() -> None:
    assert written(PAGE.read_text(), RESULTS) == PAGE.read_text(), f"run {seeing_page.__file__}"
