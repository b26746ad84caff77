"""Everything that was measured in a conversion or a comparison, as the one dictionary that its report is made from."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill.cli.outside_config import prog
from distill.objectives.recipes import recipe
from distill.stages.convert import Conversion
from distill.stages.outside_plan import stages_of
from distill.stages.results import cached_figures, floor_figures, hardware, success_figures
from distill.store.manifest import installed_packages, read_manifest
from envs.recorded.inspection import described
from teachers.adapters.teacher import AdapterTeacher
from teachers.networks.observations import sources_of
from teachers.trained import TrainedTeacher

if TYPE_CHECKING:
    from distill.stages.outside import Outside


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def collect_outside(outside: Outside) -> dict[str, Any]:
    """The report's `results`; see distill.report.conversion."""
    plan, run, config = outside.plan, outside.run, outside.config
    latency = _read(run.folder(plan.latency) / "latency.json")
    names = [*plan.baselines_evaluated, *plan.students_evaluated]
    results = {name: outside.result(name) for name in names}
    policies = [_row(outside, name, results, latency) for name in names]
    index = _read(run.folder(plan.sample) / "index.json") if plan.students else {}
    stages = stages_of(plan, isinstance(outside.first.policy, torch.nn.Module))
    return {
        "schema_version": 1, "kind": "conversion" if isinstance(outside, Conversion) else "comparison",
        "run": config.folder.name, "measured_success": bool(config.task),
        "task": {"name": outside.spec.name, "summary": outside.spec.summary, "modes": list(outside.spec.modes),
                 "dt_s": outside.spec.dt_s, "action_names": list(outside.spec.action.names)},
        "made": {
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"), "seed": config.seed,
            "hardware": hardware(run.accelerator.device), "threads": torch.get_num_threads(), "dtype": "float32",
            "packages": installed_packages(), "processes": run.accelerator.num_processes, "commands": [prog()],
            "wall_s": {stage.name: (read_manifest(run.folder(stage)) or {}).get("seconds")
                       for stage in stages if stage.name != "report"},
        },
        "data": {
            "observations_from": str(outside.recorded.path), "frames": len(outside.recorded),
            "for_training": len(outside.frames["train"]),
            "recording": described(outside.recorded, config.teacher.observation_steps),
            "features": {name: list(outside.recorded.features[name])
                                                                       for name in outside.features()},
            "observations": index.get("observations"), "hypotheses_per_observation": index.get("num_hypotheses"),
            "cache_num_steps": index.get("num_steps"), "drawn_by": index.get("teacher"),
            "cache_bytes": sum(path.stat().st_size for path in run.folder(plan.sample).glob("*.safetensors"))
            if index else None,
            **(cached_figures(run.folder(plan.sample), outside.spec.action.weights) if index else {}),
        },
        "adapters": [_adapter(label, teacher) for label, teacher in _adapters(outside).items()],
        "policies": policies,
        "curves": {stage.name.removeprefix("train/"): _read(run.folder(stage) / "curve.json")
                   for stage in plan.train_students.values()},
        "fidelity_floor": floor_figures(outside, outside.measuring_normaliser()),
    }  # fmt: skip


def _row(outside: Outside, name: str, results: dict[str, Any], latency: dict[str, Any]) -> dict[str, Any]:
    config, plan, result = outside.config, outside.plan, results[name]
    reference = next(iter(plan.baselines_evaluated))
    student = name in plan.students_evaluated
    opened = outside.first if student or name not in outside.opened else outside.opened[name]
    kind = "student" if student else _kind(opened.policy)
    several = kind == "student" and config.evaluate.student_selection.several
    row: dict[str, Any] = {
        "name": name, "label": _label(outside, name), "kind": kind,
        "objective": name if student else None, "is_reference_teacher": name == reference,
        "is_default_student": student and name == config.student.default, "parameters": result["parameters"],
        "nfe": result["nfe"], "candidates": config.evaluate.student_selection.candidates if several else 1,
        "latency": latency[name], "speedup": latency[reference]["median_ms"] / latency[name]["median_ms"],
        "fidelity": result["fidelity"], "observation_modes": result["observation_modes"],
        "dimensions": result["dimensions"],
        "warm_start": isinstance(outside.first.policy, TrainedTeacher) and config.student.warm_start if student else None,
        "sees": list(sources_of(outside.shape if student else opened.shape)),
    }  # fmt: skip
    if student:
        row["validation"] = _read(outside.run.folder(plan.students[name]) / "validation.json")
    if config.task:
        row |= success_figures(result, results[reference], outside.spec.modes)
        row |= {"switch_rate": result["summary"]["switch_rate"], "jerk": result["summary"]["jerk_rms"]}
    return row


def _kind(policy: object) -> str:
    if isinstance(policy, AdapterTeacher):
        return "teacher"
    return "teacher" if isinstance(policy, TrainedTeacher) else "student"


def _label(outside: Outside, name: str) -> str:
    if name in outside.plan.students_evaluated:
        return f"Student, {recipe(name).label}"
    if not isinstance(outside, Conversion):
        return outside.opened[name].label
    steps = int(name.removeprefix("teacher_"))
    return f"Teacher, {steps} step{'s' if steps > 1 else ''}"


def _adapters(outside: Outside) -> dict[str, AdapterTeacher]:
    return {each.label: each.policy for each in outside.opened.values() if isinstance(each.policy, AdapterTeacher)}


def _adapter(label: str, teacher: AdapterTeacher) -> dict[str, Any]:
    """What runs in the other process, and with what."""
    told = teacher.described
    return {"label": label, "kind": told.kind, "device": told.device, "hardware": told.hardware, "torch": told.torch,
            "python": told.python, "separable": told.separable}  # fmt: skip
