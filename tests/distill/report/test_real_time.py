"""The report of the real-time evaluation: rates, pairs and reactions counted by hand, nothing where nothing was done."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distill.evaluation.real_time import paired_rows
from distill.evaluation.statistics import mcnemar_p, wilson_interval
from distill.report import figures
from distill.report.sections.real_time import real_time_line, real_time_table


def _episodes(successes: str, reactions: list[int | None] | None = None, failure: str = "collision") -> list[dict[str, Any]]:
    """One episode per letter: s success, f `failure`, t timeout; the first ones were disturbed and reacted as told."""
    reactions = reactions or []
    return [
        {"index": index, "success": letter == "s", "failure": {"s": "", "f": failure, "t": "timeout"}[letter],
         "disturbed_at": 3 if index < len(reactions) else None,
         "reaction_steps": reactions[index] if index < len(reactions) else None}
        for index, letter in enumerate(successes)
    ]  # fmt: skip


def _result(policy: str, *times: dict[str, Any]) -> dict[str, Any]:
    return {"policy": policy, "dt_s": 0.05, "every_steps": 4, "delays_per_query": 2.0, "times": list(times)}


def _time(
    disturbed: list[dict[str, Any]], calm: str, delay: int, latency_ms: float, scale: float | None = None
) -> dict[str, Any]:
    return {"scale": scale, "latency_ms": latency_ms, "delay_steps": delay, "period_steps": max(4, 2 * delay),
            "calm": _episodes(calm), "disturbed": disturbed}  # fmt: skip


RESULTS = [
    _result("teacher_50", _time(_episodes("ssssssss", [1, 3]), "ssssssss", 0, 0.0),
            _time(_episodes("ffffftss", [8, 10, None]), "sssssssf", 3, 116.0, 2.33)),
    _result("chamfer", _time(_episodes("sssssssf", [1, 3]), "ssssssss", 0, 0.0),
            _time(_episodes("ssssssst", [2, 4, 3]), "ssssssss", 1, 6.0, 2.33)),
]  # fmt: skip
LABELS = {"teacher_50": "Teacher, 50 steps", "chamfer": "Student, Chamfer"}


@pytest.fixture
def results() -> dict[str, Any]:
    rows = paired_rows(RESULTS, LABELS, "chamfer")
    chosen = {"kind": "temporal_consistency", "candidates": 16, "forget_every": 5}
    return {"real_time": {"disturbance": "The cube is pushed.", "dt_s": 0.05, "every_steps": 4, "delays_per_query": 2.0,
                       "rows": rows, "selection": chosen}}  # fmt: skip


def test_rows_stand_by_time_and_policy_with_what_was_counted(results: dict[str, Any]) -> None:
    rows = results["real_time"]["rows"]
    assert [(row["policy"], row["latency_ms"], row["delay_steps"], row["period_steps"]) for row in rows] == [
        ("teacher_50", 0.0, 0, 4), ("chamfer", 0.0, 0, 4), ("teacher_50", 116.0, 3, 6), ("chamfer", 6.0, 1, 4)
    ]  # fmt: skip
    slow, quick = rows[2], rows[3]
    assert (slow["disturbed"]["successes"], slow["disturbed"]["episodes"]) == (2, 8)
    assert slow["disturbed"]["failures"] == {"collision": 5, "timeout": 1} and slow["calm"]["failures"] == {"collision": 1}
    assert (slow["disturbed"]["success_low"], slow["disturbed"]["success_high"]) == wilson_interval(2, 8)
    # two of three that were disturbed answered, after 8 and 10 steps of 50 ms
    assert (slow["reaction_steps"], slow["reaction_ms"]) == (9, 450)
    assert (slow["disturbed_episodes"], slow["answered_episodes"]) == (3, 2)
    assert (quick["reaction_steps"], quick["reaction_ms"]) == (3, 150)


def test_the_student_is_paired_with_every_other_at_the_same_time(results: dict[str, Any]) -> None:
    rows = results["real_time"]["rows"]
    even, slow = rows[0]["disturbed"], rows[2]["disturbed"]
    assert even["student_difference"] == pytest.approx(-1 / 8) and even["student_low"] <= -1 / 8 <= even["student_high"]
    # the student alone solves 0 to 5, the teacher alone 7
    assert slow["student_difference"] == pytest.approx(5 / 8)
    assert slow["mcnemar_p"] == mcnemar_p(np.array([1] * 6 + [0]), np.array([0] * 6 + [1]))
    assert rows[1]["disturbed"]["student_difference"] is None and rows[3]["calm"]["student_difference"] is None
    assert rows[2]["calm"]["student_difference"] == pytest.approx(1 / 8)


def test_the_table_and_the_sentence_hold_these_numbers(results: dict[str, Any]) -> None:
    table = real_time_table(results)
    assert table is not None and len(table.rows) == 4
    assert [cell.text for cell in table.rows[2]] == [
        "measured × 2.33", "Teacher, 50 steps", "3", "25.0 %", "+62.5", "450", "5", "1", "87.5 %"
    ]  # fmt: skip
    given, _, late, success, _, reaction, _, others, calm = table.rows[2]
    assert given.notes == ("116 ms",) and late.notes == ("a query every 6",) and success.notes[1] == "2 of 8"
    assert reaction.notes == ("9.00 steps", "2 of 3") and others.notes == ("timeout 1",) and calm.notes[1] == "student +12.5"
    assert table.rows[0][0].text == "stated" and table.rows[1][4].text == "–"
    assert len(table.columns) == len(table.rows[0])
    line = real_time_line(results)
    assert "The cube is pushed." in line and "20.0 Hz" in line and "every 4 control steps of 50.0 ms" in line
    assert "Of the 16 samples of a call" in line and "temporal consistency" in line
    one = {**results["real_time"], "selection": {"kind": "one", "candidates": 16, "forget_every": 5}}
    assert "temporal consistency" not in real_time_line({"real_time": one})


def test_nobody_disturbed_has_no_reaction() -> None:
    result = _result("chamfer", _time(_episodes("sf"), "ss", 0, 0.0))
    row = paired_rows([result], {}, "chamfer")[0]
    assert row["reaction_steps"] is None and row["reaction_ms"] is None and row["label"] == "chamfer"
    table = real_time_table({"real_time": {"rows": [row]}})
    assert table is not None and table.rows[0][5].text == "–"


def test_a_run_without_real_time_rollouts_has_neither_table_nor_sentence() -> None:
    for results in ({}, {"real_time": None}):
        assert real_time_table(results) is None and real_time_line(results) == ""


def test_the_figure_is_drawn_of_stated_and_of_measured_times(results: dict[str, Any]) -> None:
    rows = results["real_time"]["rows"]
    pictures = [figures.success_against_latency(part) for part in (rows, rows[:2], rows[2:])]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures) and len(set(pictures)) == 3
