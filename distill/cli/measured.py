"""What a run measured of one of its students, found by the stages' keys, so that no other student's figures are used."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.config import EvaluateConfig
from distill.evaluation.statistics import wilson_interval
from distill.store.manifest import read_manifest, verify
from students.export.card import InferenceSettings, PolicyFigures, Provenance
from students.selection import Selection

FEWEST_CALLS = 100
"""A median over fewer timed calls is not reported."""


@dataclass(frozen=True)
class RunFigures:
    """The result of `figures_of`; None or "" for what it did not find."""

    student: PolicyFigures
    teacher: PolicyFigures | None
    provenance: Provenance


def inference_settings_of(student: Path, horizon: int) -> InferenceSettings:
    """How the student's run selected among its samples, from its stage's manifest. Without one: the default."""
    manifest, default = read_manifest(student), EvaluateConfig()
    if manifest is None or "execution_horizon" not in manifest["made_from"]:
        return InferenceSettings(default.student_selection, min(default.execution_horizon, horizon), "default")
    made_from = manifest["made_from"]
    selection = Selection(
        made_from.get("selection", "single"), made_from.get("candidates_of_selection", default.selection_candidates),
        made_from.get("forget_every", default.forget_every),
    )  # fmt: skip
    return InferenceSettings(selection, made_from["execution_horizon"], "run")


def figures_of(student: Path) -> RunFigures:
    """The figures of a student inside its run, ``<run>/distill/<name>``.

    A stage counts only if its manifest names the key of the student or of its evaluation; archived stages count too. Raises
    ValueError, with the file's name, when a file was changed after it was measured.
    """
    empty = RunFigures(PolicyFigures("student"), None, Provenance())
    student = Path(os.path.abspath(student))  # symbolic links are kept: the card names the run as the user does
    manifest, run = read_manifest(student), student.parent.parent
    if manifest is None:
        return empty
    name = student.name.partition(".")[0]
    evaluated = _first(run / "evaluate", name, lambda made_from: made_from.get("student") == manifest["key"])
    if evaluated is None:
        return empty
    made_from, key = _manifest(evaluated)["made_from"], _manifest(evaluated)["key"]
    timed = _first(run, "latency", lambda latency: key in latency.get("policies", ()))
    times = {} if timed is None else _read(timed / "latency.json")
    reported_in = None if timed is None else _report(run, _manifest(timed)["key"])
    made = {} if reported_in is None else _read(reported_in / "report.json")["made"]
    teacher = _teacher(run, made_from)
    its_key = None if teacher is None else _manifest(teacher)["key"]
    timed_too = timed is not None and its_key in _manifest(timed)["made_from"]["policies"]
    teacher_time = times.get(teacher.name.partition(".")[0]) if teacher is not None and timed_too else None
    return RunFigures(
        _policy(evaluated, "student", times.get(name)),
        None if teacher is None else _policy(teacher, "teacher", teacher_time),
        Provenance(run.name, str(made_from.get("seed", "")), made.get("date", ""), made.get("hardware", "")),
    )


def _policy(folder: Path, label: str, latency: dict[str, Any] | None) -> PolicyFigures:
    result, latency = _read(folder / "result.json"), latency or {}
    if latency.get("calls", 0) < FEWEST_CALLS:
        latency = {}
    summary = result.get("summary")
    if summary is None:  # a conversion without a task does not measure success
        return PolicyFigures(
            label, result["nfe"], median_ms=latency.get("median_ms"), hz=latency.get("hz"), calls=latency.get("calls"),
            energy_distance=result["fidelity"]["energy_distance"], off_support_share=result["fidelity"]["off_support_share"],
        )  # fmt: skip
    low, high = wilson_interval(summary["successes"], summary["episodes"])
    return PolicyFigures(
        label if label == "student" else f"{label}, {_manifest(folder)['made_from']['num_steps']} steps",
        result["nfe"], summary["episodes"], summary["successes"], low, high, summary["entropy"],
        summary["modes_reached"], summary["modes_total"], latency.get("median_ms"), latency.get("hz"), latency.get("calls"),
    )  # fmt: skip


def _teacher(run: Path, student: dict[str, Any]) -> Path | None:
    """The teacher at the most solver steps, on the same starts and with the same reference."""
    same = ("reference", "test_starts", "execution_horizon", "envs_version", "seed")
    found = [
        folder for folder in _stages(run / "evaluate", "teacher_*")
        if all(_manifest(folder)["made_from"].get(name) == student.get(name) for name in same)
    ]  # fmt: skip
    best = max(found, key=lambda folder: int(_manifest(folder)["made_from"]["num_steps"]), default=None)
    if best is not None:
        verify(best)
    return best


def _report(run: Path, latency: str) -> Path | None:
    return _first(run, "report", lambda made_from: made_from.get("latency") == latency)


def _first(parent: Path, name: str, fits: Callable[[dict[str, Any]], bool]) -> Path | None:
    """The first stage of this name that fits: the current one before archived ones."""
    for folder in _stages(parent, name):
        if fits(_manifest(folder)["made_from"]):
            verify(folder)
            return folder
    return None


def _stages(parent: Path, name: str) -> Iterator[Path]:
    for pattern in (name, f"{name}.*"):
        yield from (folder for folder in sorted(parent.glob(pattern)) if read_manifest(folder) is not None)


def _manifest(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    assert manifest is not None  # `_stages` gives no others
    return manifest


def _read(path: Path) -> Any:
    return json.loads(path.read_text())
