"""Headless colour and depth images of any MuJoCo model: the renderer's interface, and the renderer that uses OpenGL."""

from __future__ import annotations

import atexit
import functools
import weakref
from typing import Any

import mujoco
import numpy as np

from envs.specs import nearest_name

BACKGROUND = (0.76, 0.84, 0.92)
"""Colour of pixels without any surface, the same in every backend."""

VISIBLE_GROUPS = (1, 1, 1, 0, 0, 0)
"""Geom groups that are drawn: MuJoCo's own default. Sites, joints and contacts are never drawn."""

GL_QUALITY = {"offsamples": 0, "shadowsize": 0, "numslices": 16, "numstacks": 10, "numquads": 1}
"""No anti-aliasing, no shadows, coarser round shapes: two to three times the frame rate of MuJoCo's defaults on a CPU."""


class Renderer:
    """One model's images at one size. Use as a context manager, or call `close` before the process ends.

    backend: which of envs.cameras.backends.BACKENDS it is; near_m, far_m: clipping planes [m]. A renderer belongs to the
    thread that opened it. Raises ValueError for an empty image.
    """

    backend = ""

    def __init__(self, model: mujoco.MjModel, width: int, height: int) -> None:
        if width < 1 or height < 1:
            raise ValueError(f"got an image of {width} x {height}, expected at least 1 x 1 pixel")
        self.model, self.width, self.height = model, width, height
        self.near_m = float(model.vis.map.znear * model.stat.extent)
        self.far_m = float(model.vis.map.zfar * model.stat.extent)

    def render(self, data: mujoco.MjData, camera: str) -> tuple[np.ndarray, np.ndarray]:
        """Colour `[H, W, 3]` uint8 and depth `[H, W]` float32 [m] of a camera of the model.

        Row 0 is the top, column 0 the left. Depth is along the camera's axis (not along the ray), and `far_m` where there is
        no surface. `data` must be up to date (mj_forward or mj_step). Raises ValueError for an unknown camera.
        """
        raise NotImplementedError

    def depth(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        """The depth of `render` alone, which is faster in some backends."""
        return self.render(data, camera)[1]

    def close(self) -> None:
        """Frees the backend's resources; calling it again does nothing."""

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def focal_pixels(model: mujoco.MjModel, index: int, height: int) -> float:
    """Focal length [pixels] of camera number `index`; the principal point is the image's centre."""
    return float(0.5 * height / np.tan(np.deg2rad(model.cam_fovy[index]) / 2.0))


def camera_id(model: mujoco.MjModel, camera: str) -> int:
    """Index of a camera by name. Raises ValueError with the nearest name, or when it is not a plain pinhole."""
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
        try:  # only the context's creation reads these; the caller's model stays unchanged
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
        self._gl.make_current()  # another renderer may have been current; without this, frames are silently garbage
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


def _close_if_alive(reference: weakref.ref[Any]) -> None:
    renderer = reference()
    if renderer is not None:
        renderer.close()
