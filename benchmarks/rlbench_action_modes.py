"""Which action mode replays demonstrations best? The oracle of every mode from the same starts, and the mode to choose.

    python benchmarks/rlbench_action_modes.py --tasks open_drawer close_door [--count 10]

The rule: the mode whose oracle solves the most starts; among equals the first of `MODES`, which needs the fewest decisions.
Adds a row per task to benchmarks/results/rlbench_action_modes.json. It needs a simulator (docs/rlbench.md).
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import envs
from distill.evaluation.rollouts import Episode
from distill.store.machine import hardware
from distill.worlds.rlbench import replay
from envs.process.worker import WorkerFailure
from envs.rlbench.env import RLBenchEnv
from envs.rlbench.spec import RLBenchSettings

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/rlbench_action_modes.json"
PLAIN = RLBenchSettings()
MODES = {
    "key frames, planned": replace(PLAIN, keyframes=True),
    "planned": PLAIN,
    "planned, avoiding collisions": replace(PLAIN, collision_checking=True),
    "inverse kinematics": replace(PLAIN, arm="ik"),
    "joints": replace(PLAIN, arm="joints"),
}
"""Flags by name, from the fewest decisions an episode to the most."""


def replayed(env: RLBenchEnv, start: np.ndarray) -> Episode:
    """The start's demonstration, replayed. Raises WorkerFailure where there is no demonstration."""
    shown = env.demonstrate(start, with_cameras=False)
    return replay(env, 0, shown.start, shown.action)


def measure(task: str, name: str, count: int) -> dict[str, Any]:
    """Solved starts, failures by name and seconds of one mode; starts that cannot be demonstrated are left out."""
    env, rng, began = envs.make_rlbench(f"rlbench/{task}", MODES[name], None), np.random.default_rng(0), time.monotonic()
    episodes: list[Episode] = []
    for _ in range(count):
        try:
            episodes.append(replayed(env, env.sample_start(rng)))
        except WorkerFailure:
            continue
    env.close()
    failures = [episode.failure for episode in episodes if not episode.success]
    return {"mode": name, "solved": sum(episode.success for episode in episodes), "starts": len(episodes),
            "failures": {failure: failures.count(failure) for failure in set(failures)},
            "actions": float(np.mean([episode.steps for episode in episodes])) if episodes else None,
            "seconds": time.monotonic() - began}  # fmt: skip


def best(rows: list[dict[str, Any]]) -> str:
    """The mode that the rule chooses."""
    return str(max(rows, key=lambda row: (row["solved"] / max(row["starts"], 1), -list(MODES).index(row["mode"])))["mode"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--count", type=int, default=10)
    given = parser.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"hardware": hardware(None), "rows": []}
    print("| task | mode | solved | failures | actions | seconds |\n" + "|---" * 6 + "|")
    for task in given.tasks:
        rows = []
        for name in given.modes:
            row = measure(task, name, given.count)
            rows.append(row)
            named = ", ".join(f"{count} {failure}" for failure, count in row["failures"].items()) or "none"
            cells = (task, name, f"{row['solved']} of {row['starts']}", named, row["actions"], round(row["seconds"]))
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
        print(f"{task}: {best(rows)}")
        found["rows"] = [each for each in found["rows"] if each["task"] != task]
        found["rows"].append({"task": task, "count": given.count, "chosen": best(rows), "modes": rows})
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
