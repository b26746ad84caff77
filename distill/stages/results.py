"""Everything that was measured in a run, brought together into the one dictionary that the report is made from."""

from __future__ import annotations

import copy
import datetime
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import envs
from distill.context import Stage
from distill.evaluation.diversity import modes_of_cache
from distill.evaluation.statistics import mcnemar_p, mode_share_error, paired_difference, wilson_interval
from distill.hypotheses.cache import HypothesisDataset
from distill.hypotheses.index import cache_blocks, distinct
from distill.objectives.recipes import recipe
from distill.objectives.sets import embed
from distill.report.by_task import task_rows
from distill.report.real_time import moving_rows
from distill.store.manifest import installed_packages, read_manifest
from envs.rlbench.spec import task_names
from students.selection import SAME_PLAN
from teachers.networks.normalisation import Normaliser

if TYPE_CHECKING:
    from distill.config import Config
    from distill.stages.pipeline import Pipeline
    from distill.stages.plan import Plan



def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def collect(pipeline: Pipeline, clips: dict[str, str]) -> dict[str, Any]:
    """The report's `results`; see distill.report.page for its form."""
    config, plan, run = pipeline.config, pipeline.plan, pipeline.run
    latency = _read(run.folder(plan.latency) / "latency.json")
    drawn = any(recipe(name).data == "hypotheses" for name in config.student.objectives)
    index = _read(run.folder(plan.sample) / "index.json") if drawn else {}
    info = _read(run.folder(plan.demos) / "info.json")
    evaluated = {**{f"teacher_{steps}": stage for steps, stage in plan.teachers_evaluated.items()},
                 **plan.baselines_evaluated, **plan.students_evaluated}  # fmt: skip
    results = {name: _read(run.folder(stage) / "result.json") for name, stage in evaluated.items()}
    reference = f"teacher_{config.evaluate.teacher_steps[0]}"
    policies = [
        _policy_row(pipeline, name, result, results[reference], latency) for name, result in results.items()
    ]
    shapes = [] if config.is_rlbench else _scene(config.task)
    told = [reference, *(name for name in ("regression", config.student.default) if name in results)]
    observation = pipeline.stored()["observations"][results[reference].get("planned_at", 0), -1]
    return {
        "schema_version": 1,
        "run": config.folder.name,
        "task": {
            "name": pipeline.spec.name, "summary": pipeline.spec.summary, "modes": list(pipeline.spec.modes),
            "dt_s": pipeline.spec.dt_s, "max_steps": pipeline.spec.max_steps,
            "action_names": list(pipeline.spec.action.names),
        },
        "made": {
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"), "seed": config.seed,
            "hardware": hardware(run.accelerator.device), "threads": torch.get_num_threads(), "dtype": "float32",
            "packages": installed_packages(), "processes": run.accelerator.num_processes,
            "commands": [" ".join(["accelerate launch distill.py", *sys.argv[1:]])],
            "wall_s": {stage.name: _seconds(run.folder(stage)) for stage in plan.all() if stage.name != "report"},
        },
        "data": {
            "episodes": info["num_episodes"], "frames": info["num_frames"], "observations": index.get("observations"),
            "hypotheses_per_observation": index.get("num_hypotheses"), "cache_num_steps": index.get("num_steps"),
            "cache_bytes": sum(path.stat().st_size for path in run.folder(plan.sample).glob("*.safetensors"))
            if drawn else None,
            **(cached_figures(run.folder(plan.sample), pipeline.spec.action.weights) if drawn else {}),
        },
        # of runs from the whole state nothing is told, so that their reports stay as they were
        **({} if config.observation.is_plain else {"observation": asdict(config.observation)}),
        "distilling": distilling(config, plan),
        "policies": policies,
        "curves": {stage.name.removeprefix("train/"): _read(run.folder(stage) / "curve.json")
                   for stage in _trained(pipeline)},
        "scene": shapes,
        "trajectories": {name: [_trajectory(episode) for episode in results[name]["episodes"]] for name in told},
        "planned_sets": {
            "observation_xy": [float(observation[0]), float(observation[1])],
            **{name: np.asarray(results[name]["planned_set"])[..., :2].tolist() for name in told},
        },
        "clips": clips,
        "fidelity_floor": _floor(pipeline),
        "moving": _moving(pipeline, policies),
        **({"oracle": _oracle(pipeline), "rlbench": _simulated(pipeline), "tasks": _tasks(pipeline, evaluated, policies)}
           if config.is_rlbench else {}),
    }  # fmt: skip


def _scene(task: str) -> list[dict[str, Any]]:
    """The scene from above."""
    env = envs.make(task)
    env.reset(seed=0)
    shapes = [vars(shape) | {"xy": list(shape.xy), "size": list(shape.size)} for shape in env.top_view()]
    env.close()
    return shapes


