"""An exported student in a control loop, with numpy and ONNX Runtime: no torch, and none of flow2one's policies.

    python examples/numpy_loop.py exported/avoid --starts 20

The loop is `run_episode`. On your robot, `env` gives the state and takes the actions, and you install flow2one_runtime alone
(docs/export.md). A student of recordings without a task is called on a made-up observation, to time it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from flow2one_runtime import Student


def run_episode(student: Student, env, start: np.ndarray) -> dict[str, object]:
    """One episode from a start; how it ended, after how many steps."""
    observation, info = env.reset(options={"start": start})
    student.reset()
    steps, ended = 0, False
    while not ended:
        observation, _, terminated, truncated, info = env.step(student.select_action(observation))
        steps, ended = steps + 1, terminated or truncated
    return {**{name: info[name] for name in ("is_success", "failure", "mode")}, "steps": steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="made by `flow2one export`")
    parser.add_argument("--starts", type=int, default=20, help="how many of the stored test starts of its task")
    arguments = parser.parse_args()
    student = Student.load(arguments.folder)
    task = student.exported.task
    if task == "recorded":
        observation = {each.name: np.full(each.shape, 0.5, each.dtype) for each in student.exported.inputs}
        times = []
        for _ in range(220):
            begin = time.perf_counter()
            plan = student.predict_action_chunk(observation)
            times.append((time.perf_counter() - begin) * 1e3)
        names = ", ".join(student.exported.action_names)
        print(f"plans of {len(plan)} actions ({names}); {np.median(times[20:]):.2f} ms a call (median)")
        return
    import envs  # the simulator, only for its tasks
    from envs.panda.recording import stored_starts

    env = envs.make(task)
    done = [run_episode(student, env, start) for start in stored_starts(task, 0, "test", arguments.starts)]
    modes = {episode["mode"] for episode in done if episode["is_success"]}
    print(f"{task}: {sum(bool(episode['is_success']) for episode in done)} of {len(done)} starts solved, in {len(modes)} modes")


if __name__ == "__main__":
    main()
