"""RLBench from nothing to a report, a task and a seed at a time, and docs/rlbench-results.md, the table of all of them.

    python benchmarks/rlbench.py --tasks reach_target open_drawer_state --seeds 0 1 [--runs-dir runs] [-- flags of flow2one]
    python benchmarks/rlbench.py            # measures nothing: writes the page again from benchmarks/results/rlbench.json

Each row is one `flow2one --config configs/rlbench/<task>.yaml --config configs/rlbench/small.yaml --seed <seed>`, without the
latter for a preset from the state; what is finished is not done again, so a stopped benchmark goes on with the same command,
days later. It needs a simulator (docs/rlbench.md).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.evaluation.statistics import paired_difference, wilson_interval
from distill.report.tables import NOTHING, percent, points
from distill.store.manifest import read_manifest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/rlbench.json"
PAGE = ROOT / "docs/rlbench-results.md"
BEGIN, END = "<!-- written by benchmarks/rlbench.py -->\n", "<!-- end of what it wrote -->\n"
KEPT = ("name", "label", "kind", "num_steps", "nfe", "episode_success", "failures", "refused_actions", "is_default_student",
        "is_reference_teacher")  # fmt: skip


def measure(task: str, seed: int, runs: Path, flags: Sequence[str]) -> Path:
    """The run's folder, finished. Raises RuntimeError where it stopped."""
    name = f"rlbench-{task}-seed{seed}"
    # presets from the state have small sizes of their own
    sizes = [] if task.endswith("_state") else ["--config", "configs/rlbench/small.yaml"]
    command = [
        sys.executable, "distill.py", "--config", f"configs/rlbench/{task}.yaml", *sizes, "--seed", str(seed), "--runs-dir",
        str(runs), "--name", name, *flags,
    ]  # fmt: skip
    if subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode:
        raise RuntimeError(f"{' '.join(command)} stopped; the same command goes on")
    return runs / name


def collected(run: Path) -> dict[str, Any]:
    """What the table needs of a finished run."""
    results = json.loads((run / "report/report.json").read_text())
    seconds = {stage: (read_manifest(run / stage) or {}).get("seconds", 0.0) for stage in results["made"]["wall_s"]}
    config = results["made"]["config"]
    return {
        "task": results["task"]["name"].removeprefix("rlbench/"), "seed": results["made"]["seed"],
        "date": results["made"]["date"], "hardware": results["made"]["hardware"], "processes": results["made"]["processes"],
        "demonstrations": results["data"]["episodes"], "arm": config["rlbench"]["arm"],
        "training_steps": config["teacher"]["training_steps"], "sources": config["observation"]["sources"],
        "max_steps": results["rlbench"]["max_steps"],
        "oracle": {name: results["oracle"][name] for name in ("episodes", "successes", "failures")},
        "generalisation": results.get("generalisation"),
        "policies": [{**{name: row.get(name) for name in KEPT}, "call_ms": row["latency"]["median_ms"]}
                     for row in results["policies"]],
        "minutes": {
            "recording": (seconds.get("demos", 0) + seconds.get("starts", 0)) / 60,
            "training": sum(value for stage, value in seconds.items() if stage.startswith(("train/", "sample"))) / 60,
            "all": sum(seconds.values()) / 60,
        },
    }  # fmt: skip


