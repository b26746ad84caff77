"""Who still succeeds when the world goes on while the policy computes? Teacher and student of finished runs, by latency.

    python benchmarks/real_time.py --runs runs --tasks avoid handles --seeds 0 1

Takes the teacher and the student `chamfer` of the default recipe from the runs `<task>-seed<n>`; nothing is trained. A policy
call is given the time that it takes here (`--times`, for 50 and 10 solver steps and for the student) times each of `--scales`.
Of arXiv 2603.09415's 50-step teacher x 1.45 makes the 116 ms on its hardware, x 4.31 the 345 ms (2.9 Hz) on its robot; x 10.4
is the student's call scaled to the 20 Hz clock, 50 ms; x 0 is no latency. Roll-outs are kept
(`--kept`) and not done again; the table pools the seeds, and the student is paired with each teacher. Its rows are added to
benchmarks/results/real_time.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import envs
from distill.cli.command import read_command
from distill.config import Config
from distill.evaluation.policies import Policy, StudentPolicy, TeacherPolicy
from distill.evaluation.real_time import CONDITIONS, Clock, delay_steps, outcome, paired_rows, run_in_real_time
from distill.graphs.run import run_graph
from distill.hypotheses.cache import episode_seed
from distill.inputs.rollouts import selection_settings
from distill.store.manifest import place_of, sha256_file, write_json
from distill.worlds import open_world
from envs.panda.recording import stored_starts
from students import load_student
from students.selection import SINGLE_SAMPLE
from teachers import load_teacher

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "benchmarks/results/real_time.json"
STUDENT = "chamfer"
CHOSEN = Config().real_time_selection
LABELS = {"teacher_50": "teacher, 50 steps", "teacher_10": "teacher, 10 steps", STUDENT: "student"}


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the finished runs are")
    parser.add_argument("--tasks", nargs="+", default=["avoid", "handles"], choices=sorted(envs.TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--starts", type=int, default=240)
    parser.add_argument("--scales", nargs="+", type=float, default=[0.0, 1.45, 4.31, 10.4])
    parser.add_argument("--times", nargs=3, type=float, default=[80.0, 16.6, 4.8], help="[ms], one thread, idle")
    parser.add_argument("--every", type=int, default=4, help="control steps from one question to the next")
    parser.add_argument("--delays-per-query", type=float, default=2.0)
    parser.add_argument("--kept", type=Path, default=Path("runs/real-time-rollouts"), help="every episode's outcome")
    parser.add_argument("--teachers-choose", action="store_true", help="among as many plans as the student, in no more time")
    parser.add_argument("--calm", action="store_true", help="without the disturbance, too: what coming late costs by itself")
    arguments = parser.parse_args()
    for task in arguments.tasks:
        times = dict(zip(LABELS, arguments.times, strict=True))
        # the quick ones first, so that one who stops it early has them
        results = {name: _policy_results(arguments, task, name, times[name]) for name in reversed(LABELS)}
        rows = paired_rows([results[name] for name in LABELS], LABELS, STUDENT)
        _show(task, arguments, rows)
        found = json.loads(TARGET.read_text()) if TARGET.is_file() else {}
        which = f"{task}, seeds {arguments.seeds}, every {arguments.every}, {arguments.delays_per_query:g} x the delay"
        if arguments.teachers_choose:
            which += ", teachers choose, too"
        settings = {"starts": arguments.starts, "times_ms": arguments.times, "disturbance": str(envs.disturbance(task)),
                    "selection": selection_settings(CHOSEN)}  # fmt: skip
        write_json(TARGET, {**found, which: {**settings, "rows": rows}})


def _policy_results(arguments: argparse.Namespace, task: str, name: str, ms: float) -> dict[str, Any]:
    """One policy's roll-outs at every scale, the seeds one after the other, as the stages `real_time` write them."""
    dt_s, times = envs.task_spec(task).dt_s, []
    for scale in arguments.scales:
        clock = Clock(delay_steps(scale * ms, dt_s), arguments.every, arguments.delays_per_query)
        rolled = {
            condition: [each for seed in arguments.seeds
                        for each in _rolled(arguments, task, seed, name, clock, condition)]
            for condition in CONDITIONS if condition == "disturbed" or arguments.calm
        }  # fmt: skip
        times.append({"scale": scale, "latency_ms": scale * ms, "delay_steps": clock.delay, "period_steps": clock.period,
                      **rolled})  # fmt: skip
    return {"policy": name, "dt_s": dt_s, "times": times}


