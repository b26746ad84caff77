"""An exported student in a control loop of numpy and ONNX Runtime: no torch, and none of flow2one's policies.

    python examples/numpy_loop.py exported/avoid --starts 20

Here a simulated robot is controlled; on yours, `envs` is what gives the state and takes the actions. The choice among the
student's plans is the one that `export.json` names, with all four kinds that flow2one knows (docs/export.md).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

import envs
from envs.panda.recording import stored_starts

Draw = Callable[[int], np.ndarray]
"""A number of plans to as many latents, `[N, ...]`, standard normal."""


class Student:
    """What a folder of `flow2one export` holds, as one call: the last O observations to the plan to carry out."""

    def __init__(self, folder: Path) -> None:
        self.told = json.loads((folder / "export.json").read_text())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = str(folder / self.told["formats"]["onnx"]["file"])
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        *self.sources, latents = self.told["inputs"]
        self.steps, self.latent_shape = self.sources[0]["shape"][1], latents["shape"][2:]
        self.choice, action = self.told["selection"], self.told["action"]
        self.executed, self.horizon = self.choice["execution_horizon"], self.told["output"]["shape"][2]
        # distances between plans are weighted and in half ranges of every action
        weights = np.array(action["weights"], np.float32)
        self.metric = np.sqrt(weights / weights.sum()) / np.array(action["scale"], np.float32)
        self.forget()

    def forget(self) -> None:
        """An episode begins."""
        self.replans, self.last, self.kept = 0, None, None

    def plan(self, history: list[dict[str, np.ndarray]], draw: Draw) -> np.ndarray:
        """The last O observations, the newest last, to the raw plan `[T, A]` whose first actions are carried out."""
        every = self.choice["forget_every"]
        if self.replans == 0 or (every and self.replans % every == 0):
            self.last = self.kept = None
        feed = {"latents": self._latents(draw)[None]}
        for name in (each["name"] for each in self.sources):
            feed[name] = np.stack([seen[name] for seen in history])[None].astype(np.float32)
        plans = self.session.run(None, feed)[0][0]
        chosen = plans[self._choose(plans)]
        self.replans, self.last = self.replans + 1, chosen
        return chosen

    def _latents(self, draw: Draw) -> np.ndarray:
        kind = self.choice["kind"]
        if kind == "kept_latent":
            self.kept = draw(1) if self.kept is None else self.kept
            return self.kept
        several = kind == "outlier_rejection" or (kind == "temporal_consistency" and self.executed < self.horizon)
        return draw(self.choice["candidates"] if several else 1)

    def _choose(self, plans: np.ndarray) -> int:
        """Temporal consistency, or the first plan that has others near it, or the only one."""
        if self.choice["kind"] == "temporal_consistency" and self.last is not None and self.executed < self.horizon:
            return int(self._apart(plans[:, : self.horizon - self.executed], self.last[self.executed :]).argmin())
        if self.choice["kind"] == "outlier_rejection" and len(plans) > 2:
            done = plans[:, : self.executed]
            apart = self._apart(done[:, None], done[None])
            copies = apart < 1e-5  # of itself, too
            alone = np.where(copies, 1e6, apart).min(-1)
            alone[copies.sum(-1) > self.choice["mode_duplicates"]] = 0
            usual = np.sort(alone)[(len(plans) - 1) // 2]
            return int((~(alone > max(self.choice["outlier_ratio"] * usual, self.choice["same_plan_distance"]))).argmax())
        return 0

    def _apart(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Weighted root mean square difference of plans `[.., T, A]`."""
        return np.sqrt((((first - second) * self.metric) ** 2).sum(-1).mean(-1))


def run_episode(student: Student, env: envs.panda.base.PandaEnv, start: np.ndarray, draw: Draw) -> dict[str, object]:
    """The control loop: one episode from a start; what became of it, and the times of the calls [ms]."""
    observation, _ = env.reset(options={"start": start})
    history, times, step, ended = [observation] * student.steps, [], 0, False
    student.forget()
    while not ended:
        if step % student.executed == 0:
            begin = time.perf_counter()
            plan = student.plan(history, draw)
            times.append((time.perf_counter() - begin) * 1e3)
            if not np.isfinite(plan).all():
                return {"is_success": False, "failure": "policy_error", "mode": "", "steps": step, "ms": times}
        observation, _, terminated, truncated, info = env.step(plan[step % student.executed])
        history, step, ended = [*history[1:], observation], step + 1, terminated or truncated
    return {**{name: info[name] for name in ("is_success", "failure", "mode")}, "steps": step, "ms": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="made by `flow2one export`, of a policy that sees states")
    parser.add_argument("--starts", type=int, default=20, help="how many of the stored test starts")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    student = Student(arguments.folder)
    task, latent_shape = student.told["task"], student.latent_shape
    rng, env = np.random.default_rng(arguments.seed), envs.make(task)

    def draw(count: int) -> np.ndarray:
        return rng.standard_normal((count, *latent_shape), dtype=np.float32)

    starts = stored_starts(task, arguments.seed, "test", arguments.starts)
    done = [run_episode(student, env, start, draw) for start in starts]
    times = np.concatenate([episode["ms"] for episode in done])
    modes = {episode["mode"] for episode in done if episode["is_success"]}
    solved = sum(bool(episode["is_success"]) for episode in done)
    print(f"{task}: {solved} of {len(done)} starts solved, in {len(modes)} ways; {np.median(times):.2f} ms a call (median)")


if __name__ == "__main__":
    main()
