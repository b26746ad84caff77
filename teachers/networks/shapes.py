"""What a policy sees, makes and is made of, as frozen records: they travel in ``config.json`` beside the weights."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from envs.specs import DEPTH, IMAGES, POINTS, STATE, nearest_name

SMALLEST = 16
"""Pixels [px] that an image has at least each way: the network makes it eight times smaller."""


@dataclass(frozen=True)
class Augmentation:
    """How much observations are changed in training; zeros switch each change off.

    shift_px: images are shifted by up to so many pixels, the edge repeated (DrQ, arXiv 2004.13649), depth with the colours
    of its camera. Policies here plan absolute positions, which a shift contradicts: keep it at a pixel or two.
    colour: gain of each colour and contrast of an image change by up to this share.
    point_jitter_m: standard deviation of what is added to every coordinate of a point [m].
    dropout: probability of leaving out each source (state, one camera's colours, one camera's depth, points); never all.
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
        return bool(self.shift_px or self.colour or self.point_jitter_m or self.dropout)


@dataclass(frozen=True)
class EncoderShape:
    """What is seen, and the size of the network that makes one feature of it. Saved within the policy's ``config.json``.

    state_names: those of the policy's state that are seen; none: no proprioception. (A task's state may hold where the
    object is, which a policy with cameras must not be told.)
    cameras, depth_cameras: seen in colour, and in depth; image_size: (H, W) of both [px].
    num_points, point_colours: N of the cloud, 0 for none; whether its points have colours.
    width: F, of the feature and of every token; heads, queries: of the attention over the tokens.
    channels: of the convolutions, twice as many in the last one.
    augmentation: in training. It says nothing of what a trained network is, so shapes that differ in it alone are equal.
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
    augmentation: Augmentation = field(default=Augmentation(), compare=False)

    def __post_init__(self) -> None:
        # JSON has no tuples and no dataclasses: a config read from a folder arrives with lists and dicts
        for name in ("state_names", "cameras", "depth_cameras", "image_size"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if name != "image_size" and len(set(getattr(self, name))) != len(getattr(self, name)):
                raise ValueError(f"{name}: got {getattr(self, name)}, expected every name once")
        if isinstance(self.augmentation, dict):
            object.__setattr__(self, "augmentation", Augmentation(**self.augmentation))
        if not self.sources:
            raise ValueError("an encoder sees nothing: name state_names, cameras or depth_cameras, or set num_points")
        if len(self.image_size) != 2 or min(self.image_size) < SMALLEST:
            raise ValueError(f"image_size: got {self.image_size}, expected (height, width) of at least {SMALLEST} pixels")
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
        """Every camera that is seen in colour or in depth, once."""
        return tuple(dict.fromkeys((*self.cameras, *self.depth_cameras)))

    @property
    def sources(self) -> tuple[str, ...]:
        """The features of an observation that are seen, in the order of the network's tokens."""
        return (
            *((STATE,) if self.state_names else ()),
            *(f"{IMAGES}.{camera}" for camera in self.cameras),
            *(f"{DEPTH}.{camera}" for camera in self.depth_cameras),
            *((POINTS,) if self.num_points else ()),
        )

    @property
    def point_size(self) -> int:
        """3 + C, numbers of a point."""
        return 6 if self.point_colours else 3


@dataclass(frozen=True)
class PolicyShape:
    """What a policy network must know of its task, and its own size. Saved as ``config.json``.

    task: registered name of the task; state_names, action_names: `[S]`, `[A]`; action_weights: `[A]`.
    observation_steps: O, how many past observations (the present one included) are seen.
    horizon: T, actions per chunk; dt_s: control period [s].
    width, depth, heads: of the transformer; patch: how many actions make one token, so T / patch tokens.
    encoder: what is seen beside or instead of the state, and by what network; None: all of the state, by `StateEncoder`.
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

    def __post_init__(self) -> None:
        # JSON has no tuples: a config read from a folder arrives with lists
        for name in ("state_names", "action_names", "action_weights"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.encoder, dict):
            object.__setattr__(self, "encoder", EncoderShape(**self.encoder))
        for name in ("observation_steps", "horizon", "width", "depth", "heads", "patch"):
            size = getattr(self, name)
            least = int(name != "depth")  # without a block there is still a network
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
        """The fields as JSON can hold them. Without an encoder of its own a shape is described as before there were any."""
        fields = asdict(self)
        if self.encoder is None:
            del fields["encoder"]
        return fields
