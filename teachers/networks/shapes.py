"""Inputs, outputs and network sizes of a policy, as frozen dataclasses stored in its ``config.json``."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from envs.specs import DEPTH, IMAGES, POINTS, STATE, nearest_name

FRAMES = ("base", "tool")
SMALLEST = 16
"""Least height and width of an image [px]: the network downsamples by eight."""


@dataclass(frozen=True)
class Augmentation:
    """Strength of the augmentation in training; 0 turns each part off.

    shift_px: greatest shift of images, the edge repeated (DrQ, arXiv 2004.13649), depth with the colours of its camera.
    Policies here plan absolute positions, which a shift contradicts: keep it at a pixel or two.
    colour: greatest relative change of each colour's gain and of an image's contrast.
    point_jitter_m: standard deviation of the noise on every coordinate of a point [m].
    dropout: probability of dropping each source (state, one camera's colours, one camera's depth, points); never all.

    Raises ValueError for values out of range.
    """

    shift_px: int = 2
    colour: float = 0.1
    point_jitter_m: float = 0.002
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.shift_px < 0 or self.point_jitter_m < 0:
            raise ValueError(
                f"shift_px and point_jitter_m: got {self.shift_px} and {self.point_jitter_m}, expected at least 0 (0: off)"
            )
        for name in ("colour", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 0 (off) and less than 1")

    @property
    def any(self) -> bool:
        """Whether any part is on."""
        return bool(self.shift_px or self.colour or self.point_jitter_m or self.dropout)


@dataclass(frozen=True)
class EncoderShape:
    """Sources and sizes of an encoder. Saved within the policy's ``config.json``.

    state_names: state dimensions that are used; none: no proprioception. (A task's state may hold the object's position,
    which a policy with cameras must not get.)
    cameras, depth_cameras: cameras used in colour, and in depth; image_size: (H, W) of both [px].
    num_points, point_colours: N of the cloud, 0 for none; whether its points have colours.
    keypoints: positions that the encoder of the cloud reads out, see `PointEncoder`; 0: none.
    width: F, of the feature and of every token; heads, queries: of the attention over the tokens.
    channels: of the convolutions; the last one has twice as many.
    vectors: further modalities (`teachers.networks.modalities.MODALITIES`) as (feature name, numbers per observation step).
    augmentation: in training. It is no property of a trained network, so it is ignored when shapes are compared.

    Raises ValueError for inconsistent values.
    """

    state_names: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()
    depth_cameras: tuple[str, ...] = ()
    image_size: tuple[int, int] = (84, 84)
    num_points: int = 0
    point_colours: bool = False
    width: int = 128
    heads: int = 4
    queries: int = 4
    channels: int = 32
    vectors: tuple[tuple[str, int], ...] = ()
    keypoints: int = 0
    augmentation: Augmentation = field(default=Augmentation(), compare=False)

    def __post_init__(self) -> None:
        # JSON has no tuples and no dataclasses: a config read from a folder arrives with lists and dicts
        for name in ("state_names", "cameras", "depth_cameras", "image_size"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if name != "image_size" and len(set(getattr(self, name))) != len(getattr(self, name)):
                raise ValueError(f"{name}: got {getattr(self, name)}, expected every name once")
        object.__setattr__(self, "vectors", tuple((str(name), int(size)) for name, size in self.vectors))
        if isinstance(self.augmentation, dict):
            object.__setattr__(self, "augmentation", Augmentation(**self.augmentation))
        if not self.sources:
            raise ValueError("an encoder without sources: name state_names, cameras or depth_cameras, or set num_points")
        if len(self.image_size) != 2 or min(self.image_size) < SMALLEST:
            raise ValueError(f"image_size: got {self.image_size}, expected (height, width) of at least {SMALLEST} pixels")
        if self.keypoints < 0 or (self.keypoints and not self.num_points):
            raise ValueError(
                f"keypoints: got {self.keypoints} with num_points={self.num_points}; expected at least 0, none without points"
            )
        if self.num_points < 0 or (self.point_colours and not self.num_points):
            raise ValueError(
                f"num_points: got {self.num_points} with point_colours={self.point_colours}; expected at least 0 (no cloud), "
                "and no colours without points"
            )
        if min(self.width, self.heads, self.queries) < 1 or self.width % self.heads:
            raise ValueError(
                f"width must be a multiple of heads, and heads and queries at least 1: got width={self.width}, "
                f"heads={self.heads}, queries={self.queries}"
            )
        if self.channels < 16 or self.channels % 16:  # so that every group norm has groups of equal size
            raise ValueError(f"channels: got {self.channels}, expected a multiple of 16")

    @property
    def views(self) -> tuple[str, ...]:
        """Every camera used in colour or in depth, once."""
        return tuple(dict.fromkeys((*self.cameras, *self.depth_cameras)))

    @property
    def sources(self) -> tuple[str, ...]:
        """The features that are used, in the order of the network's tokens."""
        return (
            *((STATE,) if self.state_names else ()),
            *(f"{IMAGES}.{camera}" for camera in self.cameras),
            *(f"{DEPTH}.{camera}" for camera in self.depth_cameras),
            *((POINTS,) if self.num_points else ()),
            *(name for name, _ in self.vectors),
        )

    @property
    def point_size(self) -> int:
        """3 + C, the size of a point."""
        return 6 if self.point_colours else 3

    def to_json(self) -> dict[str, Any]:
        """The fields, without ``vectors`` and ``keypoints`` where there are none."""
        return {name: value for name, value in asdict(self).items() if value or name not in ("vectors", "keypoints")}


