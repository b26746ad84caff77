"""What the policies of a run see: the section `observation` of its config, and the cameras and the encoder that follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from envs.cameras.specs import CAMERAS, CameraSettings
from envs.specs import STATE, nearest_name
from teachers.contract import FEATURES, Observation
from teachers.networks.observations import sources_of
from teachers.networks.shapes import Augmentation, EncoderShape, PolicyShape

SOURCES = ("state", "images", "depth", "points")


@dataclass(frozen=True)
class ObservationConfig:
    """What the policies see. As it comes: the whole state, and no camera is opened.

    sources: any of state, images (colours), depth and points (a cloud fused from all cameras).
    state_names: the numbers of the state that are seen; none: all of them. With cameras name those of the robot alone: a
    state also says where the object is.
    cameras, image_size: whose images and depth are seen, and (height, width) of each [px].
    num_points, colours: N of the cloud; whether each of its points has a colour.
    width, channels: of the encoder's feature, and of its convolutions (teachers.networks.observations.EncoderShape).
    shift_px, colour, point_jitter_m, dropout: augmentation (teachers.networks.augmentation.Augmentation).
    frozen: students keep a copy of the teacher's encoder as it is, so that its features, which are in the cache, are all that
    they are trained on; else they go on training it.
    """

    sources: tuple[str, ...] = ("state",)
    state_names: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ("front", "wrist")
    image_size: tuple[int, int] = (64, 64)
    num_points: int = 512
    colours: bool = False
    width: int = 128
    channels: int = 32
    shift_px: int = 1
    colour: float = 0.1
    point_jitter_m: float = 0.002
    dropout: float = 0.0
    frozen: bool = True

    @property
    def is_plain(self) -> bool:
        """Whether policies see the whole state and nothing else: then they have no encoder of the unified kind."""
        return self.sources == ("state",) and not self.state_names

    def camera_settings(self) -> CameraSettings | None:
        """The cameras that demonstrations are recorded with; None where none is needed."""
        images, depth, points = ("images" in self.sources, "depth" in self.sources, "points" in self.sources)
        if not (images or depth or points):
            return None
        height, width = self.image_size
        return CameraSettings(
            cameras=CAMERAS if points else self.cameras, width=width, height=height, images=images, depth=depth,
            num_points=self.num_points if points else 0, colours=points and self.colours,
        )  # fmt: skip

    def encoder(self, state_names: tuple[str, ...]) -> EncoderShape | None:
        """The encoder for a task whose state has these names; None for a plain observation.

        Raises ValueError for sizes that contradict each other.
        """
        if self.is_plain:
            return None
        points = "points" in self.sources
        try:
            return EncoderShape(
                state_names=(self.state_names or state_names) if "state" in self.sources else (),
                cameras=self.cameras if "images" in self.sources else (),
                depth_cameras=self.cameras if "depth" in self.sources else (),
                image_size=self.image_size, num_points=self.num_points if points else 0,
                point_colours=points and self.colours, width=self.width, channels=self.channels,
                augmentation=Augmentation(self.shift_px, self.colour, self.point_jitter_m, self.dropout),
            )  # fmt: skip
        except ValueError as error:
            raise ValueError(f"observation.{error}") from error

    def check(self, state_names: tuple[str, ...]) -> None:
        """Raise ValueError for everything that is wrong, for a task whose state has these names."""
        for name, values, known in (
            ("sources", self.sources, SOURCES), ("cameras", self.cameras, CAMERAS),
            ("state_names", self.state_names, state_names),
        ):  # fmt: skip
            for value in values:
                if value not in known:
                    raise ValueError(
                        f"observation.{name}: unknown {value!r}; expected some of {list(known)}{nearest_name(value, known)}"
                    )
            if len(set(values)) != len(values):
                raise ValueError(f"observation.{name}: got a name twice in {list(values)}; name each once")
        if not self.sources:
            raise ValueError(f"observation.sources: got none, expected some of {list(SOURCES)}")
        if self.state_names and "state" not in self.sources:
            raise ValueError(
                f"observation.state_names: got {list(self.state_names)}, but the state is not among observation.sources "
                f"{list(self.sources)}; add it there, or name none"
            )
        if not self.cameras and {"images", "depth"} & set(self.sources):
            raise ValueError(f"observation.cameras: got none, but {list(self.sources)} need some of {list(CAMERAS)}")
        if self.colours and "points" not in self.sources:
            raise ValueError("observation.colours: only points have them; add points to observation.sources")
        self.encoder(state_names)


def recorded_with(settings: CameraSettings | None) -> dict[str, Any]:
    """What demonstrations depend on; nothing where no camera is opened, so that their keys stay what they were."""
    return {} if settings is None else {"cameras": asdict(settings)}


def seen_by(observation: ObservationConfig, state_names: tuple[str, ...]) -> dict[str, Any]:
    """What the training of a policy depends on; nothing for a plain observation."""
    encoder = observation.encoder(state_names)
    return {} if encoder is None else {"encoder": asdict(encoder)}


def camera_sources(shape: PolicyShape) -> tuple[str, ...]:
    """The features that a policy of this shape needs cameras for."""
    return tuple(name for name in sources_of(shape) if name != STATE)


def cameras_for(shape: PolicyShape, cameras: CameraSettings | None) -> CameraSettings | None:
    """The cheapest of these cameras that show all a policy of this shape sees; None where it sees the state only.

    Raises ValueError when they do not show it.
    """
    needed = camera_sources(shape)
    if not needed:
        return None
    if cameras is None:
        raise ValueError(f"this policy sees {list(needed)}, but no cameras were given; pass those of its demonstrations")
    return cameras.only(needed)


def observation_of(batch: Mapping[str, Tensor]) -> Observation:
    """The observation in a training batch: its features where they were made before, else all that was seen."""
    if FEATURES in batch:
        return {FEATURES: batch[FEATURES]}
    return {name: value for name, value in batch.items() if name.startswith("observation.")}
