"""What do K, the teacher's solver steps and the number of observations buy? One student per setting, one teacher.

    python benchmarks/hypotheses.py --run runs/avoid-seed0 [--config configs/avoid.yaml] [--training-steps 1000]

Takes the teacher of a finished run and, for each setting below, draws hypotheses, trains the default student and rolls
it out from that run's test starts. Every setting is a run of distill.py in one folder, so it resumes as that does.
Writes benchmarks/results/hypotheses-<task>.json and prints a table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from distill.config import Config, apply_preset
from distill.results import hardware

ROOT = Path(__file__).resolve().parents[1]
# (K, solver steps, observations): the recipe first, then one number changed at a time
SETTINGS = ((16, 50, 2048), (4, 50, 2048), (16, 10, 2048), (16, 50, 512), (32, 50, 2048), (16, 50, 4096))


def measure(arguments: argparse.Namespace, setting: tuple[int, int, int]) -> dict[str, object]:
    """Run one setting and return its figures."""
    hypotheses, steps, observations = setting
    name = f"{arguments.run.name}-hypotheses"
    presets = ["--config", str(arguments.config)] if arguments.config else []
    command = [
        sys.executable, "distill.py", "evaluate", *presets, "--runs-dir", str(arguments.run.parent), "--name", name,
        "--teacher.path", str(arguments.run / "teach"), "--student.objectives", "chamfer_energy",
        "--student.training-steps", str(arguments.training_steps), "--evaluate.teacher-steps", "50",
        "--evaluate.latency-calls", "1",
        "--sample.num-hypotheses", str(hypotheses), "--sample.num-steps", str(steps),
        "--sample.num-observations", str(observations),
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True)
    folder = arguments.run.parent / name
    result = json.loads((folder / "evaluate/chamfer_energy/result.json").read_text())
    seconds = {stage: json.loads((folder / stage / "manifest.json").read_text())["seconds"]
               for stage in ("sample", "train/chamfer_energy")}  # fmt: skip
    summary = result["summary"]
    return {
        "num_hypotheses": hypotheses, "num_steps": steps, "num_observations": observations,
        "success_rate": summary["successes"] / summary["episodes"], "episodes": summary["episodes"],
        "modes_reached": summary["modes_reached"], "entropy": summary["entropy"],
        "energy_distance": result["fidelity"]["energy_distance"],
        "outside_share": result["fidelity"]["outside_share"],
        "sample_s": seconds["sample"], "train_s": seconds["train/chamfer_energy"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a finished run whose teacher is taken")
    parser.add_argument("--config", type=Path, default=None)
    parser.add_argument("--training-steps", type=int, default=1000)
    arguments = parser.parse_args()
    task = (apply_preset(Config(), arguments.config) if arguments.config else Config()).task
    rows = []
    for setting in SETTINGS:
        rows.append(measure(arguments, setting))
        target = ROOT / "benchmarks/results" / f"hypotheses-{task}.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps({"task": task, "training_steps": arguments.training_steps,
                                      "hardware": hardware(None), "rows": rows}, indent=1) + "\n")  # fmt: skip
    print("| K | steps | observations | success | modes | entropy | energy distance | outside | sampling s | training s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['num_hypotheses']} | {row['num_steps']} | {row['num_observations']} | {row['success_rate']:.3f} | "
            f"{row['modes_reached']} | {row['entropy']:.3f} | {row['energy_distance']:.4f} | {row['outside_share']:.3f} | "
            f"{row['sample_s']:.0f} | {row['train_s']:.0f} |"
        )


if __name__ == "__main__":
    main()