@dataclass(frozen=True)
class PolicyShape:
    """Inputs, outputs and network size of a policy. Saved in its ``config.json``.

    task: registered name of the task; state_names, action_names: `[S]`, `[A]`; action_weights: `[A]`.
    observation_steps: O, observations per input, including the present one.
    horizon: T, actions per chunk; dt_s: control period [s].
    width, depth, heads: of the transformer; patch: actions per token, so T / patch tokens.
    encoder: sources and sizes of a `UnifiedEncoder`; None: the whole state by a `StateEncoder`.
    frame: ``base`` or ``tool``: where the origin of points, of the state's positions and of the actions' lies inside the
        network: at the robot's base, or at the tool at planning time (`teachers.networks.tool_frame`). Axes are always the
        base's, and so are all inputs and outputs.

    Raises ValueError for inconsistent values.
    """

    task: str
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    action_weights: tuple[float, ...]
    dt_s: float
    observation_steps: int
    horizon: int
    width: int = 128
    depth: int = 3
    heads: int = 4
    patch: int = 8
    encoder: EncoderShape | None = None
    frame: str = "base"

    def __post_init__(self) -> None:
        # JSON has no tuples: a config read from a folder arrives with lists
        for name in ("state_names", "action_names", "action_weights"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.encoder, dict):
            object.__setattr__(self, "encoder", EncoderShape(**self.encoder))
        for name in ("observation_steps", "horizon", "width", "depth", "heads", "patch"):
            size = getattr(self, name)
            least = int(name != "depth")  # a network without blocks works
            if isinstance(size, bool) or not isinstance(size, int) or size < least:
                raise ValueError(f"{name}: got {size!r}, expected a whole number of at least {least}")
        if isinstance(self.dt_s, bool) or not isinstance(self.dt_s, (int, float)) or not 0 < self.dt_s < math.inf:
            raise ValueError(f"dt_s: got {self.dt_s!r}, expected a control period above 0 s")
        if len(self.action_weights) != len(self.action_names):
            raise ValueError(f"action_weights: got {len(self.action_weights)}, expected one for each of {self.action_names}")
        for name in () if self.encoder is None else self.encoder.state_names:
            if name not in self.state_names:
                hint = nearest_name(name, self.state_names)
                raise ValueError(f"encoder.state_names: got {name!r}, expected some of {list(self.state_names)}{hint}")
        if self.frame not in FRAMES:
            raise ValueError(f"frame: got {self.frame!r}, expected one of {FRAMES}{nearest_name(self.frame, FRAMES)}")
        if self.horizon % self.patch:
            raise ValueError(
                f"horizon {self.horizon} is not a multiple of patch {self.patch}: every token holds `patch` actions. "
                "Change one of the two."
            )
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width must be even and a multiple of heads, got width={self.width}, heads={self.heads}")

    @property
    def state_size(self) -> int:
        return len(self.state_names)

    @property
    def action_size(self) -> int:
        return len(self.action_names)

    def to_json(self) -> dict[str, Any]:
        """The fields for ``config.json``, without those of an encoder that are not used."""
        fields = asdict(self)
        if self.frame == "base":
            del fields["frame"]
        if self.encoder is None:
            del fields["encoder"]
        else:
            fields["encoder"] = self.encoder.to_json()
        return fields
