"""Recording the scripted expert of an embedded task, and the stored starts of all episodes."""

from __future__ import annotations

import numpy as np

from envs.cameras.frames import pack
from envs.demonstrations import Demonstration
from envs.panda.base import PandaEnv
from envs.panda.tasks import make
from envs.specs import SPLITS, STATE, TaskSpec

STILL_STEPS = 10
"""No noise this many control steps around a change of the gripper command, so that grasps succeed."""


def stored_starts(task: str, seed: int, split: str, count: int) -> np.ndarray:
    """`[count, D]` float64 starts of a task. Splits are disjoint random streams; a longer list begins with the shorter one.

    Raises ValueError for an unknown task or split, or a count below 1.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    env = make(task)
    rng = np.random.default_rng(np.random.SeedSequence([seed, SPLITS.index(split), *task.encode()]))
    return np.stack([env.sample_start(rng) for _ in range(count)])


def record(env: PandaEnv, start: np.ndarray, mode: str, seed: int, noise_m: float = 0.003) -> Demonstration | None:
    """Executes the expert's plan through `mode` from `start [D]`; None unless it succeeds in that mode.

    The executed target has smooth noise of standard deviation `noise_m` [m] (xyz only, never near a change of the gripper);
    the recorded action is the clean plan, so the data shows how to recover. The caller counts the Nones.
    """
    plan_rng, noise_rng = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    observation, _ = env.reset(options={"start": start})
    plan = env.plan(mode, plan_rng)
    spec = env.spec_task
    disturbance = _smooth_noise(noise_rng, spec, plan, noise_m)
    states, actions, tools = [], [], []
    camera_features, defects, poses = [], [], []
    for step in range(spec.max_steps):
        now = min(step, len(plan) - 1)  # after its plan the expert waits at the end
        states.append(observation[STATE])
        tools.append(env.tool_position())
        actions.append(plan[now])
        if env.camera_rig is not None:
            features = env.observe_cameras() if env.cameras_on_demand else observation
            camera_features.append({name: features[name] for name in env.camera_rig.spec.shapes()})
            defects.append(env.camera_defects)
            poses.append(env.camera_rig.poses(env.data))
        observation, _, terminated, truncated, info = env.step(plan[now] + disturbance[now])
        if terminated or truncated:
            break
    if not info["is_success"] or info["mode"] != mode:
        return None
    return Demonstration(
        state=np.stack(states),
        action=np.stack(actions),
        tool=np.stack(tools).astype(np.float32),
        start=np.asarray(start, dtype=np.float64),
        mode=mode,
        cameras=None if env.camera_rig is None else pack(env.camera_rig.spec, camera_features, defects, poses),
    )


def _smooth_noise(rng: np.random.Generator, spec: TaskSpec, plan: np.ndarray, noise_m: float) -> np.ndarray:
    """`[L, A]` first-order autoregressive noise (time constant about 0.25 s), zero on the gripper and around its changes."""
    noise = np.zeros(plan.shape)
    keep = 0.8
    is_position = np.array([name in ("x_m", "y_m", "z_m") for name in spec.action.names])
    for step in range(1, len(plan)):
        noise[step] = keep * noise[step - 1] + noise_m * (1 - keep**2) ** 0.5 * rng.standard_normal(plan.shape[1])
    noise = np.where(is_position, np.clip(noise, -2 * noise_m, 2 * noise_m), 0.0)
    changes = 1 + np.flatnonzero((np.diff(plan[:, ~is_position], axis=0) != 0).any(axis=1))
    if len(changes):
        distance = np.abs(np.arange(len(plan))[:, None] - changes[None]).min(axis=1)
        noise *= np.clip((distance - STILL_STEPS) / 5, 0.0, 1.0)[:, None]
    return noise
