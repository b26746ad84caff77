"""A policy's own network, fine-tuned in place, against its teacher at few steps and a fresh student.

    python benchmarks/in_place.py [--tasks avoid ..] [--kinds mlp unet transformer] [--variants chamfer ..] [--seed 0]

Foreign flow policies of three kinds (examples/own_network.py) are trained here on demonstrations of the embedded tasks, from
states (`detour`), points (`detour_points`) or images (`detour_rgb`), then converted; a row is one `distill.py convert`, so
what is finished is not done again. Writes benchmarks/results/in_place.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from running import ROOT, run_distill

from distill.stages.report import cpu_seconds
from distill.store.machine import hardware
from envs import task_spec
from envs.recorded import open_recorded
from envs.specs import STATE

sys.path.insert(0, str(ROOT / "examples"))
import own_network

RESULTS = ROOT / "benchmarks/results/in_place.json"
SEEN = {"points": "observation.points", "rgb": "observation.images."}
"""What the end of a preset's name says that a policy observes, and the features that this is."""

OWN_STATE = ("tool_x_m", "tool_y_m", "tool_z_m", "finger_m")
"""What a policy with cameras knows of the state: where the robot is, and nothing of what it must see."""

HORIZONS = {"avoid": (16, 8), "detour": (32, 24), "handles": (16, 16)}
"""Actions of a chunk, and those executed before the next, as in the tasks' presets."""

WIDTH, TEACHER_STEPS, SOLVER_STEPS = 96, {"mlp": 8000, "unet": 4000, "transformer": 4000}, 20
SHORT = ("--sample.num-observations", "1024", "--evaluate.test-starts", "240", "--evaluate.validation-starts", "48",
         "--evaluate.fidelity-observations", "32", "--evaluate.latency-calls", "100", "--evaluate.latency-warmup",
         "10", "--evaluate.teacher-steps", "20", "4", "2", "1")  # fmt: skip

def _variant(objective: str = "chamfer", steps: int = 3000, rate: str = "0.0025", noises: int = 0) -> tuple[str, ...]:
    return ("--in-place.objective", objective, "--in-place.training-steps", str(steps), "--in-place.learning-rate", rate,
            "--in-place.starting-noises", str(noises))  # fmt: skip


VARIANTS = {
    "chamfer": _variant(), "noises128": _variant(noises=128),
    "chamfer, 1500 steps": _variant(steps=1500), "noises128, 1500 steps": _variant(steps=1500, noises=128),
    "chamfer_energy, 1500 steps": _variant("chamfer_energy", 1500), "anchored, 1500 steps": _variant("anchored", 1500),
    "chamfer, 1500 steps, rate 1e-3": _variant(steps=1500, rate="0.001"),
    "chamfer, 1500 steps, rate 3e-4": _variant(steps=1500, rate="0.0003"),
    "noises128, 1500 steps, rate 1e-3": _variant(steps=1500, rate="0.001", noises=128),
    "chamfer, 7500 steps": _variant(steps=7500), "chamfer_energy": _variant("chamfer_energy"),
    "chamfer+2energy_distance": _variant("chamfer+2energy_distance"),
    "chamfer+2energy_distance, 7500 steps": _variant("chamfer+2energy_distance", 7500),
}
"""Rows in place; without more words 3000 steps at 2.5e-3, which are the defaults."""

FIGURES = ("energy_distance", "recall", "coverage", "off_support_share")


def demonstrated(preset: str, seed: int, runs: Path) -> Path:
    """The folder of a preset's demonstrations."""
    folder = runs / f"{preset}-demos{seed}"
    if not (folder / "demos").is_dir():
        where = ("--name", folder.name, "--runs-dir", str(runs))
        run_distill("demos", "--config", f"configs/{preset}.yaml", *where, "--seed", str(seed))
    return folder / "demos"


def trained(preset: str, kind: str, seed: int, demos: Path, runs: Path) -> Path:
    """The folder of a foreign policy, trained by flow matching with an average of its weights."""
    folder = runs / f"{preset}-{kind}-policy{seed}"
    if folder.is_dir():
        return folder
    torch.set_num_threads(1)
    task, sees = preset.split("_")[0], preset.partition("_")[2]
    recorded, (horizon, _) = open_recorded(str(demos)).at_period(task_spec(task).dt_s), HORIZONS[task]
    wanted = [name for name in recorded.features if sees and name.startswith(SEEN[sees])]
    recorded, frames = recorded.only([STATE, *wanted]), np.arange(len(recorded))
    columns = [recorded.state_names.index(name) for name in OWN_STATE] if sees else list(range(recorded.features[STATE][0]))
    steps = 1 if sees else 2
    actions = torch.from_numpy(recorded.actions(frames, horizon)).float()
    states = torch.from_numpy(recorded.read(frames, steps)[STATE])[..., columns]
    policy = own_network.make(
        kind, seed, state_size=len(columns), horizon=horizon, action_size=actions.shape[-1], steps=steps, width=WIDTH,
        num_steps=SOLVER_STEPS, features={name: list(recorded.features[name]) for name in wanted}, columns=columns,
    ).requires_grad_(True)  # fmt: skip
    for name, values in (("state", states), ("action", actions)):
        low, high = values.amin((0, 1)), values.amax((0, 1))
        getattr(policy, f"{name}_centre").copy_((low + high) / 2)
        getattr(policy, f"{name}_scale").copy_(((high - low) / 2).clamp(min=1e-6))
    generator, updates = torch.Generator().manual_seed(seed), TEACHER_STEPS[kind]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, updates, pct_start=0.03)
    average = [weight.detach().clone() for weight in policy.parameters()]
    began = time.process_time()
    for _ in range(updates):
        row = torch.randint(len(frames), (64 if sees else 256,), generator=generator)
        seen = {name: torch.from_numpy(value) for name, value in recorded.read(row.numpy(), steps).items()}
        loss = policy.flow_loss(seen, actions[row], generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        torch._foreach_lerp_(average, [weight.detach() for weight in policy.parameters()], 0.005)
    with torch.no_grad():
        for weight, mean in zip(policy.parameters(), average, strict=True):
            weight.copy_(mean)
    print(f"{folder.name}: {time.process_time() - began:.0f} CPU s, loss {float(loss.detach()):.4f}", flush=True)
    policy.save(str(folder))
    told = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps({**told, "num_steps": SOLVER_STEPS}))  # what is saved is no student
    return folder