def pooled(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The policies of one task's runs, each with the episodes of all seeds."""
    made: dict[str, dict[str, Any]] = {}
    for row in rows:
        for policy in row["policies"]:
            empty = {"episode_success": [], "failures": Counter(), "calls": [], "refused_actions": 0}
            entry = made.setdefault(policy["name"], {**policy, **empty})
            entry["episode_success"] = entry["episode_success"] + policy["episode_success"]
            entry["calls"].append(policy["call_ms"])
            entry["refused_actions"] += policy["refused_actions"]
            entry["failures"] = entry["failures"] + Counter(policy["failures"])
    return list(made.values())


def section(found: Mapping[str, Any]) -> str:
    """The tables: success and speed of every policy, then errors on new scenes and minutes of each run."""
    rows = sorted(found["rows"], key=lambda row: (row["task"], row["sources"], row["seed"]))
    lines = ["| task | observation | policy | evaluations per chunk | success | 95 % interval | minus teacher, points | "
             "failures | refused | whole call [ms] | Hz | against the first teacher |", "|" + "---|" * 12]  # fmt: skip
    for task, sources in dict.fromkeys((row["task"], tuple(row["sources"])) for row in rows):
        same = [row for row in rows if (row["task"], tuple(row["sources"])) == (task, sources)]
        oracle = [sum(row["oracle"][name] for row in same) for name in ("successes", "episodes")]
        seen = "points" if "points" in sources else "state"
        failures = sum((Counter(row["oracle"]["failures"]) for row in same), Counter[str]())
        low, high = wilson_interval(*oracle)
        cells = [["oracle", NOTHING, f"{oracle[0]} of {oracle[1]}", f"{percent(low)} to {percent(high)}", NOTHING,
                  _named(failures), *[NOTHING] * 4]]  # fmt: skip
        policies = pooled(same)
        reference = next(policy for policy in policies if policy["is_reference_teacher"])
        cells += [_policy_cells(policy, reference) for policy in policies]
        lines += [f"| `{task}` | {seen} | {' | '.join(each)} |" for each in cells]
    lines += ["", "| task | observation | seed | demonstrations | error, training scenes [mm] | new scenes [mm] | ratio | "
              "recording [min] | training [min] | everything [min] | processes | date |", "|" + "---|" * 12]  # fmt: skip
    for row in rows:
        shown = row["generalisation"]["rows"][0] if row["generalisation"] else None
        errors = [1000 * shown[each]["position_m"]["mean"] for each in ("training", "held_out")] if shown else []
        cells = [f"{value:.1f}" for value in errors] + [f"{errors[1] / errors[0]:.2f}"] if errors else [NOTHING] * 3
        minutes = [f"{row['minutes'][name]:.0f}" for name in ("recording", "training", "all")]
        seen = "points" if "points" in row["sources"] else "state"
        lines.append(f"| `{row['task']}` | {seen} | {row['seed']} | {row['demonstrations']} | {' | '.join(cells)} | "
                     f"{' | '.join(minutes)} | {row['processes']} | {row['date'][:10]} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def _policy_cells(policy: Mapping[str, Any], reference: Mapping[str, Any]) -> list[str]:
    marks = np.array(policy["episode_success"], dtype=bool)
    low, high = wilson_interval(int(marks.sum()), len(marks))
    call_ms = float(np.median(policy["calls"]))
    gap = NOTHING
    if policy is not reference and len(marks) == len(reference["episode_success"]):
        values = paired_difference(marks, np.array(reference["episode_success"], dtype=bool))
        gap = f"{points(values[0])} ({points(values[1])} to {points(values[2])})"
    return [
        policy["label"], str(policy["nfe"]), f"{marks.sum()} of {len(marks)}", f"{percent(low)} to {percent(high)}", gap,
        _named(policy["failures"]), str(policy["refused_actions"]), f"{call_ms:.1f}", f"{1000 / call_ms:.0f}",
        f"{float(np.median(reference['calls'])) / call_ms:.1f} x",
    ]  # fmt: skip


def _named(failures: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(failures.items(), key=lambda each: -each[1])) or "none"


def written(page: str, found: Mapping[str, Any]) -> str:
    """The page with the tables as the results are now. Raises ValueError for a page without a place for them."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"got a page without the two lines {BEGIN!r} and {END!r}, expected each once, around the tables")
    before, rest = page.split(BEGIN)
    return before + BEGIN + section(found) + END + rest.split(END)[1]


def store(row: Mapping[str, Any]) -> None:
    """Add a run to the results, in place of an earlier one of its task, observation and seed."""
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"rows": []}
    same = ("task", "sources", "seed")
    rows = [each for each in found["rows"] if any(each[name] != row[name] for name in same)]
    RESULTS.write_text(json.dumps({"rows": [*rows, row]}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=[])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--runs", nargs="*", type=Path, default=[], help="finished runs to take the figures of")
    parser.add_argument("flags", nargs="*", help="after --: further flags of flow2one")
    given = parser.parse_args()
    for run in given.runs:
        store(collected(run))
    for task in given.tasks:
        for seed in given.seeds:
            store(collected(measure(task, seed, given.runs_dir, given.flags)))
    PAGE.write_text(written(PAGE.read_text(), json.loads(RESULTS.read_text())))
    print(PAGE)


if __name__ == "__main__":
    main()
