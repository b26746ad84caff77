"""The report about speed: run modes, samples, reaction times and Amdahl's limit, from numbers made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from distill.report.sections.latency import (
    amdahl_lines,
    frontier_table,
    latency_table,
    modes_table,
    pair_lines,
    reaction_ms,
)  # fmt: skip
from distill.report.tiles import tiles
from tests.distill.report.made_up import run

GOOD = {"largest": 4e-7, "holds": True, "other_choice": 0.0, "calls": 32}
FAR = {"largest": 0.2, "holds": False, "other_choice": 0.5, "calls": 32}


def _mode(ms: float, parity: dict[str, Any] = GOOD) -> dict[str, Any]:
    return {"median_ms": ms, "p95_ms": ms, "p99_ms": ms, "hz": 1000 / ms, "parity": parity}


@pytest.fixture
def results() -> dict[str, Any]:
    """Teacher at 50 and 10 steps, and the student, eager and in two modes; the second is wrong for the student."""
    made = run()
    teacher, regression, student = made["policies"]
    its = teacher["latency"] | {"median_ms": 20.0, "modes": {"ort": _mode(5.0)}, "best_mode": "ort"}
    ten = teacher | {"name": "teacher_10", "label": "Teacher, 10 steps", "num_steps": 10, "is_reference_teacher": False,
                     "latency": its}  # fmt: skip
    teacher["latency"] |= {"modes": {"ort": _mode(16.0), "half": _mode(24.0)}, "best_mode": "ort"}
    student["latency"] |= {"modes": {"ort": _mode(0.5), "half": _mode(0.25, FAR)}, "best_mode": "ort"}
    made["policies"] = [teacher, ten, regression, student]
    made["made"] |= {"config": {"evaluate": {"execution_horizon": 8}},
                     "timing": {"cores": 2, "load_before": 0.1, "load_after": 0.1, "own_share": 1.0,
                                "left_out": {"openvino": "not installed"}}}  # fmt: skip
    return made


def test_every_policy_is_compared_in_its_own_fastest_mode(results: dict[str, Any]) -> None:
    table = modes_table(results)
    assert table is not None
    titles = ["Policy", "eager [ms]", "ort [ms]", "half [ms]", "Fastest", "Hz", "Speed-up"]
    assert [title for title, _ in table.columns] == titles
    rows = [[cell.text for cell in row] for row in table.rows]
    assert rows[0] == ["Teacher, 50 steps", "80.0", "16.0", "24.0", "ort", "62.5", "1.00×"]
    assert rows[1] == ["Teacher, 10 steps", "20.0", "5.00", "–", "ort", "200", "3.20×"]
    assert rows[2][4:] == ["eager", "500", "8.00×"]  # the regression student, 2 ms, has no modes
    assert rows[3] == ["Student, Chamfer + energy", "2.00", "0.500", "0.250", "ort", "2000", "32.0×"]
    assert table.rows[3][3].notes == ("2e-01: too far, not used",) and table.rows[3][2].notes == ("4e-07",)


def test_both_pairs_are_said_for_fifty_and_for_ten_steps(results: dict[str, Any]) -> None:
    assert pair_lines(results) == [
        "Student, Chamfer + energy against its teacher. Teacher, 50 steps: 40.0× eager against eager, 32.0× each in its "
        "fastest mode; Teacher, 10 steps: 10.0× eager against eager, 10.0× each in its fastest mode."
    ]
    (tile,) = [each for each in tiles(results) if each.name == "Speed-up"]
    assert tile.what.endswith("50 → 1; each in its fastest run mode 32.0×")


def test_a_run_timed_eagerly_only_says_nothing_of_modes(results: dict[str, Any]) -> None:
    plain = run()
    assert modes_table(plain) is None and pair_lines(plain) == [] and frontier_table(plain) is None
    (tile,) = [each for each in tiles(plain) if each.name == "Speed-up"]
    assert tile.what.endswith("50 → 1")


def test_a_reaction_waits_for_half_an_execution_horizon_the_cameras_and_the_call(results: dict[str, Any]) -> None:
    assert reaction_ms(results, 2.0, {}) == pytest.approx(202.0)  # 8 x 50 ms / 2 + 2 ms
    assert reaction_ms(results, 2.0, {"read_ms": 5.0}) == pytest.approx(207.0)
    assert reaction_ms(run(), 2.0, {}) is None  # an older report does not know its horizon
    table = latency_table(results)
    assert table is not None and [row[6].text for row in table.rows] == ["280", "220", "202", "202"]


def test_the_limit_of_any_head_is_what_the_rest_of_the_call_takes(results: dict[str, Any]) -> None:
    # .1 + .4 + 1.4 + .1 ms of the student, 80 of the teacher, whose stages are .1, .4, 79.4, .1
    assert amdahl_lines(results) == (
        "Of 2.00 ms from the cameras to the chunk of Student, Chamfer + energy: preprocessing 5.0 %, encoder 20.0 %, "
        "head 70.0 %, selection 5.0 %. With an infinitely fast head the call would take 0.600 ms: no student with this encoder "
        "can be more than 133 times as fast as Teacher, 50 steps.",
    )
    results["policies"][3]["latency"]["read_ms"] = 2.0
    assert "Of 4.00 ms" in amdahl_lines(results)[0] and "reading 50.0 %" in amdahl_lines(results)[0]
    assert "2.60 ms" in amdahl_lines(results)[0]


def test_success_and_latency_by_the_number_of_samples(results: dict[str, Any]) -> None:
    student = results["policies"][3]
    results["frontier"] = [
        {**student, "samples": 1, "successes": 180, "latency": _mode(1.0) | {"modes": {"ort": _mode(0.4)}, "best_mode": "ort"}},
        {**student, "samples": 16},
    ]
    table = frontier_table(results)
    assert table is not None
    rows = [[cell.text for cell in row] for row in table.rows]
    assert rows[0] == ["1", "90.0 %", "−1.5", "2/2", "1.00", "0.400", "2500"]
    assert rows[1] == ["16", "96.5 %", "−1.5", "2/2", "2.00", "0.500", "2000"]
