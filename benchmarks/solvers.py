"""Which solver comes nearest to fifty equal Euler steps with fewer? Chunks of one teacher against its own reference set.

    python benchmarks/solvers.py --run runs/avoid-seed0

Takes the teacher and the reference chunks of a finished run (`distill.py evaluate`), draws as many chunks with each solver
and number of steps, and prints their distance to the reference. Writes benchmarks/results/solvers-<task>.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from distill.evaluation.fidelity import set_fidelity
from distill.store.machine import hardware
from envs.specs import STATE
from teachers import load_teacher

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = (("euler", 50), ("euler", 25), ("euler", 16), ("euler", 10), ("heun", 13), ("heun", 8), ("midpoint", 8),
            ("shrinking", 16), ("shrinking", 10), ("shrinking", 8), ("shrinking", 6), ("shrinking", 4))  # fmt: skip
COLUMNS = ("energy_distance", "chamfer_student_to_teacher", "chamfer_teacher_to_student", "off_support_share",
           "off_support_share_strict")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a finished run whose teacher and reference are taken")
    run = parser.parse_args().run
    teacher = load_teacher(run / "teach")
    states = load_file(str(run / "starts/starts.safetensors"))["observations"].float()
    reference = teacher.normaliser.normalise_action(load_file(str(run / "reference/reference.safetensors"))["reference"])
    weights_A = torch.tensor(teacher.shape.action_weights)
    rows = []
    print(f"| solver | steps | NFE | {' | '.join(COLUMNS)} |\n|---|---|---|{'---|' * len(COLUMNS)}")
    for solver, steps in SETTINGS:
        teacher.use_solver(solver)
        chunks = teacher.sample({STATE: states}, reference.shape[1], steps, torch.Generator().manual_seed(1))
        figures = set_fidelity(teacher.normaliser.normalise_action(chunks), reference, weights_A)
        row = {"solver": solver, "steps": steps, "nfe": teacher.evaluations(steps), **{name: figures[name] for name in COLUMNS}}
        rows.append(row)
        print(f"| {solver} | {steps} | {row['nfe']} | {' | '.join(f'{row[name]:.4f}' for name in COLUMNS)} |", flush=True)
    target = ROOT / "benchmarks/results" / f"solvers-{teacher.shape.task}.json"
    target.write_text(json.dumps({"run": run.name, "hardware": hardware(None), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
