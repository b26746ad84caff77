"""Which objective keeps success and every mode? All, with ablations and one-step baselines, all tasks, all seeds.

    python benchmarks/objectives.py [--phases main objectives ..] [--tasks avoid ..] [--seeds 0 1 2] [--workers 2]

A row is one run of distill.py, so the grid resumes as that does; what is finished is not done again. Each task and seed is
one folder in --runs-dir; its teacher and its hypotheses are shared by all rows that do not change them. Writes
benchmarks/results/objectives/<task>-seed<seed>.json; benchmarks/results_page.py writes docs/results.md from these.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from running import ROOT, run_distill

from distill.stages.report import student_seconds
from distill.store.machine import hardware

RESULTS = ROOT / "benchmarks/results/objectives"
TASKS = ("avoid", "detour", "handles")
DEFAULT = "chamfer"
SETS = ("chamfer_energy", "anchored", "imle", "rs_imle", "rs_imle_adaptive", "set_imle", "soft_chamfer", "large_pool",
        "hungarian", "sinkhorn", "energy_distance", "fidelity", "noise_regression")  # fmt: skip
ONE_STEP_BASELINES = ("reflow", "consistency", "shortcut", "mean_flow")
# a public study of this task (D3IL's avoiding) lost half of its modes at 7.24 times fewer parameters
SMALL = ("--student.width", "44", "--student.training-steps", "6000", "--student.learning-rate", "0.004")

# the teacher is also queried at perturbed observations, as demonstrations are few (docs/lab-notes.md)
FEW = ("--sample.num-observations", "4096", "--sample.perturbation", "0.2", "--student.training-steps", "1500")


@dataclass(frozen=True)
class Row:
    """recipes: the students; flags: what the row changes; name: of a run folder of its own, where it changes the teacher."""

    label: str
    recipes: tuple[str, ...]
    flags: tuple[str, ...] = ()
    name: str = ""
    tasks: tuple[str, ...] = TASKS
    seeds: tuple[int, ...] = (0, 1, 2)
    teacher_steps: tuple[int, ...] = (50,)


def _ablation(label: str, *flags: str) -> Row:
    return Row(label, (DEFAULT,), flags, tasks=("avoid",), seeds=(0,))


def _demonstrations(count: int) -> tuple[Row, ...]:
    flags = ("--demos.train-starts", str(count), "--demos.episodes", str(count), "--teacher.training-steps", "1500")
    where: tuple[str, tuple[str, ...], tuple[int, ...]] = (f"demos{count}", ("detour", "handles"), (0,))
    label = f"{count} demonstrations"
    return Row(label, (DEFAULT,), (*flags, *FEW), *where), Row(label, ("imle_policy",), flags, *where)


PHASES: dict[str, tuple[Row, ...]] = {
    "main": (Row("", (DEFAULT, "regression"), teacher_steps=(50, 10, 4, 2, 1)),),
    "small": (Row("7.6 x fewer parameters", (DEFAULT,), SMALL),),
    "baselines": tuple(Row("", (name,)) for name in ONE_STEP_BASELINES),
    "objectives": (
        *(Row("", (name,), seeds=(0,)) for name in SETS),
        *(Row("", (f"rs_imle@{value}",), tasks=("avoid",), seeds=(0,)) for value in ("0.01", "0.1")),
    ),
    "demonstrations": tuple(row for count in (10, 20, 50, 100) for row in _demonstrations(count)),
    "teachers": (
        Row("time biased towards noise", (), ("--teacher.time-power", "2"), "biased", teacher_steps=(50, 4, 2, 1), seeds=(0,)),
        Row("diffusion teacher", (DEFAULT,), ("--teacher.kind", "diffusion"), "diffusion", ("detour", "handles"), (0,),
            (50, 10, 1)),
        Row("energy teacher", (DEFAULT,), ("--teacher.kind", "energy"), "energy", ("handles",), (0,)),
    ),  # fmt: skip
    "ablations": (
        _ablation("all codes alike", "--student.no-code-shares"),
        _ablation("codes = 0, latent size = 8", "--student.codes", "0", "--student.latent-size", "8"),
        *(_ablation(f"codes = {codes}", "--student.codes", str(codes)) for codes in (32, 512)),
        _ablation("codes = 128 and 4 linear numbers", "--student.codes", "128", "--student.latent-size", "5"),
        *(_ablation(f"K = {k}", "--sample.num-hypotheses", str(k)) for k in (4, 32)),
        *(_ablation(f"M = {m}", "--student.num-latents", str(m)) for m in (2, 4, 16)),
        *(_ablation(f"observations = {n}", "--sample.num-observations", str(n)) for n in (512, 8192)),
        *(_ablation(f"teacher steps = {steps}", "--sample.num-steps", str(steps)) for steps in (4, 25)),
        _ablation("no warm start", "--student.no-warm-start"),
        _ablation("all actions alike", "--student.unexecuted-weight", "1"),
        *(_ablation(f"width {width}", "--student.width", str(width)) for width in (32, 64, 96)),
        *(_ablation(f"selection: {kind}", "--evaluate.selection", kind)
          for kind in ("single", "temporal_consistency", "kept_latent")),
    ),
}


@dataclass
class Group:
    """One task and seed: its rows are done one after the other."""

    task: str
    seed: int
    rows: list[tuple[str, Row]] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return RESULTS / f"{self.task}-seed{self.seed}.json"


def measure(runs_dir: Path, task: str, seed: int, phase: str, row: Row) -> list[dict[str, Any]]:
    """Do one row and return what was measured: a dictionary for every policy in it."""
    name = f"{task}-seed{seed}{'-' + row.name if row.name else ''}"
    recipes = row.recipes or ("regression",)  # a row about a teacher alone: its cheapest student is the price
    run_distill(
        "evaluate", "--config", f"configs/{task}.yaml", "--runs-dir", str(runs_dir), "--name", name, "--seed", str(seed),
        "--student.objectives", *recipes, "--student.default", recipes[0],
        "--evaluate.teacher-steps", *map(str, row.teacher_steps), "--evaluate.latency-calls", "1", *row.flags,
    )  # fmt: skip
    folder = runs_dir / name

    def read(path: str) -> Any:
        return json.loads((folder / path).read_text())

    def seconds(stage: str) -> float | None:
        path = folder / stage / "manifest.json"
        return json.loads(path.read_text())["cpu_seconds"] if path.is_file() else None

    found = []
    for policy in (*(f"teacher_{steps}" for steps in row.teacher_steps), *row.recipes):
        result = read(f"evaluate/{policy}/result.json")
        summary = result["summary"]
        found.append({
            "phase": phase, "row": row.label, "policy": policy, "flags": list(row.flags), "nfe": result["nfe"],
            "parameters": result["parameters"], "success": "".join("01"[episode["success"]] for episode in result["episodes"]),
            "mode_counts": summary["mode_counts"], "entropy": summary["entropy"], "modes_total": summary["modes_total"],
            "switch_rate": summary.get("switch_rate"), "jerk": summary.get("jerk_rms"),
            "fidelity": {key: round(value, 6) for key, value in result["fidelity"].items()},
            "teacher_cpu_s": seconds("train/teacher"), "sample_cpu_s": seconds("sample"),
            "train_cpu_s": student_seconds(folder, policy),
        })  # fmt: skip
    return found


def work(group: Group, runs_dir: Path) -> None:
    """Do the group's rows that are not there yet, writing after each."""
    stored = json.loads(group.path.read_text()) if group.path.is_file() else {"rows": []}
    rows: list[dict[str, Any]] = stored["rows"]
    for phase, row in group.rows:
        wanted = {(phase, row.label, tuple(row.flags), policy) for policy in row.recipes or ("teacher_50",)}
        if wanted <= {(one["phase"], one["row"], tuple(one["flags"]), one["policy"]) for one in rows}:
            continue
        print(f"{group.task} seed {group.seed}: {phase} {row.label} {' '.join(row.recipes)}", flush=True)
        try:
            found = measure(runs_dir, group.task, group.seed, phase, row)
        except RuntimeError as error:
            print(f"FAILED {group.task} seed {group.seed} {phase} {row.label}\n{error}", file=sys.stderr, flush=True)
            continue
        rows += found
        group.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"task": group.task, "seed": group.seed, "hardware": hardware(None), "rows": rows}, indent=0)
        group.path.write_text(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, default=ROOT / "runs")
    parser.add_argument("--phases", nargs="+", choices=tuple(PHASES), default=tuple(PHASES))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    for phase in arguments.phases:  # a whole phase first, so that what is there can be compared
        groups = [Group(task, seed, [(phase, row) for row in PHASES[phase] if task in row.tasks and seed in row.seeds])
                  for seed in arguments.seeds for task in arguments.tasks]  # fmt: skip
        with ThreadPoolExecutor(arguments.workers) as pool:
            list(pool.map(lambda group: work(group, arguments.runs_dir), [group for group in groups if group.rows]))
    subprocess.run([sys.executable, str(ROOT / "benchmarks/results_page.py")], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
