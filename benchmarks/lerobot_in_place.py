"""A LeRobot policy trained by LeRobot, converted in place, and run by plain LeRobot at one evaluation.

    python benchmarks/lerobot_in_place.py --lerobot /path/to/lerobot/bin/python [--task handles] [--seed 0]

benchmarks/lerobot/ holds what LeRobot's interpreter runs: that environment needs no flow2one. What is finished is not done
again. Writes benchmarks/results/lerobot_in_place.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from in_place import FIGURES, demonstrated, train_seconds
from running import ROOT, run_distill

from distill.evaluation.statistics import paired_difference, wilson_interval
from distill.store.machine import hardware
from envs import task_spec

HERE, RESULTS = ROOT / "benchmarks/lerobot", ROOT / "benchmarks/results/lerobot_in_place.json"
CHUNK, STARTS = {"handles": 16, "detour": 24}, 200
"""Actions of a chunk, all executed, by task; test starts."""

SHORT = ("--evaluate.selection", "single", "--evaluate.test-starts", str(STARTS), "--evaluate.validation-starts", "64",
         "--evaluate.fidelity-observations", "16", "--evaluate.fidelity-samples", "16", "--evaluate.latency-calls", "100",
         "--evaluate.latency-warmup", "10", "--evaluate.teacher-steps", "10", "1", "--sample.num-observations", "2048",
         "--sample.num-hypotheses", "12", "--in-place.training-steps", "3000", "--in-place.batch-size", "16")  # fmt: skip
"""One chunk per query, as LeRobot draws it; batches of 16 instead of 32 halve the training time."""

FRESH_STEP_S = 0.04
"""Processor time of a training step of a fresh student, as measured [s]."""


def program(python: str, *arguments: str, **environment: str) -> None:
    """Run a file of HERE by an interpreter. Raises RuntimeError with what it said."""
    here = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run([python, *arguments], env=here, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")


def trained(task: str, seed: int, steps: int, runs: Path, python: str) -> tuple[Path, Path]:
    """The demonstrations, and LeRobot's policy that was trained on them."""
    demos, dataset, policy = demonstrated(task, seed, runs), runs / f"{task}-dataset{seed}", runs / f"{task}-policy{seed}"
    if not dataset.is_dir():
        program(python, str(ROOT / "lerobot_env_flow2one/__main__.py"), str(demos), str(dataset))
    if not (policy / "pretrained_model").is_dir():
        chunk = str(CHUNK[task])
        program(python, str(HERE / "train.py"), str(dataset), str(policy), "--seed", str(seed), "--steps", str(steps),
                "--chunk", chunk, "--executed", chunk)  # fmt: skip
    return demos, policy


def converted(task: str, seed: int, demos: Path, policy: Path, out: Path, python: str, *flags: str) -> dict[str, Any]:
    """The report of a conversion."""
    run_distill(
        "convert", "--teacher", f"{ROOT / 'teachers/adapters/lerobot_policies.py'}:build", "--adapter.python", python,
        "--adapter.arguments", f"path={policy / 'pretrained_model'}", f"instruction={task_spec(task).summary}",
        "--observations", str(demos), "--task", task, "--out", str(out), "--seed", str(seed),
        "--evaluate.execution-horizon", str(CHUNK[task]), *SHORT, *flags,
    )  # fmt: skip
    return dict(json.loads((out / "report" / "report.json").read_text()))


def by_lerobot_eval(task: str, seed: int, policy: Path, out: Path, python: str) -> dict[str, Any]:
    """What `lerobot-eval` finds from the same test starts, the simulator in a process of this interpreter."""
    spec, counts = task_spec(task), out / "counts.json"
    if not counts.is_file():
        command = json.dumps([sys.executable, str(HERE / "world.py"), task, str(seed)])
        out.mkdir(exist_ok=True)
        program(
            python, str(HERE / "counted_eval.py"), str(counts), f"--policy.path={policy}", "--policy.device=cpu",
            "--env.type=other_process", "--env.discover_packages_path=gym_other_process", f"--env.command={command}",
            f"--env.state_size={len(spec.state_names)}", f"--env.action_size={spec.action.size}",
            f"--env.max_steps={spec.max_steps}", "--seed=0", f"--eval.n_episodes={STARTS}", "--eval.batch_size=1",
            f"--output_dir={out}", PYTHONPATH=str(HERE),
        )  # fmt: skip
    told = json.loads((out / "eval_info.json").read_text())
    successes = [bool(each) for group in told["per_task"] for each in group["metrics"]["successes"]]
    return {"episode_success": successes, **json.loads(counts.read_text())}


def row_of(policy: dict[str, Any], seconds: float | None) -> dict[str, Any]:
    names = ("label", "nfe", "candidates", "episodes", "successes", "success_rate", "success_low", "success_high", "difference",
             "difference_low", "difference_high", "entropy")  # fmt: skip
    found = {name: policy.get(name) for name in names} | {name: policy["fidelity"][name] for name in FIGURES}
    return found | {"median_ms": policy["latency"]["median_ms"], "training_cpu_s": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lerobot", required=True, help="an interpreter with LeRobot 0.6.1 and without flow2one")
    parser.add_argument("--task", default="handles", choices=sorted(CHUNK))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4000, help="training steps of LeRobot's policy")
    parser.add_argument("--runs-dir", type=Path, default=ROOT / "runs" / "lerobot")
    options = parser.parse_args()
    task, seed, runs = options.task, options.seed, options.runs_dir.resolve()
    demos, policy = trained(task, seed, options.steps, runs, options.lerobot)
    out = runs / f"{task}-convert{seed}"
    told = converted(task, seed, demos, policy, out, options.lerobot, "--student.kind", "in_place")
    found = {each["name"]: each for each in told["policies"]}
    spent = train_seconds(out, "in_place")
    rows = [row_of(each, spent if each["name"] == "in_place" else None) for each in found.values()]
    own, place = runs / f"{task}-one-step{seed}", runs / f"{task}-lerobot-eval{seed}"
    shutil.copytree(out / "distill/in_place/policy", own, dirs_exist_ok=True)
    fresh_steps = str(max(120, round(spent / FRESH_STEP_S)))
    with ThreadPoolExecutor() as pool:  # beside the fresh student's training
        evaluated = pool.submit(by_lerobot_eval, task, seed, own, place, options.lerobot)
        flags = ("--student.kind", "fresh", "--student.training-steps", fresh_steps)
        fresh = converted(task, seed, demos, policy, out, options.lerobot, *flags)
        plain = evaluated.result()
    rows.append(row_of(fresh["policies"][-1], train_seconds(out, "chamfer")))
    teacher = next(each for each in found.values() if each["is_reference_teacher"])["episode_success"]
    difference = paired_difference(torch.tensor(plain["episode_success"]).numpy(), torch.tensor(teacher).numpy())
    results = {
        "task": task, "seed": seed, "hardware": hardware(torch.device("cpu")), "threads": 1, "test_starts": STARTS,
        "lerobot_training": json.loads((policy / "training.json").read_text()), "rows": rows,
        "lerobot_eval": {**plain, "success_rate": sum(plain["episode_success"]) / STARTS,
                         "interval": wilson_interval(sum(plain["episode_success"]), STARTS), "minus_teacher": difference},
    }  # fmt: skip
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
