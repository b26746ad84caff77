"""Figures for the card: taken by the stages' keys, never another student's, and refused where they were changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill.cli.measured import figures_of, inference_settings_of
from distill.store.manifest import commit, partial_folder
from students.export.card import PolicyFigures, Provenance
from students.selection import Selection

ROLLOUTS = {"test_starts": 100, "reference": "r", "execution_horizon": 4, "envs_version": 1, "seed": 3}


def stage(folder: Path, key: str, made_from: dict[str, Any], **files: Any) -> Path:
    """A finished stage whose JSON files hold these values; one that was there is put aside."""
    partial = partial_folder(folder, key)
    partial.mkdir(parents=True)
    for name, value in files.items():
        (partial / f"{name}.json").write_text(json.dumps(value))
    commit(folder, key, made_from, 1.0)
    return folder


def result(successes: int, nfe: int = 1) -> dict[str, Any]:
    summary = {"episodes": 100, "successes": successes, "entropy": 0.9, "modes_reached": 3, "modes_total": 4}
    return {"nfe": nfe, "summary": summary}


def latency(**calls: int) -> dict[str, Any]:
    return {name: {"median_ms": 4.0, "hz": 250.0, "calls": count} for name, count in calls.items()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with one student, measured beside its teacher at 10 and 50 steps, timed and reported."""
    run = tmp_path / "a-run"
    stage(run / "distill/chamfer", "student-key", {"selection": "temporal_consistency", "candidates_of_selection": 8,
                                                   "forget_every": 2, "execution_horizon": 4})  # fmt: skip
    stage(run / "evaluate/chamfer", "chamfer-key", {"student": "student-key", **ROLLOUTS}, result=result(50))
    for steps, solved in ((50, 90), (10, 80)):
        made_from = {"teacher": "t", "num_steps": steps, **ROLLOUTS}
        stage(run / f"evaluate/teacher_{steps}", f"teacher-{steps}", made_from, result=result(solved, steps))
    stage(run / "latency", "latency-key", {"policies": ["chamfer-key", "teacher-50", "teacher-10"]},
          latency=latency(chamfer=200, teacher_50=200, teacher_10=200))  # fmt: skip
    stage(run / "report", "report-key", {"latency": "latency-key"}, report={"made": {"date": "today", "hardware": "a core"}})
    return run


def test_the_figures_are_those_of_the_students_own_stages(run: Path) -> None:
    found = figures_of(run / "distill/chamfer")
    # Wilson, 95 %, of 50 in 100: centre 0.5, half width 1.96 / (2 sqrt(100 + 1.96^2))
    assert found.student.success_low == pytest.approx(0.4038, abs=1e-4)
    assert found.student.success_high == pytest.approx(0.5962, abs=1e-4)
    assert (found.student.successes, found.student.nfe, found.student.median_ms, found.student.calls) == (50, 1, 4.0, 200)
    assert found.teacher is not None
    assert (found.teacher.label, found.teacher.successes, found.teacher.hz) == ("teacher, 50 steps", 90, 250.0)
    assert found.provenance == Provenance("a-run", "3", "today", "a core")
    assert inference_settings_of(run / "distill/chamfer", 8).selection == Selection("temporal_consistency", 8, 2)


def test_figures_of_another_student_of_that_name_are_not_taken(run: Path) -> None:
    stage(run / "distill/chamfer", "new-key", {"execution_horizon": 4})
    assert figures_of(run / "distill/chamfer").student == PolicyFigures("student")
    # the one that was put aside still has its own
    assert figures_of(run / "distill/chamfer.student-").student.successes == 50
    assert inference_settings_of(run / "distill/chamfer", 8).selection.kind == "single"  # nothing is said of a choice


def test_measured_again_with_another_student_the_old_figures_are_found_aside(run: Path) -> None:
    stage(run / "evaluate/chamfer", "other", {"student": "another", **ROLLOUTS}, result=result(7))
    stage(run / "latency", "later", {"policies": ["other"]}, latency=latency(chamfer=200))
    found = figures_of(run / "distill/chamfer")
    assert (found.student.successes, found.student.hz, found.provenance.date) == (50, 250.0, "today")


def test_what_was_not_measured_is_none(run: Path, tmp_path: Path) -> None:
    # times over a single call are no times, a teacher on other starts is none to compare with, a report of other times neither
    stage(run / "latency", "short", {"policies": ["chamfer-key"]}, latency=latency(chamfer=1))
    for steps in (50, 10):
        other = {"teacher": "t", "num_steps": steps, **ROLLOUTS, "test_starts": 10}
        stage(run / f"evaluate/teacher_{steps}", f"other-{steps}", other, result=result(5, steps))
    for aside in [*run.glob("latency.*"), *run.glob("evaluate/teacher*.*")]:
        aside.rename(tmp_path / aside.name)
    found = figures_of(run / "distill/chamfer")
    assert (found.student.successes, found.student.hz, found.student.calls, found.teacher) == (50, None, None, None)
    assert found.provenance == Provenance("a-run", "3", "", "")
    alone = tmp_path / "alone"
    alone.mkdir()
    assert figures_of(alone).student == PolicyFigures("student") and figures_of(alone).provenance == Provenance()
    assert inference_settings_of(alone, 6).source == "default" and inference_settings_of(alone, 6).execution_horizon == 6


def test_figures_that_were_changed_are_refused(run: Path) -> None:
    (run / "evaluate/chamfer/result.json").write_text(json.dumps(result(100)))
    with pytest.raises(ValueError, match=r"result\.json was changed since it was written"):
        figures_of(run / "distill/chamfer")
