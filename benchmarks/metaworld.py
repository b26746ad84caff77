"""Meta-World from nothing to a report, a task and a seed at a time, and docs/metaworld.md, the table of all of them.

    python benchmarks/metaworld.py --python /path/to/metaworld/python --tasks reach push --seeds 0 1 [--runs-dir runs]
    python benchmarks/metaworld.py       # measures nothing: writes the page again from benchmarks/results/metaworld.json

Each row is one `flow2one --config metaworld/<task> --seed <seed>`; what is finished is not done again, so a stopped benchmark
goes on with the same command. Then the student's last five checkpoints are rolled out from test starts, for the papers' score.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from running import ROOT

from distill import api
from distill.config import Config
from distill.evaluation.policies import StudentPolicy
from distill.evaluation.statistics import paired_difference, wilson_interval
from distill.inputs.rollouts import Rollouts
from distill.presets import apply_preset
from distill.report.tables import NOTHING, percent, points
from distill.runtime.context import Context
from distill.store.manifest import read_manifest
from distill.worlds import open_world
from students import load_student

RESULTS = ROOT / "benchmarks/results/metaworld.json"
PAGE = ROOT / "docs/metaworld.md"
BEGIN, END = "<!-- written by benchmarks/metaworld.py -->\n", "<!-- end of what it wrote -->\n"
BEST, PAPER_EPISODES = 5, 20
"""The papers' score: the mean success of the five best checkpoints, each on 20 test episodes (DP3 and those after it)."""
GROUPS = ("easy", "medium", "hard", "very hard")


def config_of(task: str, seed: int, python: str, runs_dir: Path) -> Config:
    """The run's config."""
    config = apply_preset(Config(), Path(f"metaworld/{task}"))
    world = dataclasses.replace(config.world, python=python, clips=False)
    return dataclasses.replace(config, world=world, seed=seed, runs_dir=runs_dir)


def papers_score(config: Config) -> list[float]:
    """Success of each of the student's checkpoints on the first test episodes."""
    evaluate, found = config.evaluate, []
    with contextlib.closing(open_world(config)) as world, Context.open(config.folder, config.wandb) as context:
        rollouts = Rollouts(world, config.seed, evaluate.execution_horizon, evaluate.student_selection)
        starts = world.drawn_starts(config.seed, "test", evaluate.test_starts)[:PAPER_EPISODES]
        folder = config.folder / "papers"
        folder.mkdir(exist_ok=True)
        for path in sorted((config.folder / "train" / config.student.default).glob("candidate-*")):
            policy = StudentPolicy(load_student(path), config.student.default)
            episodes = rollouts.run(context, policy, starts, "test", folder, path.name)
            found.append(float(np.mean([episode.success for episode in episodes])))
    return found


def measure(task: str, seed: int, python: str, runs_dir: Path) -> dict[str, Any]:
    """One run, and what the page needs of it."""
    config = config_of(task, seed, python, runs_dir)
    api.run(config)
    results = json.loads((config.folder / "report/report.json").read_text())
    spent = {stage: read_manifest(config.folder / stage) or {} for stage in results["made"]["wall_s"]}
    training = [stage for stage in spent if stage.startswith(("train/", "sample"))]
    kept = ("name", "label", "kind", "nfe", "successes", "episodes", "failures", "episode_success", "is_reference_teacher",
            "is_default_student", "out_of_distribution_share")  # fmt: skip
    return {
        "task": task, "seed": seed, "date": results["made"]["date"], "hardware": results["made"]["hardware"],
        "versions": {name: results["gym"][name] for name in ("metaworld", "mujoco")},
        "demonstrations": results["data"]["episodes"], "frames": results["data"]["frames"],
        "policies": [{**{name: row.get(name) for name in kept}, "call_ms": row["latency"]["median_ms"]}
                     for row in results["policies"]],
        "training_cpu_minutes": sum(spent[stage].get("cpu_seconds", 0.0) for stage in training) / 60,
        "training_minutes": sum(spent[stage].get("seconds", 0.0) for stage in training) / 60,
        "papers": papers_score(config),
    }  # fmt: skip


