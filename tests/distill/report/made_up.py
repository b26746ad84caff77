"""A made-up run of three policies, as the stage `report` collects it."""

from __future__ import annotations

import math
from typing import Any

PATH = [[0.0, 0.0], [0.1, 0.05], [0.2, 0.0]]


def policy(name: str, label: str, kind: str, **changes: Any) -> dict[str, Any]:
    """One of its policies."""
    made = {
        "name": name, "label": label, "kind": kind, "objective": None, "is_default_student": False,
        "is_reference_teacher": False, "parameters": 1234567, "num_steps": 1, "nfe": 1, "episodes": 200,
        "successes": 196, "success_rate": 0.98, "success_low": 0.9496, "success_high": 0.9922, "difference": None,
        "difference_low": None, "difference_high": None, "mcnemar_p": None, "failures": {"collision": 3, "timeout": 1},
        "mode_counts": {"left": 100, "right": 96}, "modes_reached": 2, "modes_total": 2, "entropy": 0.9997,
        "mode_share_error": None, "mode_share_floor": None, "switch_rate": 0.25, "jerk": 12.34,
        "out_of_distribution_share": 0.0123,
        "observation_modes": {"observations": 64, "observations_by_modes": [50, 14], "share_error": 0.0712,
                              "share_error_floor": 0.0534},
        "latency": {
            "median_ms": 2.0, "p95_ms": 2.5, "p99_ms": 3.2, "hz": 500.0, "actions_per_second": 4000.0, "calls": 200,
            "warmup": 20, "stages": {"preprocess_ms": 0.1, "encode_ms": 0.4, "head_ms": 1.4, "post_ms": 0.1},
        },
        "speedup": 40.0,
        "fidelity": {
            "chamfer_student_to_teacher": 0.111, "chamfer_teacher_to_student": 0.142, "energy_distance": 0.00417,
            "precision": 0.902, "recall": 0.893, "coverage": 0.874, "off_support_share": 0.021, "observations": 64,
            "samples": 32,
        },
        "validation": None, "episode_success": [True] * 196 + [False] * 4,
    }  # fmt: skip
    return made | changes


def run() -> dict[str, Any]:
    """All of it, anew at every call."""
    latency = {
        "median_ms": 80.0, "p95_ms": 90.0, "p99_ms": 101.0, "hz": 12.5, "actions_per_second": 100.0, "calls": 200,
        "warmup": 20, "stages": {"preprocess_ms": 0.1, "encode_ms": 0.4, "head_ms": 79.4, "post_ms": 0.1},
    }  # fmt: skip
    teacher = policy("teacher_50", "Teacher, 50 steps", "teacher", nfe=50, num_steps=50, latency=latency, speedup=1.0,
                      fidelity=None, is_reference_teacher=True)  # fmt: skip
    regression = policy(
        "regression", "Student, regression", "student", objective="regression", successes=10, success_rate=0.05,
        success_low=0.0274, success_high=0.0896, switch_rate=None, jerk=None, difference=-0.93,
        difference_low=-0.965, difference_high=-0.89, mcnemar_p=1e-40, mode_counts={"left": 10}, modes_reached=1, entropy=0.0,
        failures={"collision": 190}, out_of_distribution_share=None, observation_modes=None,
    )  # fmt: skip
    student = policy(
        "chamfer_energy", "Student, Chamfer + energy", "student", objective="chamfer_energy", is_default_student=True,
        successes=193, success_rate=0.965, success_low=0.9295, success_high=0.983, difference=-0.015,
        difference_low=-0.04, difference_high=0.01, mcnemar_p=0.4531, entropy=0.9876, switch_rate=0.0625, jerk=9.876,
        mode_share_error=0.0612, mode_share_floor=0.0638,
        failures={"collision": 5, "timeout": 2, "dropped": 0},
        validation=[{"step": 1000, "success_rate": 0.9, "entropy": 0.97, "chosen": False},
                    {"step": 2000, "success_rate": 0.96, "entropy": 0.98, "chosen": True}],
    )  # fmt: skip
    rollouts = [
        {"mode": "left", "success": True, "failure": None, "xy": PATH},
        {"mode": None, "success": False, "failure": "collision", "xy": PATH[:2]},
    ]
    return {
        "schema_version": 1,
        "kind": "run",
        "run": "a_run",
        "measured_success": True,
        "task": {"name": "pillar", "summary": "Carry a cube past a pillar.", "modes": ["left", "right"], "dt_s": 0.05,
                 "max_steps": 100, "action_names": ["x_m", "y_m"]},
        "made": {"date": "2026-11-20", "seed": 7, "hardware": "2 cores", "threads": 1, "dtype": "float32",
                 "packages": {"torch": "2.13.0"}, "wall_s": {"demos": 41.25, "distill/chamfer": 340}, "processes": 1},
        "data": {"episodes": 240, "frames": 19200, "observations": 2048, "hypotheses_per_observation": 64,
                 "cache_num_steps": 50, "cache_bytes": 67_100_000, "observations_by_modes": [75, 20, 0, 5],
                 "repeated_share": 0.125},
        "distilling": {"teacher_cpu_s": 640.0, "sample_cpu_s": 60.2, "students": {"regression": 20.0, "chamfer_energy": 74.6},
                       "share": 0.210625},
        "policies": [teacher, regression, student],
        "curves": {"teacher": [{"step": 0, "loss": 1.0}, {"step": 10, "loss": math.nan}, {"step": 20, "loss": 0.01}],
                   "regression": [{"step": 0, "loss": 0.0}], "chamfer": []},
        "scene": [{"kind": "circle", "xy": [0.1, 0.0], "size": [0.02, 0.02], "role": "obstacle", "label": "pillar"},
                  {"kind": "box", "xy": [0.2, 0.0], "size": [0.03, 0.03], "role": "goal", "label": "$a$b$"}],
        "trajectories": {"teacher_50": rollouts, "regression": rollouts[1:], "chamfer_energy": rollouts},
        "explored": {
            "actions": ["x_m", "y_m"], "dt_s": 0.05, "state_names": ["tool_x_m", "tool_y_m"],
            "observations": [{"row": 4, "state": [0.0, 0.0], "picture": ""}, {"row": 1, "state": [0.15, -0.05], "picture": ""}],
            "sets": {"teacher_50": [[PATH, PATH], [PATH]], "chamfer_energy": [[PATH], [PATH[:2], PATH]]},
        },
        "planned_sets": {"observation_xy": [0.0, 0.0], "teacher_50": [PATH, PATH], "chamfer_energy": [PATH]},
        "clips": {},
        "fidelity_floor": {"chamfer_student_to_teacher": 0.1, "chamfer_teacher_to_student": 0.1,
                           "energy_distance": 0.0009, "precision": 0.95, "recall": 0.95, "coverage": 0.97,
                           "off_support_share": 0.01},
    }  # fmt: skip
