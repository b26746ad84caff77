"""The cameras of an environment: settings, intrinsics, extrinsics, and names, shapes and units of their features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from envs.specs import DEPTH, IMAGES, POINTS, nearest_name

CAMERAS = ("front", "left", "right", "overhead", "wrist")
"""The cameras of every embedded task. All are fixed but the wrist camera, which is mounted on the hand."""

SAMPLINGS = ("farthest", "random")
"""Ways to reduce a cloud to N points: farthest-point or uniform sampling."""
IDENTITY = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class CameraSettings:
    """Which camera features an environment adds to the state. The defaults add everything.

    cameras: names of cameras of the model, in the order in which the cloud is fused.
    width, height: pixels of every image.
    images, depth: whether colour and depth images are part of the observation.
    num_points: points of the fused cloud, N; 0 for no cloud.
    colours: whether each point has its colour (C = 3, in 0..1) after its position.
    sampling: ``farthest`` (even over the surfaces) or ``random`` (even over the pixels; cheaper).
    crop_low, crop_high: the cloud's box in the base frame [m]; its floor is 4 mm above the table, whose points (most of the
    image) carry no information.
    range_m: greatest depth [m]; farther pixels have it.
    seed: of the cloud's sampling, together with the number of the control step.
    backend: the renderer, see envs.cameras.backends. Ray casting is the default because its colours are the same on every
    machine. OpenGL's differ from them, so a policy must run with the backend of its demonstrations.

    Raises ValueError for inconsistent values.
    """

    cameras: tuple[str, ...] = CAMERAS
    width: int = 64
    height: int = 64
    images: bool = True
    depth: bool = True
    num_points: int = 512
    colours: bool = False
    sampling: str = "farthest"
    crop_low: tuple[float, float, float] = (0.20, -0.35, 0.004)
    crop_high: tuple[float, float, float] = (0.80, 0.35, 0.35)
    range_m: float = 3.0
    seed: int = 0
    backend: str = "raycast"

    def __post_init__(self) -> None:
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ValueError(f"cameras must be named, each once, got {self.cameras}")
        if not (self.images or self.depth or self.num_points):
            raise ValueError("images, depth and num_points are all off: leave the cameras away, or turn one on")
        if self.width < 1 or self.height < 1 or self.num_points < 0 or self.range_m <= 0:
            raise ValueError(f"width, height and range_m must be positive and num_points not negative, got {self}")
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"sampling must be one of {SAMPLINGS}, got {self.sampling!r}")
        if any(low >= high for low, high in zip(self.crop_low, self.crop_high, strict=True)):
            raise ValueError(f"crop_low must be below crop_high, got {self.crop_low} and {self.crop_high}")

    def only(self, features: Sequence[str]) -> CameraSettings:
        """The cheapest settings that still produce these features unchanged.

        A cloud needs all cameras; without it only the named ones are kept. Raises ValueError for features that these settings
        do not produce, or none.
        """
        kinds = {
            kind: tuple(camera for camera in self.cameras if on and f"{kind}.{camera}" in features)
            for kind, on in ((IMAGES, self.images), (DEPTH, self.depth))
        }
        given = {f"{kind}.{camera}" for kind, cameras in kinds.items() for camera in cameras}
        wrong = sorted(set(features) - given - ({POINTS} if self.num_points else set()))
        if wrong or not features:
            raise ValueError(f"these settings give no {wrong or 'empty list of features'}: {self}")
        clouded = POINTS in features
        return replace(
            self, images=bool(kinds[IMAGES]), depth=bool(kinds[DEPTH]), num_points=self.num_points if clouded else 0,
            cameras=self.cameras if clouded else tuple(c for c in self.cameras if c in kinds[IMAGES] + kinds[DEPTH]),
        )  # fmt: skip


@dataclass(frozen=True)
class CameraSpec:
    """One pinhole camera without distortion. Its axes are OpenCV's: x right, y down, z into the picture.

    name: the camera's. width, height: pixels.
    focal_px: focal length, the same across and down; the principal point is the image's middle, (width / 2, height / 2)
    where pixel (0, 0) reaches from 0 to 1.
    mount: the body it is fixed to; ``base`` is the robot's base, whose frame is that of the observations.
    mount_from_camera: 4 x 4 row by row: transforms points [m] from the camera's frame to the mount's.

    Raises ValueError unless mount_from_camera has 16 numbers.
    """

    name: str
    width: int
    height: int
    focal_px: float
    mount: str = "base"
    mount_from_camera: tuple[float, ...] = IDENTITY

    def __post_init__(self) -> None:
        if len(self.mount_from_camera) != 16:
            raise ValueError(f"mount_from_camera of {self.name!r} must be 16 numbers, got {len(self.mount_from_camera)}")

    @property
    def moves(self) -> bool:
        """Whether it is mounted on a part of the robot."""
        return self.mount != "base"

    @property
    def intrinsics(self) -> np.ndarray:
        """`[3, 3]` float64: (x, y, z) in the camera's frame to (column z, row z, z) [pixels, m]."""
        return np.array([[self.focal_px, 0, self.width / 2], [0, self.focal_px, self.height / 2], [0, 0, 1.0]])

    @property
    def extrinsics(self) -> np.ndarray:
        """`[4, 4]` float64: `mount_from_camera`. A moving camera's pose in the base frame is in `CameraFrames.poses`."""
        return np.array(self.mount_from_camera).reshape(4, 4)


