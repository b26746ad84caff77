"""What does seeing cost? A policy's whole call for every preset, stage by stage: 50-step teacher beside one-step student.

    python benchmarks/perception.py [--presets detour_points ..] [--calls 200]

Networks of each preset's sizes with random weights, as what a call costs does not depend on them, look at frames of the
simulated cameras. Both policies encode an observation once a call; the student's is chosen among its candidates as the preset
says. Writes benchmarks/results/perception.json, where rows of other presets stay, and the table in docs/cameras.md.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import seeing_page
import torch

import envs
from distill.cli.command import read_command
from distill.config import Config
from distill.evaluation.latency import STAGES, measure_latency
from distill.evaluation.policies import Policy, RawObservation, StudentPolicy, TeacherPolicy
from distill.store.machine import hardware
from distill.worlds import open_world
from envs.specs import STATE
from students.one_step import OneStepStudent
from students.selection import SINGLE_SAMPLE
from teachers import make_teacher
from teachers.networks.normalisation import observed_ranges

ROOT = Path(__file__).resolve().parents[1]
PRESETS = tuple(f"{task}{seen}" for task in ("detour", "handles") for seen in ("", "_points", "_rgb", "_rgbd", "_everything"))
FRAMES = 16


def look(config: Config) -> RawObservation:
    """Raw observations `[FRAMES, O, ..]` at so many starts, as the preset's cameras give them."""
    env = envs.make(config.task, cameras=config.observation.camera_settings())
    seen = [env.reset(seed=seed)[0] for seed in range(FRAMES)]
    env.close()
    steps = config.teacher.observation_steps
    return {name: np.stack([np.stack([frame[name]] * steps) for frame in seen]).astype(np.float32) for name in seen[0]}


def policies(config: Config, seen: RawObservation) -> list[Policy]:
    """The 50-step teacher and the student of the preset, untrained."""
    torch.manual_seed(0)
    shape, student = config.shape(envs.task_spec(config.task)), config.student
    its_shape = replace(shape, width=student.width or shape.width, depth=student.depth or shape.depth)
    ranges = {"state": seen[STATE].reshape(-1, shape.state_size), "action": np.stack([-np.ones(shape.action_size)] * 2)}
    statistics = {name: {"min": rows.min(0), "max": rows.max(0)} for name, rows in ranges.items()}
    statistics |= observed_ranges([{name: torch.from_numpy(values) for name, values in seen.items()}])
    made = [
        make_teacher("flow", shape),
        OneStepStudent(its_shape, student.latent_size, codes=student.codes, shares=student.code_shares),
    ]
    for policy in made:
        policy.normaliser.fit(statistics)
        policy.eval()
    return [TeacherPolicy(made[0], 50), StudentPolicy(made[1], "student")]


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=PRESETS, choices=PRESETS)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=20)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print("| preset | policy | read | preprocess | encode | head | post | whole call [ms] | Hz | ratio |\n|" + "---|" * 10)
    for preset in arguments.presets:
        _, _, config = read_command(["--config", str(ROOT / f"configs/{preset}.yaml")])
        seen = look(config)
        both = policies(config, seen)
        chosen = config.evaluate.student_selection
        measured = measure_latency(
            both, seen, arguments.calls, arguments.warmup, config.evaluate.execution_horizon,
            selection=lambda policy, chosen=chosen: chosen if isinstance(policy, StudentPolicy) else SINGLE_SAMPLE,
        )  # fmt: skip
        read = open_world(config).camera_ms(arguments.calls, arguments.warmup)
        teacher_ms = measured["teacher_50"]["median_ms"]
        for policy in both:
            latency = measured[policy.name]
            rows.append({
                "preset": preset, "policy": policy.name, "read_ms": read, "ratio": teacher_ms / latency["median_ms"],
                "parameters": sum(value.numel() for value in policy.module.parameters()), **latency,
            })  # fmt: skip
            stages = " | ".join(f"{latency['stages'][stage]:.2f}" for stage in STAGES)
            print(
                f"| {preset} | {policy.name} | {'–' if read is None else f'{read:.1f}'} | {stages} | "
                f"{latency['median_ms']:.2f} | {latency['hz']:.0f} | {rows[-1]['ratio']:.1f} |", flush=True,
            )  # fmt: skip
    target = ROOT / "benchmarks/results/perception.json"
    stored = json.loads(target.read_text())["rows"] if target.is_file() else []
    kept = [row for row in stored if row["preset"] not in arguments.presets]
    rows = sorted(kept + rows, key=lambda row: PRESETS.index(row["preset"]))
    target.write_text(json.dumps({"hardware": hardware(None), "threads": 1, "rows": rows}, indent=1) + "\n")
    seeing_page.write()


if __name__ == "__main__":
    main()
