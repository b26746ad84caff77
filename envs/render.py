"""Headless colour and depth images of any MuJoCo model: EGL, else OSMesa, else ray casting without any OpenGL."""

from __future__ import annotations

import atexit
import ctypes.util
import functools
import importlib
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from envs.specs import nearest_name

BACKENDS = ("egl", "osmesa", "raycast")
"""In the order in which `auto` tries them. The first two are named explicitly, so MUJOCO_GL plays no part."""

BACKGROUND = (0.76, 0.84, 0.92)
"""Colour of pixels that see nothing, the same in every backend."""

VISIBLE_GROUPS = (1, 1, 1, 0, 0, 0)
"""Geom groups that are drawn: MuJoCo's own default. Sites, joints and contacts are never drawn."""

GL_QUALITY = {"offsamples": 0, "shadowsize": 0, "numslices": 16, "numstacks": 10, "numquads": 1}
"""No anti-aliasing, no shadows, coarser round shapes: two to three times the frames of MuJoCo's defaults on a CPU."""

PROBE_SECONDS = 60

LIBRARIES = {"egl": ("EGL", "libegl1 libgl1-mesa-dri"), "osmesa": ("OSMesa", "libosmesa6")}
"""Shared library each OpenGL backend needs and the Debian packages that bring it."""


class Renderer:
    """One model's images at one size. Use as a context manager, or call `close` before the process ends.

    backend: which of `BACKENDS` draws. A renderer belongs to the thread that opened it.
    """

    backend = ""

    def __init__(self, model: mujoco.MjModel, width: int, height: int) -> None:
        if width < 1 or height < 1:
            raise ValueError(f"got an image of {width} x {height}, expected at least 1 x 1 pixel")
        self.model, self.width, self.height = model, width, height
        self.near_m = float(model.vis.map.znear * model.stat.extent)
        self.far_m = float(model.vis.map.zfar * model.stat.extent)

    def render(self, data: mujoco.MjData, camera: str) -> tuple[np.ndarray, np.ndarray]:
        """Colour `[H, W, 3]` uint8 and depth `[H, W]` float32 [m] seen by a camera of the model.

        Row 0 is the top, column 0 the left. Depth is along the camera's axis (not along the ray); where nothing is
        seen it is `far_m`. `data` must be up to date (mj_forward or mj_step). Raises ValueError for an unknown camera.
        """
        raise NotImplementedError

    def depth(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        """The depth of `render` alone, which some backends give faster."""
        return self.render(data, camera)[1]

    def close(self) -> None:
        """Free what the backend holds; calling it again does nothing."""

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_renderer(model: mujoco.MjModel, width: int, height: int, backend: str = "auto") -> Renderer:
    """Renderer of `width` x `height` pixels; `auto` takes the first backend that works here, and one always does.

    Raises ValueError for an unknown backend, RuntimeError when the one asked for by name is not available.
    """
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"got backend {backend!r}, expected one of {('auto', *BACKENDS)}")
    if backend != "auto":
        reason = _probe(backend)
        if reason:
            raise RuntimeError(f"renderer {backend!r} is not available ({reason}); use 'auto' or 'raycast'")
        try:
            return _open(backend, model, width, height)
        except ImportError as error:  # PyOpenGL is one platform's for as long as a process lives
            raise RuntimeError(f"renderer {backend!r} cannot share a process with another OpenGL ({error})") from error
    for name in BACKENDS[:-1]:
        if not _probe(name):
            try:
                return _open(name, model, width, height)
            except (ImportError, AttributeError, RuntimeError, OSError, mujoco.FatalError):
                continue  # worked in a process of its own, not in this one (another GL is loaded)
    return _open_raycast(model, width, height)


def available_backends() -> dict[str, str]:
    """Every backend with "" when it works here, else the reason why not. Each is tried in a process of its own."""
    return {name: _probe(name) for name in BACKENDS}


def focal_pixels(model: mujoco.MjModel, index: int, height: int) -> float:
    """Focal length [pixels] of camera number `index`; the principal point is the image's centre."""
    return float(0.5 * height / np.tan(np.deg2rad(model.cam_fovy[index]) / 2.0))


def camera_id(model: mujoco.MjModel, camera: str) -> int:
    """Number of a camera by name. Raises ValueError with the nearest name, or when it is not a plain pinhole."""
    index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
    if index < 0:
        names = [model.camera(i).name for i in range(model.ncam)]
        raise ValueError(f"got camera {camera!r}, expected one of {names}{nearest_name(camera, names, '; did you mean')}")
    if np.any(model.cam_sensorsize[index] != 0):
        raise ValueError(f"camera {camera!r} is given by sensorsize, expected fovy: write fovy= in its MJCF")
    return index