@dataclass(frozen=True)
class CamerasSpec:
    """What the cameras add to an observation.

    settings: the settings, with the backend in use instead of ``auto``. cameras: one spec per camera, in their order.
    Raises ValueError for other cameras than the settings name.
    """

    settings: CameraSettings
    cameras: tuple[CameraSpec, ...]

    def __post_init__(self) -> None:
        wanted = [(name, self.settings.width, self.settings.height) for name in self.settings.cameras]
        if wanted != [(camera.name, camera.width, camera.height) for camera in self.cameras]:
            raise ValueError(f"cameras must be those of the settings, {self.settings.cameras}, got {self.cameras}")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every feature of one frame: images `[3, H, W]` (0..1), depth `[1, H, W]` [m], points `[N, 3 + C]` ([m], 0..1)."""
        settings = self.settings
        found: dict[str, tuple[int, ...]] = {}
        size = (settings.height, settings.width)
        if settings.images:
            found |= {f"{IMAGES}.{name}": (3, *size) for name in settings.cameras}
        if settings.depth:
            found |= {f"{DEPTH}.{name}": (1, *size) for name in settings.cameras}
        if settings.num_points:
            found[POINTS] = (settings.num_points, 6 if settings.colours else 3)
        return found

    def camera(self, name: str) -> CameraSpec:
        """One camera's spec. Raises ValueError with the known names for an unknown one."""
        for camera in self.cameras:
            if camera.name == name:
                return camera
        hint = nearest_name(name, self.settings.cameras, "; did you mean")
        raise ValueError(f"there is no camera {name!r} here, only {list(self.settings.cameras)}{hint}")

    def require(self, features: Sequence[str]) -> None:
        """Raises ValueError with the first of `features` that these cameras do not produce, and those that they do."""
        given = sorted(self.shapes())
        for name in features:
            if name not in given:
                hint = nearest_name(name, given, "; did you mean")
                raise ValueError(f"{name!r} is wanted, but these cameras give only {given}{hint}")

    def check_recorded(self, recorded: CamerasSpec) -> None:
        """Raises ValueError, with the settings and cameras that differ, unless these cameras match the recorded ones.

        Fewer features are no difference, as long as each is unchanged (`CameraSettings.only`).
        """
        then, now = recorded.settings.only(tuple(self.shapes())), self.settings
        different = [name for name, value in asdict(now).items() if asdict(then)[name] != value]
        if not different:
            different = [camera.name for camera in self.cameras if camera != recorded.camera(camera.name)]
        if different:
            raise ValueError(
                f"the cameras are not those of the demonstrations ({different} differ): open them with the recorded "
                "settings, or record again"
            )

    def to_json(self) -> dict[str, Any]:
        """As plain dicts, lists and numbers."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> CamerasSpec:
        """The inverse of `to_json`, after JSON. Raises ValueError for anything else."""

        def tuples(table: Mapping[str, Any]) -> dict[str, Any]:
            return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}

        try:
            cameras = tuple(CameraSpec(**tuples(each)) for each in stored["cameras"])
            return cls(CameraSettings(**tuples(stored["settings"])), cameras)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"these cameras can not be read: {error}") from error


def check_camera_features(observation: Mapping[str, Any], spec: CamerasSpec) -> None:
    """Raises ValueError unless an observation of one frame matches the spec.

    Checked: missing features (the error names those present), shapes and dtype float32, images in 0..1, finite points, and
    depth that is NaN (unknown) or above 0 and at most `range_m`.
    """
    for name, shape in spec.shapes().items():
        if name not in observation:
            present = sorted(key for key in observation if key.startswith((IMAGES, DEPTH, POINTS)))
            raise ValueError(f"the observation lacks {name!r}; of cameras it holds {present}")
        values = np.asarray(observation[name])
        if values.shape != shape or values.dtype != np.float32:
            raise ValueError(f"{name} must be {shape} float32, got {values.shape} {values.dtype}")
        if name.startswith(DEPTH):
            right = np.isnan(values) | ((values > 0) & (values <= np.float32(spec.settings.range_m)))
            expected = f"above 0 and at most {spec.settings.range_m} m, or NaN where it is unknown"
        elif name == POINTS:
            right, expected = np.isfinite(values), "finite"
        else:
            right, expected = (values >= 0) & (values <= 1), "in 0 .. 1"
        if not right.all():
            raise ValueError(f"{name} must be {expected}, got {values[~right][:3].tolist()} in {int((~right).sum())} places")