def store(row: Mapping[str, Any]) -> None:
    """Add a run to the results, in place of an earlier one of its task and seed."""
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"rows": []}
    rows = [each for each in found["rows"] if (each["task"], each["seed"]) != (row["task"], row["seed"])]
    RESULTS.write_text(json.dumps({"rows": [*rows, row]}, indent=1) + "\n")


def group_of(task: str) -> str:
    """Easy, medium, hard or very hard, as the preset's first line says it."""
    text = (ROOT / f"configs/metaworld/{task}.yaml").read_text().splitlines()[0]
    return next(group for group in reversed(GROUPS) if f"its {group} tasks" in text)


def section(found: Mapping[str, Any]) -> str:
    """The table, a row per task with its seeds pooled, and the means of all tasks."""
    rows = sorted(found["rows"], key=lambda row: (GROUPS.index(group_of(row["task"])), row["task"], row["seed"]))
    lines = ["| task | group | seeds | teacher, 10 steps | teacher, 1 step | student, 1 NFE | student minus teacher, points | "
             "papers' score, student | teacher [Hz] | student [Hz] | training [CPU min] |", "|" + "---|" * 11]  # fmt: skip
    means: list[list[float]] = []
    for task in dict.fromkeys(row["task"] for row in rows):
        same = [row for row in rows if row["task"] == task]
        teacher, once, student = (_pooled(same, name) for name in ("teacher_10", "teacher_1", "chamfer"))
        gap, low, high = paired_difference(student["success"], teacher["success"])
        papers = float(np.mean([np.mean(sorted(row["papers"])[-BEST:]) for row in same]))
        means.append([float(np.mean(teacher["success"])), float(np.mean(once["success"])),
                      float(np.mean(student["success"])), papers])
        minutes = np.mean([row["training_cpu_minutes"] for row in same])
        cells = [f"`{task}`", group_of(task), str(len(same)), *(_success(each["success"]) for each in (teacher, once, student)),
                 f"{points(gap)} ({points(low)} to {points(high)})", percent(papers), f"{1000 / teacher['call_ms']:.0f}",
                 f"{1000 / student['call_ms']:.0f}", f"{minutes:.1f}"]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    total = np.mean(means, axis=0)
    lines.append(f"| **mean of {len(means)} tasks** | | | {' | '.join(f'**{percent(value)}**' for value in total[:3])} | "
                 f"**{points(total[2] - total[0])}** | **{percent(total[3])}** | | | |")  # fmt: skip
    machine = f"{rows[0]['hardware']}; metaworld {rows[0]['versions']['metaworld']}, mujoco {rows[0]['versions']['mujoco']}"
    return "\n".join([*lines, "", f"Measured on {machine}, {rows[0]['date'][:10]}."]) + "\n"


def _pooled(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    policies = [policy for row in rows for policy in row["policies"] if policy["name"] == name]
    success = np.concatenate([policy["episode_success"] for policy in policies]).astype(bool)
    return {"success": success, "call_ms": float(np.median([policy["call_ms"] for policy in policies]))}


def _success(marks: np.ndarray) -> str:
    low, high = wilson_interval(int(marks.sum()), len(marks))
    return f"{marks.sum()} of {len(marks)} ({percent(low)} to {percent(high)})" if len(marks) else NOTHING


def written(page: str, found: Mapping[str, Any]) -> str:
    """The page with the table as the results are now. Raises ValueError for a page without a place for it."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"got a page without the two lines {BEGIN!r} and {END!r}, expected each once, around the table")
    before, rest = page.split(BEGIN)
    return before + BEGIN + section(found) + END + rest.split(END)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=[])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--python", default="", help="the interpreter that Meta-World is installed in")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    given = parser.parse_args()
    for seed in given.seeds:
        for task in given.tasks:
            store(measure(task, seed, given.python, given.runs_dir))
            print(task, seed, flush=True)
    PAGE.write_text(written(PAGE.read_text(), json.loads(RESULTS.read_text())))
    print(PAGE)


if __name__ == "__main__":
    main()