def _simulated(pipeline: Pipeline) -> dict[str, Any]:
    """How RLBench was run, and the versions that decide its results."""
    recording = _read(pipeline.run.folder(pipeline.plan.demos) / "recording.json")
    return {**pipeline.config.rlbench.result_depends_on(), **recording["simulator"]}


def _oracle(pipeline: Pipeline) -> dict[str, Any] | None:
    """How often the test starts' own demonstrations succeed when they are replayed; None where they are not."""
    stage = pipeline.plan.oracle
    if stage is None:
        return None
    summary = _read(pipeline.run.folder(stage) / "result.json")["summary"]
    low, high = wilson_interval(summary["successes"], summary["episodes"])
    return {"episodes": summary["episodes"], "successes": summary["successes"], "success_low": low, "success_high": high,
            "failures": summary["failures"]}  # fmt: skip


def _tasks(
    pipeline: Pipeline, evaluated: Mapping[str, Stage], policies: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Success by task of the oracle and of every policy; [] where there is one task only."""
    if len(task_names(pipeline.config.task)) == 1:
        return []
    labels = {policy["name"]: policy["label"] for policy in policies}
    stages = {"Oracle": pipeline.plan.oracle, **{labels[name]: stage for name, stage in evaluated.items()}}
    return task_rows({
        label: _read(pipeline.run.folder(stage) / "eval_info.json") for label, stage in stages.items() if stage is not None
    })  # fmt: skip


def _moving(pipeline: Pipeline, policies: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What the rollouts in a moving world gave; None where they were not asked for."""
    stages = pipeline.plan.moving
    if not stages:
        return None
    results = [_read(pipeline.run.folder(stage) / "result.json") for stage in stages.values()]
    labels = {policy["name"]: policy["label"] for policy in policies}
    return {
        "disturbance": envs.disturbance(pipeline.config.task).summary, "dt_s": pipeline.spec.dt_s,
        "every_steps": results[0]["every_steps"], "selection": asdict(pipeline.config.moving_selection),
        "patience": results[0]["patience"], "rows": moving_rows(results, labels, pipeline.config.student.default),
    }  # fmt: skip


def _policy_row(
    pipeline: Pipeline, name: str, result: dict[str, Any], reference: dict[str, Any], latency: dict[str, Any]
) -> dict[str, Any]:
    config, plan, run = pipeline.config, pipeline.plan, pipeline.run
    summary, is_teacher = result["summary"], name.startswith("teacher_")
    kind = "teacher" if is_teacher else "baseline" if name in plan.baselines_evaluated else "student"
    selection = config.evaluate.student_selection
    row: dict[str, Any] = {
        "name": name, "kind": kind, "objective": name if kind == "student" else None,
        "is_default_student": name == config.student.default, "is_reference_teacher": result is reference,
        "parameters": result["parameters"], "nfe": result["nfe"],
        "candidates": selection.candidates if kind == "student" and selection.uses_candidates else 1,
        **success_figures(result, reference, pipeline.spec.modes),
        # not in the results of runs that were made before they were measured
        "switch_rate": summary.get("switch_rate"), "jerk": summary.get("jerk_rms"),
        "outside_observations": summary.get("outside_observations"), "observation_modes": result.get("observation_modes"),
        "latency": latency[name],
        "speedup": latency[f"teacher_{config.evaluate.teacher_steps[0]}"]["median_ms"] / latency[name]["median_ms"],
        "fidelity": result["fidelity"], "validation": None,
    }  # fmt: skip
    if is_teacher:
        steps = int(name.removeprefix("teacher_"))
        row |= {"label": f"Teacher, {steps} step{'s' if steps > 1 else ''}", "num_steps": steps}
        if result is reference and plan.teach is not None:
            row["validation"] = _read(run.folder(plan.teach) / "validation.json")
    elif kind == "baseline":
        row |= {"label": "Nearest demonstration", "num_steps": None}
    else:
        row |= {"label": recipe(name).label, "num_steps": 1,
                "validation": _read(run.folder(plan.students[name]) / "validation.json")}  # fmt: skip
    return row


def success_figures(result: dict[str, Any], reference: dict[str, Any], modes: Sequence[str]) -> dict[str, Any]:
    """How a policy's roll-outs went, with its interval, and against the reference's from the same starts."""
    summary = result["summary"]
    success, its = (np.array([episode["success"] for episode in each["episodes"]]) for each in (result, reference))
    low, high = wilson_interval(summary["successes"], summary["episodes"])
    figures: dict[str, Any] = {
        "episodes": summary["episodes"], "successes": summary["successes"],
        "success_rate": summary["successes"] / summary["episodes"], "success_low": low, "success_high": high,
        "difference": None, "difference_low": None, "difference_high": None, "mcnemar_p": None,
        "failures": summary["failures"], "mode_counts": summary["mode_counts"],
        "modes_reached": summary["modes_reached"], "modes_total": summary["modes_total"], "entropy": summary["entropy"],
        "mode_share_error": None, "mode_share_floor": None, "episode_success": success.tolist(),
    }  # fmt: skip
    if result is not reference:
        difference, difference_low, difference_high = paired_difference(success, its)
        figures |= {"difference": difference, "difference_low": difference_low, "difference_high": difference_high,
                    "mcnemar_p": mcnemar_p(success, its)}  # fmt: skip
        mine, theirs = ([side["summary"]["mode_counts"].get(mode, 0) for mode in modes] for side in (result, reference))
        if sum(mine) and sum(theirs):
            figures["mode_share_error"], figures["mode_share_floor"] = mode_share_error(mine, theirs)
    return figures


def _trained(pipeline: Pipeline) -> list[Stage]:
    plan = pipeline.plan
    return [*([plan.train] if plan.train else []), *plan.train_students.values()]


def _trajectory(episode: dict[str, Any]) -> dict[str, Any]:
    return {"mode": episode["mode"], "success": episode["success"], "failure": episode["failure"], "xy": episode["path"]}


def distilling(config: Config, plan: Plan) -> dict[str, Any]:
    """Seconds of all processors together, and share: what the default student cost, by the teacher's training.

    sample_cpu_s is None when that student is not made from the teacher's samples.
    """

    def cpu_seconds(stage: Stage | None) -> float | None:  # None too for manifests from before it was measured
        manifest = None if stage is None else read_manifest(config.folder / stage.name)
        return (manifest or {}).get("cpu_seconds") or None

    sampled = recipe(config.student.default).data == "hypotheses"
    teacher, sample = cpu_seconds(plan.train), cpu_seconds(plan.sample) if sampled else None
    students = {name: student_seconds(config.folder, name) for name in plan.train_students}
    trained = students[config.student.default]
    known = teacher and trained and (sample or not sampled)
    return {"teacher_cpu_s": teacher, "sample_cpu_s": sample, "students": students,
            "share": (trained + (sample or 0.0)) / teacher if known else None}  # type: ignore[operator]


def student_seconds(run: Path, name: str) -> float | None:
    """Processor seconds of a student's training and of setting the shares of its codes right; None where not measured."""
    trained = (read_manifest(run / f"train/{name}") or {}).get("cpu_seconds") or None
    calibration = run / f"distill/{name}/calibration.json"
    return trained + _read(calibration)["cpu_seconds"] if trained and calibration.is_file() else trained


def cached_figures(folder: Path, weights: tuple[float, ...], most: int = 512) -> dict[str, Any]:
    """ways: how many of the cache's observations have 1, 2, .. modes; repeated_share: of hypotheses like an earlier one."""
    dataset, weights_A = HypothesisDataset(folder), torch.tensor(weights)
    rows = range(0, len(dataset), max(1, len(dataset) // most))
    kept_BK = torch.cat([distinct(embed(chunks, weights_A), SAME_PLAN) for _, chunks in cache_blocks(dataset, rows)])
    ways = modes_of_cache(dataset, weights_A, most)["observations_by_modes"]
    return {"ways": ways, "repeated_share": 1 - float(kept_BK.float().mean())}


def _seconds(folder: Path) -> float | None:
    manifest = read_manifest(folder)
    return None if manifest is None else manifest["seconds"]


def _floor(pipeline: Pipeline) -> dict[str, Any]:
    return floor_figures(pipeline, pipeline.teacher(pipeline.teach()).normaliser)


def floor_figures(pipeline: Pipeline, normaliser: Normaliser) -> dict[str, Any]:
    """Fresh teacher samples against other fresh teacher samples: the distance that sampling alone makes."""
    from safetensors.torch import load_file

    from distill.evaluation.fidelity import set_fidelity

    sets = load_file(str(pipeline.run.folder(pipeline.plan.reference) / "reference.safetensors"))
    normaliser = copy.deepcopy(normaliser).cpu()
    first, second = (normaliser.normalise_action(sets[name]) for name in ("floor", "reference"))
    values: dict[str, Any] = dict(set_fidelity(first, second, torch.tensor(pipeline.spec.action.weights)))
    return values | {"observations": first.shape[0], "samples": first.shape[1]}


def hardware(device: torch.device | None) -> str:
    """The processor (and GPU) in words."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    text = f"{name}, {os.cpu_count()} cores"
    return f"{text}; {torch.cuda.get_device_name(device)}" if device is not None and device.type == "cuda" else text
