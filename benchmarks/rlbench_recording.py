"""What cameras cost in recording RLBench demonstrations: each start is demonstrated without and with them, in turn.

    python benchmarks/rlbench_recording.py --tasks reach_target open_drawer [--count 10] [--size 128]

Without cameras a demonstration takes what RLBench's own `get_demos` takes. With them every kept frame is rendered by five
cameras, and fused to a cloud. Adds a row per task to benchmarks/results/rlbench_recording.json. It needs a simulator
(docs/rlbench.md).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

import envs
from distill.store.machine import hardware
from envs.cameras.specs import CAMERAS, CameraSettings
from envs.process.worker import WorkerFailure
from envs.rlbench.spec import RLBenchSettings

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/rlbench_recording.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--size", type=int, default=128)
    given = parser.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"hardware": hardware(None), "rows": []}
    cameras = CameraSettings(
        cameras=CAMERAS, width=given.size, height=given.size, images=False, depth=False, num_points=512, colours=True,
        sampling="random",
    )  # fmt: skip
    print("| task | demonstrations | frames kept | without cameras [s] | with [s] | ratio of medians |\n" + "|---" * 6 + "|")
    for task in given.tasks:
        env = envs.make_rlbench(f"rlbench/{task}", RLBenchSettings(), cameras)
        seconds: dict[bool, list[float]] = {False: [], True: []}
        frames = []
        rng = np.random.default_rng(0)
        env.describe()  # the simulator starts before anything is timed
        while len(seconds[True]) < given.count:
            start = env.sample_start(rng)
            try:
                pair = []
                for with_cameras in (False, True):
                    began = time.monotonic()
                    demonstration = env.demonstrate(start, with_cameras)
                    pair.append(time.monotonic() - began)
            except WorkerFailure:  # no demonstration of this start: neither counts
                continue
            seconds[False].append(pair[0])
            seconds[True].append(pair[1])
            frames.append(len(demonstration.action))
        env.close()
        without, with_cameras_s = (float(np.median(seconds[each])) for each in (False, True))
        row = {"task": task, "count": given.count, "size": given.size, "frames": float(np.mean(frames)),
               "without_s": seconds[False], "with_s": seconds[True], "ratio": with_cameras_s / without}  # fmt: skip
        found["rows"] = [each for each in found["rows"] if each["task"] != task] + [row]
        print(f"| {task} | {given.count} | {row['frames']:.1f} | {without:.2f} | {with_cameras_s:.2f} | {row['ratio']:.2f} |",
              flush=True)  # fmt: skip
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
