"""Renderers that need processes of their own, and rays, see the same depth in every task and camera."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import envs
from envs.cameras.backends import available_backends
from envs.cameras.specs import CAMERAS

ROOT = Path(__file__).resolve().parents[3]
SHOTS = """
import sys
import numpy as np
import envs
from envs.cameras.specs import CAMERAS
from envs.cameras.backends import open_renderer
backend, target = sys.argv[1:]
seen = {}
for task in sorted(envs.TASKS):
    env = envs.make(task)
    env.reset(seed=0)
    for action in env.plan(env.spec_task.modes[0], np.random.default_rng(0))[:30]:
        env.step(action)
    with open_renderer(env.model, 128, 128, backend) as renderer:
        for camera in CAMERAS:
            seen[f"{task} {camera}"] = renderer.render(env.data, camera)[1]
np.savez(target, **seen)
"""


def depths(backend: str, target: Path) -> dict[str, np.ndarray]:
    """Depth images by "task camera", drawn by a process of its own: one process has one OpenGL."""
    free = {name: value for name, value in os.environ.items() if name != "PYOPENGL_PLATFORM"}
    done = subprocess.run(
        [sys.executable, "-c", SHOTS, backend, str(target)], cwd=ROOT, env=free, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    with np.load(target) as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def by_rays(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return depths("raycast", tmp_path_factory.mktemp("rays") / "rays.npz")


@pytest.mark.parametrize("backend", ["egl", "osmesa"])
def test_opengl_and_rays_agree_within_2_mm_at_the_median(backend: str, by_rays: dict[str, np.ndarray], tmp_path: Path) -> None:
    reason = available_backends()[backend]
    if reason:
        pytest.skip(f"{backend}: {reason}")
    by_gl = depths(backend, tmp_path / "gl.npz")
    assert set(by_gl) == set(by_rays) == {f"{task} {camera}" for task in envs.TASKS for camera in CAMERAS}
    for name, rays in by_rays.items():
        gap = np.abs(by_gl[name] - rays)
        seen = (rays < 3.0) | (by_gl[name] < 3.0)
        assert seen.mean() > 0.3, name
        assert np.median(gap[seen]) < 1e-3, name
        assert np.mean(gap[seen] < 5e-3) > 0.95, name  # the rest: outlines, and round shapes drawn with flat sides
