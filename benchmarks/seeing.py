"""Is a student as good as its teacher when both only see? Every preset with cameras: trained, rolled out and paired.

    python benchmarks/seeing.py [--presets detour_points ..] [--seeds 0 1] [--runs-dir runs]

A row is one run of distill.py, `<preset>-seed<n>`, so what is finished is not done again. Writes
benchmarks/results/seeing.json and the table in docs/cameras.md, and prints one with what training took, seeds pooled.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import seeing_page
from running import ROOT, run_distill

from distill.evaluation.statistics import mode_entropy, paired_difference
from distill.stages.report import student_seconds
from distill.store.machine import hardware

TARGET = ROOT / "benchmarks/results/seeing.json"
PRESETS = tuple(f"{task}_{seen}" for task in ("detour", "handles") for seen in ("points", "rgbd", "rgb", "everything"))
POLICIES = ("teacher_50", "teacher_10", "chamfer")
FLAGS = ("--student.objectives", "chamfer", "--evaluate.teacher-steps", "50", "10")


def measure(runs_dir: Path, preset: str, seed: int) -> dict[str, Any]:
    """Do one preset with one seed and return what was measured."""
    name = f"{preset}-seed{seed}"
    run_distill("report", "--config", f"configs/{preset}.yaml", "--runs-dir", str(runs_dir), "--name", name,
                "--seed", str(seed), *FLAGS)  # fmt: skip
    folder = runs_dir / name

    def read(path: str) -> Any:
        return json.loads((folder / path).read_text())

    latency, found = read("latency/latency.json"), {}
    for policy in POLICIES:
        result = read(f"evaluate/{policy}/result.json")
        found[policy] = {
            "success": "".join("01"[episode["success"]] for episode in result["episodes"]),
            "mode_counts": result["summary"]["mode_counts"], "failures": result["summary"]["failures"],
            "off_support_share": result["fidelity"]["off_support_share"], "parameters": result["parameters"],
            "latency": latency[policy],
        }  # fmt: skip
    return {
        "preset": preset, "seed": seed, "policies": found,
        "teacher_cpu_s": read("train/teacher/manifest.json")["cpu_seconds"],
        "sample_cpu_s": read("sample/manifest.json")["cpu_seconds"], "student_cpu_s": student_seconds(folder, "chamfer"),
    }  # fmt: skip


def show(rows: list[dict[str, Any]]) -> None:
    """The table, a preset's seeds pooled."""
    print("| preset | seeds | teacher | student | difference | modes of teacher | modes of student | teacher trained | "
          "distilling | call, teacher / student [ms] |\n|" + "---|" * 10)  # fmt: skip
    for preset in dict.fromkeys(row["preset"] for row in rows):
        mine = [row for row in rows if row["preset"] == preset]

        def pooled(policy: str, mine: list[dict[str, Any]] = mine) -> np.ndarray:
            return np.array([mark == "1" for row in mine for mark in row["policies"][policy]["success"]])

        def ways(policy: str, mine: list[dict[str, Any]] = mine) -> str:
            told = [row["policies"][policy]["mode_counts"] for row in mine]
            counts = {name: sum(each[name] for each in told) for name in told[0]}
            return " : ".join(map(str, counts.values())) + f", entropy {mode_entropy(list(counts.values()), len(counts)):.3f}"

        teacher, student = pooled("teacher_50"), pooled("chamfer")
        gap, low, high = (100 * value for value in paired_difference(student, teacher))
        trained = sum(row["teacher_cpu_s"] for row in mine)
        cost = sum(row["sample_cpu_s"] + row["student_cpu_s"] for row in mine) / trained
        times = [np.median([row["policies"][name]["latency"]["median_ms"] for row in mine]) for name in POLICIES[::2]]
        print(
            f"| {preset} | {', '.join(str(row['seed']) for row in mine)} | {100 * teacher.mean():.1f} % | "
            f"{100 * student.mean():.1f} % of {len(student)} | {gap:+.1f} ({low:+.1f} to {high:+.1f}) | {ways('teacher_50')} | "
            f"{ways('chamfer')} | {trained / len(mine) / 60:.0f} min | {100 * cost:.0f} % | {times[0]:.1f} / {times[1]:.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, default=ROOT / "runs")
    parser.add_argument("--presets", nargs="+", default=PRESETS, choices=PRESETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    arguments = parser.parse_args()
    stored = json.loads(TARGET.read_text())["rows"] if TARGET.is_file() else []
    rows = {(row["preset"], row["seed"]): row for row in stored}
    for seed in arguments.seeds:
        for preset in arguments.presets:
            print(f"{preset} seed {seed}", file=sys.stderr, flush=True)
            rows[preset, seed] = measure(arguments.runs_dir, preset, seed)
            ordered = [rows[key] for key in sorted(rows)]
            TARGET.write_text(json.dumps({"hardware": hardware(None), "rows": ordered}, indent=0) + "\n")
    seeing_page.write()
    show([rows[key] for key in sorted(rows)])


if __name__ == "__main__":
    main()