def convert(preset: str, seed: int, demos: Path, policy: Path, out: Path, *flags: str) -> dict[str, Any]:
    """The report of one conversion."""
    task = preset.split("_")[0]
    run_distill(
        "convert", "--teacher", str(ROOT / "examples/own_network.py"), "--adapter.arguments", f"folder={policy}",
        "--observations", str(demos), "--task", task, "--out", str(out), "--seed", str(seed),
        "--evaluate.execution-horizon", str(HORIZONS[task][1]), *SHORT, *flags,
    )  # fmt: skip
    return dict(json.loads((out / "report" / "report.json").read_text()))


def row_of(policy: dict[str, Any], label: str, seconds: float | None) -> dict[str, Any]:
    """What the table shows of a policy."""
    return {
        "label": label, "success": policy["success_rate"], "difference": policy.get("difference"), "entropy": policy["entropy"],
        **{name: policy["fidelity"][name] for name in FIGURES}, "median_ms": policy["latency"]["median_ms"],
        "nfe": policy["nfe"], "candidates": policy["candidates"], "training_cpu_s": seconds,
    }  # fmt: skip


def train_seconds(out: Path, name: str) -> float:
    """Processor seconds of a training, those of the adapter's process included."""

    class Stage:
        pass

    Stage.name = f"train/{name}"  # type: ignore[attr-defined]
    return float(cpu_seconds(out, Stage()) or 0.0)  # type: ignore[arg-type]


def rows_for(
    task: str, kind: str, variants: list[str], seed: int, runs: Path, fresh: list[int]
) -> list[dict[str, Any]]:
    """Teacher at its numbers of steps, each variant in place, and the fresh student trained for each number of steps."""
    demos = demonstrated(task, seed, runs)
    policy, out = trained(task, kind, seed, demos, runs), runs / f"{task}-{kind}-seed{seed}"
    rows: list[dict[str, Any]] = []
    if not variants:
        raise ValueError("variants: got none, expected at least one")
    for name in variants:
        told = convert(task, seed, demos, policy, out, "--student.kind", "in_place", *VARIANTS[name])
        found = {each["name"]: each for each in told["policies"]}
        if not rows:
            rows = [row_of(each, each["label"], None) for each in told["policies"] if each["kind"] == "teacher"]
        rows.append(row_of(found["in_place"], f"in place, {name}", train_seconds(out, "in_place")))
        print_rows(task, kind, rows[-1:])
    for steps in fresh:
        told = convert(task, seed, demos, policy, out, "--student.kind", "fresh", "--student.training-steps", str(steps))
        rows.append(row_of(told["policies"][-1], f"fresh, {steps} steps", train_seconds(out, "chamfer")))
        print_rows(task, kind, rows[-1:])
    return rows


def print_rows(task: str, kind: str, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        seconds = "" if row["training_cpu_s"] is None else f"{row['training_cpu_s']:.0f}"
        cells = [f"{task} {kind}", row["label"], f"{100 * row['success']:.1f} %", f"{row['energy_distance']:.3f}",
                 f"{row['recall']:.2f}", f"{row['coverage']:.2f}", f"{100 * row['off_support_share']:.1f} %",
                 f"{row['median_ms']:.2f}", seconds]  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="*", default=["avoid", "detour", "handles"])
    parser.add_argument("--kinds", nargs="*", default=["mlp", "unet", "transformer"])
    parser.add_argument("--variants", nargs="*", default=["chamfer", "noises128"], choices=VARIANTS)
    parser.add_argument("--fresh", type=int, nargs="*", default=[1000, 3000], help="training steps of the fresh student")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs-dir", type=Path, default=ROOT / "runs" / "in-place")
    options = parser.parse_args()
    told = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"rows": {}}
    print("| policy | | success | energy distance | recall | coverage | off-support | call [ms] | training [CPU s] |")
    for task in options.tasks:
        for kind in options.kinds:
            rows = rows_for(task, kind, options.variants, options.seed, options.runs_dir.resolve(), options.fresh)
            print_rows(task, kind, rows)
            told["rows"][f"{task} {kind} seed {options.seed}"] = rows
            told |= {"hardware": hardware(torch.device("cpu")), "test_starts": 240, "threads": 1}
            RESULTS.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
