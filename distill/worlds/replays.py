"""Clips of rollouts: the episodes replayed with a camera, the policy's sampled chunks drawn over them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

import envs
from distill.evaluation.histories import History, stacked
from distill.evaluation.policies import Policy, StudentPolicy, postprocess, sample_set
from distill.evaluation.rollouts import episode_generator
from distill.worlds.clips import write_clip
from distill.worlds.contract import Clip, RolloutJob
from envs.cameras.backends import open_renderer
from envs.cameras.render import Renderer
from envs.cameras.rig import camera_spec
from envs.cameras.specs import CameraSettings, CameraSpec
from envs.panda.base import PandaEnv
from envs.specs import TaskSpec
from students.selection import SINGLE_SAMPLE

CLIP_SIZE = (240, 180)
CAMERA = "front"
PLANS = 24
"""Number of sampled chunks that are drawn."""

_INK = (209, 114, 15, 110)
EPISODES = 2
HOLD_MS = 800.0
"""For how long the end of an episode is held after the slowest policy's."""


def replay_clips(
    spec: TaskSpec, cameras: CameraSettings | None, starts: np.ndarray, shown: Sequence[Clip], job: RolloutJob, folder: Path
) -> dict[str, str]:
    """Replay the first test episodes of each policy with a camera; the clips' paths in the folder, by policy.

    The executed actions are replayed; our simulator is deterministic, so the replay equals the rollout. At every replan,
    `PLANS` chunks sampled by the policy are drawn until the next one, and the frame stays for the policy's own median latency
    longer: the clips play in real time, and episodes begin at the same time in all of them. job.seed: of the run.
    """
    (folder / "clips").mkdir(exist_ok=True)
    every, dt_ms = job.execution_horizon, 1000 * spec.dt_s

    def lasts_ms(clip: Clip, steps: int) -> float:
        return (steps + 1) * dt_ms + -(-steps // every) * clip.call_ms

    shown = [each for each in shown if any(episode["actions"] for episode in each.result["episodes"][:EPISODES])]
    slowest_ms = [max(lasts_ms(each, len(each.result["episodes"][number]["actions"])) for each in shown)
                  for number in range(min((len(each.result["episodes"]) for each in shown), default=0))][:EPISODES]  # fmt: skip
    clips: dict[str, str] = {}
    env = envs.make(spec.name, cameras)
    env.cameras_on_demand = True
    with contextlib.closing(env), open_renderer(env.model, *CLIP_SIZE) as renderer:
        for each in shown:
            assert each.policy is not None
            frames: list[np.ndarray] = []
            longer_ms: dict[int, float] = {}
            for number, last_ms in enumerate(slowest_ms):
                episode, first = each.result["episodes"][number], len(frames)
                steps = len(episode["actions"])
                longer_ms |= {first + step: each.call_ms for step in range(0, steps, every)}
                elapsed_ms = 0.0
                for step, frame in enumerate(_replay(each.policy, starts, episode, job, env, renderer)):
                    elapsed_ms += dt_ms + longer_ms.get(first + step, 0.0)
                    frames.append(_with_clock(frame, elapsed_ms, episode, step == steps))
                longer_ms[len(frames) - 1] = last_ms - lasts_ms(each, steps) + HOLD_MS
            clips[each.name] = f"clips/{each.name}.webp"
            write_clip(folder / clips[each.name], frames, 1 / spec.dt_s, longer_ms=longer_ms)
    return clips


def _with_clock(frame: np.ndarray, elapsed_ms: float, episode: dict[str, Any], ended: bool) -> np.ndarray:
    """The frame with the time since the start, policy calls included, and at its end the outcome."""
    picture = Image.fromarray(frame)
    outcome = ("solved" if episode["success"] else episode["failure"] or "failed") if ended else ""
    told = f"{elapsed_ms / 1000:.2f} s {outcome}".strip()
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, draw.textlength(told) + 8, 15), fill=(255, 255, 255))
    draw.text((4, 2), told, fill=(28, 36, 48))
    return np.asarray(picture)


def _replay(
    policy: Policy, starts: np.ndarray, episode: dict[str, Any], job: RolloutJob, env: PandaEnv, renderer: Renderer
) -> Iterator[np.ndarray]:
    """The episode's frames `[H, W, 3]` uint8."""
    every, index = job.execution_horizon, episode["index"]
    selection = job.selection if isinstance(policy, StudentPolicy) else SINGLE_SAMPLE
    generator = episode_generator(job.seed, index)
    history = History(env, policy.shape.observation_steps, lambda step: step % every == 0)
    observation, _ = env.reset(options={"start": starts[index]})
    history.add(observation, 0)
    view = camera_spec(env.model, CAMERA, *CLIP_SIZE)
    pixels: list[np.ndarray] = []
    for step, action in enumerate(episode["actions"]):
        if step % every == 0:
            seen = stacked([history])
            drawn = sample_set(policy, seen, generator, PLANS, selection, every)
            pixels = [to_pixels(env.targets(plan), view) for plan in postprocess(policy, drawn) if np.isfinite(plan).all()]
        yield draw_plans(renderer.render(env.data, CAMERA)[0], pixels)
        observation = env.step(np.asarray(action, dtype=np.float32))[0]
        history.add(observation, step + 1)
    yield draw_plans(renderer.render(env.data, CAMERA)[0], pixels)


def to_pixels(points_L3: np.ndarray, camera: CameraSpec) -> np.ndarray:
    """Points [m], in the frame of the camera's mount, to `[L', 2]` (column, row); those behind the camera are left out."""
    pose = camera.extrinsics
    seen_L3 = (points_L3 - pose[:3, 3]) @ pose[:3, :3]
    seen_L3 = seen_L3[seen_L3[:, 2] > 1e-3]
    pixels_L3 = seen_L3 @ camera.intrinsics.T
    pixels_L2: np.ndarray = pixels_L3[:, :2] / pixels_L3[:, 2:]
    return pixels_L2


def draw_plans(frame: np.ndarray, plans: Sequence[np.ndarray]) -> np.ndarray:
    """The frame `[H, W, 3]` uint8 with a line through each chunk's pixels `[L, 2]`; overlapping lines are darker."""
    picture = Image.fromarray(frame).convert("RGBA")
    for pixels_L2 in plans:
        layer = Image.new("RGBA", picture.size, (*_INK[:3], 0))
        ImageDraw.Draw(layer).line([tuple(pixel) for pixel in pixels_L2.tolist()], fill=_INK, width=1)
        picture = Image.alpha_composite(picture, layer)
    return np.asarray(picture.convert("RGB"))
