"""Choice of the renderer: EGL, else OSMesa, else ray casting without OpenGL, each probed in a process of its own."""

from __future__ import annotations

import ctypes.util
import functools
import importlib
import os
import subprocess
import sys
from pathlib import Path

import mujoco

from envs.cameras.raycast import RaycastRenderer
from envs.cameras.render import GlRenderer, Renderer

BACKENDS = ("egl", "osmesa", "raycast")
"""In the order in which `auto` tries them. Each is named explicitly, so the variable MUJOCO_GL has no effect."""

PROBE_SECONDS = 60
"""Time limit of a probe [s]."""

LIBRARIES = {"egl": ("EGL", "libegl1 libgl1-mesa-dri"), "osmesa": ("OSMesa", "libosmesa6")}
"""Shared library that each OpenGL backend needs, and the Debian packages that provide it."""


def open_renderer(model: mujoco.MjModel, width: int, height: int, backend: str = "auto") -> Renderer:
    """A renderer of `width` x `height` pixels; `auto` takes the first backend that works here; ray casting always does.

    Raises ValueError for an unknown backend, RuntimeError when the named one is not available.
    """
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"got backend {backend!r}, expected one of {('auto', *BACKENDS)}")
    if backend != "auto":
        reason = _probe(backend)
        if reason:
            raise RuntimeError(f"renderer {backend!r} is not available ({reason}); use 'auto' or 'raycast'")
        try:
            return _open(backend, model, width, height)
        except ImportError as error:  # a process can use PyOpenGL with one platform only
            raise RuntimeError(f"renderer {backend!r} cannot share a process with another OpenGL ({error})") from error
    for name in BACKENDS[:-1]:
        if not _probe(name):
            try:
                return _open(name, model, width, height)
            except (ImportError, AttributeError, RuntimeError, OSError, mujoco.FatalError):
                continue  # it works in a process of its own, not in this one (another GL is loaded)
    return _open_raycast(model, width, height)


def available_backends() -> dict[str, str]:
    """Every backend with "" when it works here, else the reason. Each is probed in a process of its own."""
    return {name: _probe(name) for name in BACKENDS}


def _open(backend: str, model: mujoco.MjModel, width: int, height: int) -> Renderer:
    if backend == "raycast":
        return _open_raycast(model, width, height)
    module = importlib.import_module(f"mujoco.{backend}")  # late: importing it loads that OpenGL
    return GlRenderer(model, width, height, backend, module.GLContext)


def _open_raycast(model: mujoco.MjModel, width: int, height: int) -> Renderer:
    return RaycastRenderer(model, width, height)


_PROBE = """
import sys
import mujoco
from envs.cameras import backends
model = mujoco.MjModel.from_xml_string(
    '<mujoco><worldbody><geom type="plane" size="1 1 .1"/><camera name="c" pos="0 0 2"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with backends._open(sys.argv[1], model, 8, 8) as renderer:
    depth = renderer.render(data, "c")[1][4, 4]
if abs(depth - 2.0) > 0.01:
    raise RuntimeError(f"draws garbage: a plane 2 m away was seen at {depth:.3f} m")
"""


@functools.cache
def _probe(backend: str) -> str:
    """Why a backend does not work, or "". A broken OpenGL can end a process, so it is tried in one of its own."""
    if backend == "raycast":
        return ""
    without = {name: value for name, value in os.environ.items() if name != "PYOPENGL_PLATFORM"}  # set by an open renderer
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, backend], cwd=Path(__file__).resolve().parents[2], env=without,
            capture_output=True, text=True, errors="replace", timeout=PROBE_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"did not answer within {PROBE_SECONDS} s"
    except OSError as error:
        return f"could not be tried: {error}"
    if done.returncode == 0:
        return ""
    if done.returncode < 0:
        return f"ended its process with signal {-done.returncode}"
    library, packages = LIBRARIES[backend]
    if ctypes.util.find_library(library) is None:
        return f"library lib{library} not found (apt-get install {packages})"
    errors = [line for line in done.stderr.splitlines() if line and not line.startswith((" ", "Exception ignored"))]
    named = [line for line in errors if "Error" in line.split(":")[0]]
    return (named or errors or ["failed without a word"])[0].strip()[:200]
