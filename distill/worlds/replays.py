"""Rollouts once more before a camera, with the sets of plans that the policy had in mind drawn over them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

import envs
from distill.evaluation.histories import History, stacked
from distill.evaluation.policies import Policy, postprocess, sample_set
from distill.evaluation.rollouts import episode_generator
from distill.stages.measuring import selection
from distill.worlds.clips import write_clip
from distill.worlds.rlbench_clips import join_clips
from envs.cameras.backends import open_renderer
from envs.cameras.render import Renderer
from envs.cameras.rig import camera_spec
from envs.cameras.specs import CameraSpec
from envs.panda.base import PandaEnv

if TYPE_CHECKING:
    from distill.stages.pipeline import Pipeline

CLIP_SIZE = (240, 180)
CAMERA = "front"
PLANS = 24
"""Plans of a set that are drawn."""

_INK = (209, 114, 15, 110)
_HOLD_FRAMES = 12


def render_clips(pipeline: Pipeline, folder: Path) -> dict[str, str]:
    """Replay the first test episodes of the teacher, the regression student and the default student before a camera.

    The actions are those that were carried out; our simulator is deterministic, so the replay is the rollout. Over it lie,
    from replan to replan, `PLANS` plans that the policy draws from what it sees there.
    """
    config, plan = pipeline.config, pipeline.plan
    if config.is_rlbench:  # filmed while they were rolled out: no simulator of it repeats an episode
        return join_clips(pipeline, folder)
    steps = config.evaluate.teacher_steps[0]
    stages = {f"teacher_{steps}": plan.teachers_evaluated[steps]}
    for name in ("regression", config.student.default):
        if name in plan.students_evaluated:
            stages[name] = plan.students_evaluated[name]
    (folder / "clips").mkdir(exist_ok=True)
    clips: dict[str, str] = {}
    env = envs.make(config.task, pipeline.cameras)
    env.cameras_on_demand = True
    with contextlib.closing(env), open_renderer(env.model, *CLIP_SIZE) as renderer:
        for policy in pipeline.policies():
            if policy.name not in stages:
                continue
            result = json.loads((pipeline.run.folder(stages[policy.name]) / "result.json").read_text())
            frames: list[np.ndarray] = []
            for episode in result["episodes"][:2]:
                if episode["actions"]:
                    frames += _replay(pipeline, policy, episode, env, renderer)
                    frames += frames[-1:] * _HOLD_FRAMES
            if frames:
                clips[policy.name] = f"clips/{policy.name}.webp"
                write_clip(folder / clips[policy.name], frames, fps=round(1 / pipeline.spec.dt_s))
    return clips


def _replay(
    pipeline: Pipeline, policy: Policy, episode: dict[str, Any], env: PandaEnv, renderer: Renderer
) -> Iterator[np.ndarray]:
    """The episode's frames `[H, W, 3]` uint8."""
    every, index = pipeline.config.evaluate.execution_horizon, episode["index"]
    generator = episode_generator(pipeline.config.seed, index)
    history = History(env, policy.shape.observation_steps, lambda step: step % every == 0)
    observation, _ = env.reset(options={"start": pipeline.stored()["test"].numpy()[index]})
    history.add(observation, 0)
    view = camera_spec(env.model, CAMERA, *CLIP_SIZE)
    pixels: list[np.ndarray] = []
    for step, action in enumerate(episode["actions"]):
        if step % every == 0:
            seen = stacked([history])
            drawn = sample_set(policy, seen, generator, PLANS, selection(pipeline, policy), every)
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
    """The frame `[H, W, 3]` uint8 with a line through each plan's pixels `[L, 2]`; where many lie it is darker."""
    picture = Image.fromarray(frame).convert("RGBA")
    for pixels_L2 in plans:
        layer = Image.new("RGBA", picture.size, (*_INK[:3], 0))
        ImageDraw.Draw(layer).line([tuple(pixel) for pixel in pixels_L2.tolist()], fill=_INK, width=1)
        picture = Image.alpha_composite(picture, layer)
    return np.asarray(picture.convert("RGB"))