class GlRenderer(Renderer):
    """Images by MuJoCo's OpenGL renderer in an off-screen context; shadows and anti-aliasing off."""

    def __init__(self, model: mujoco.MjModel, width: int, height: int, backend: str, context_class: Any) -> None:
        super().__init__(model, width, height)
        self.backend = backend
        self._gl = context_class(width, height)
        self._gl.make_current()
        self._context = self._make_context()
        self._closed = False
        self._at_exit = functools.partial(_close_if_alive, weakref.ref(self))
        atexit.register(self._at_exit)  # after the context's own handler, so it runs before that one
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = VISIBLE_GROUPS
        self._option.sitegroup[:] = 0
        self._scene = mujoco.MjvScene(model, maxgeom=model.ngeom + 100)
        flags = mujoco.mjtRndFlag
        for flag in (flags.mjRND_SHADOW, flags.mjRND_REFLECTION, flags.mjRND_SKYBOX, flags.mjRND_HAZE):
            self._scene.flags[flag] = 0
        self._viewport = mujoco.MjrRect(0, 0, width, height)
        self._rgb = np.empty((height, width, 3), np.uint8)
        self._window = np.empty((height, width), np.float32)

    def _make_context(self) -> mujoco.MjrContext:
        size = self.model.vis.global_
        wanted = [(size, "offwidth", self.width), (size, "offheight", self.height)]
        wanted += [(self.model.vis.quality, name, value) for name, value in GL_QUALITY.items()]
        before = [(place, name, getattr(place, name)) for place, name, _ in wanted]
        for place, name, value in wanted:
            setattr(place, name, value)
        try:  # these are read here only; the caller's model is left as it was
            context = mujoco.MjrContext(self.model, mujoco.mjtFontScale.mjFONTSCALE_100)
        finally:
            for place, name, value in before:
                setattr(place, name, value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
        if context.currentBuffer != mujoco.mjtFramebuffer.mjFB_OFFSCREEN:
            raise RuntimeError("OpenGL gave no off-screen buffer; use backend='raycast'")
        return context

    def render(self, data: mujoco.MjData, camera: str) -> tuple[np.ndarray, np.ndarray]:
        if self._closed:
            raise RuntimeError("this renderer is closed; open another one")
        self._camera.fixedcamid = camera_id(self.model, camera)
        self._gl.make_current()  # another renderer may have been current; without this frames are silently garbage
        mujoco.mjv_updateScene(
            self.model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        mujoco.mjr_readPixels(self._rgb, self._window, self._viewport, self._context)
        rgb, window = self._rgb[::-1].copy(), self._window[::-1]
        depth = (self.near_m / (1.0 - window * (1.0 - self.near_m / self.far_m))).astype(np.float32)
        nothing = window >= 1.0
        rgb[nothing], depth[nothing] = background(), self.far_m
        return rgb, depth

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            atexit.unregister(self._at_exit)
            self._gl.make_current()
            self._context.free()
            self._gl.free()


def background() -> np.ndarray:
    """`BACKGROUND` as `[3]` uint8."""
    return (np.array(BACKGROUND) * 255.0 + 0.5).astype(np.uint8)


def _open(backend: str, model: mujoco.MjModel, width: int, height: int) -> Renderer:
    if backend == "raycast":
        return _open_raycast(model, width, height)
    module = importlib.import_module(f"mujoco.{backend}")  # late: importing it loads that OpenGL
    return GlRenderer(model, width, height, backend, module.GLContext)


def _open_raycast(model: mujoco.MjModel, width: int, height: int) -> Renderer:
    from envs.raycast import RaycastRenderer  # late: that module is built on this one

    return RaycastRenderer(model, width, height)


def _close_if_alive(reference: weakref.ref[Any]) -> None:
    renderer = reference()
    if renderer is not None:
        renderer.close()


_PROBE = """
import sys
import mujoco
from envs import render
model = mujoco.MjModel.from_xml_string(
    '<mujoco><worldbody><geom type="plane" size="1 1 .1"/><camera name="c" pos="0 0 2"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with render._open(sys.argv[1], model, 8, 8) as renderer:
    depth = renderer.render(data, "c")[1][4, 4]
if abs(depth - 2.0) > 0.01:
    raise RuntimeError(f"draws garbage: a plane 2 m away was seen at {depth:.3f} m")
"""


@functools.cache
def _probe(backend: str) -> str:
    """Why a backend does not work, or "": a broken OpenGL can end a process, so it is tried in one of its own."""
    if backend == "raycast":
        return ""
    without = {name: value for name, value in os.environ.items() if name != "PYOPENGL_PLATFORM"}  # set by an open renderer
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, backend], cwd=Path(__file__).resolve().parent.parent, env=without,
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