def finished(runs: Path, task: str, seed: int, stage: str) -> Path:
    """The folder of a stage of the task's default recipe, also where it was put aside for other settings.

    Raises ValueError where there is none: what stands in its place may be an ablation's.
    """
    _, _, config = read_command(["--config", str(ROOT / f"configs/{task}.yaml"), "--runs-dir", str(runs), "--seed", str(seed)])
    wanted = {each.name: each for each in run_graph(config, open_world(config)).stages}[stage]
    folder = config.folder / stage
    place = place_of(folder, wanted.key)
    if place is not None:
        return place
    raise ValueError(f"{folder}: not that of configs/{task}.yaml with seed {seed}; run distill.py evaluate with these")


def _rolled(
    arguments: argparse.Namespace, task: str, seed: int, name: str, clock: Clock, condition: str
) -> list[dict[str, Any]]:
    weights = finished(arguments.runs, task, seed, "distill/" + STUDENT if name == STUDENT else "teach")
    selection = CHOSEN if name == STUDENT or arguments.teachers_choose else SINGLE_SAMPLE
    made_from = {
        **selection_settings(selection), "weights": sha256_file(weights / "model.safetensors"),
        "clock": [clock.delay, clock.period, arguments.starts],
        "disturbance": str(envs.disturbance(task)) if condition == "disturbed" else "",
    }  # fmt: skip
    how = "" if selection.kind == "single" else f"-{selection.kind}"
    kept = arguments.kept / f"{task}-seed{seed}-{name}{how}-{condition}-{clock.delay}-{clock.period}.json"
    if kept.is_file() and (found := json.loads(kept.read_text()))["made_from"] == made_from:
        episodes: list[dict[str, Any]] = found["episodes"]
        return episodes
    policy: Policy = StudentPolicy(load_student(weights), name) if name == STUDENT else TeacherPolicy(
        load_teacher(weights), int(name.removeprefix("teacher_"))
    )  # fmt: skip
    starts = stored_starts(task, seed, "test", arguments.starts)
    runs = run_in_real_time(task, policy, starts, range(len(starts)), clock, episode_seed(seed, "moving", 0, 0),
                      condition == "disturbed", selection=selection)  # fmt: skip
    episodes = [outcome(run) for run in runs]
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_json(kept, {"made_from": made_from, "episodes": episodes})
    print(f"{kept.stem}: {np.mean([each['success'] for each in episodes]):.3f}", flush=True)
    return episodes


def _show(task: str, arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    print(f"\n{task}, seeds {arguments.seeds}, a query every {arguments.every} steps, "
          f"at least {arguments.delays_per_query:g} x the control delay")
    print("| × | policy | ms | steps late / between | calm | disturbed | student against it | p | collisions | reaction ms |")
    print("|" + "---|" * 10)
    for row in rows:
        calm, moved = f"{100 * row['calm']['success_rate']:.1f} %" if arguments.calm else "–", row["disturbed"]
        gap = "–" if moved["student_difference"] is None else (
            f"{100 * moved['student_difference']:+.1f} "
            f"({100 * moved['student_low']:+.1f} to {100 * moved['student_high']:+.1f})"
        )  # fmt: skip
        p = "–" if moved["mcnemar_p"] is None else f"{moved['mcnemar_p']:.2g}"
        reaction = "–" if row["reaction_ms"] is None else f"{row['reaction_ms']:.0f}"
        print(
            f"| {row['scale']:g} | {row['label']} | {row['latency_ms']:.1f} | {row['delay_steps']} / {row['period_steps']} | "
            f"{calm} | {100 * moved['success_rate']:.1f} % ({100 * moved['success_low']:.1f} to "
            f"{100 * moved['success_high']:.1f}) | {gap} | {p} | {moved['failures'].get('collision', 0)} | {reaction} |"
        )


if __name__ == "__main__":
    main()
