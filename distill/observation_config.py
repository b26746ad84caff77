"""What the policies of a run observe, and how observations are augmented in training: a section of the configuration."""

from __future__ import annotations

from dataclasses import dataclass

from envs.cameras.specs import CAMERAS, CameraSettings
from envs.specs import nearest_name
from teachers.networks.scene_motions import MotionRange
from teachers.networks.shapes import Augmentation, EncoderShape, PolicyShape

SOURCES = ("state", "images", "depth", "points")


def observation_of(shape: PolicyShape) -> ObservationConfig:
    """The observation that an existing policy of this shape was made for, as far as it decides the cameras."""
    encoder = shape.encoder
    if encoder is None:
        return ObservationConfig()
    seen = {"images": encoder.cameras, "depth": encoder.depth_cameras, "points": encoder.num_points}
    return ObservationConfig(
        sources=("state", *(name for name, there in seen.items() if there)),
        cameras=tuple(dict.fromkeys((*encoder.cameras, *encoder.depth_cameras))), image_size=encoder.image_size,
        num_points=encoder.num_points or ObservationConfig.num_points, colours=encoder.point_colours,
    )  # fmt: skip


@dataclass(frozen=True)
class ObservationConfig:
    """What the policies observe. By default the whole state; then no camera is opened.

    Attributes:
        sources: any of state, images (RGB), depth and points (a point cloud fused from all cameras)
        state_names: names of the observed state dimensions; empty: all. With cameras, name only the robot's own: the full
            state also holds the pose of the object
        cameras: cameras for images and depth
        image_size: (height, width) of images and depth [px]
        num_points: N, points of the cloud
        colours: whether each point also has RGB values
        keypoints: positions that the points' encoder reads out by attention, beside the maximum; 0: none
        frame: base, or tool: the network sees points and positions relative to the tool's position at planning time, and plans
            relative to it; inputs and outputs of a policy stay in the base frame
        width: size of the encoder's feature vector
        channels: channels of the encoder's convolutions
        shift_px: augmentation: largest random shift of images [px]
        colour: augmentation: largest relative change of colour gain and contrast
        point_jitter_m: augmentation: noise of points [m]
        translate_m: augmentation: largest random translation, along each axis, of the whole scene: points, poses of the
            state and actions together [m]. For policies that observe points or rlbench.objects; a student's observations are
            moved as well
        rotate_deg: augmentation: largest random rotation of the whole scene about the robot's vertical axis [degrees]
        dropout: augmentation: probability of dropping a whole source
        stretch: augmentation: largest random change of the scene's lengths along each axis, seen from the tool, relative
        displace_m: augmentation: largest random displacement of the tool alone, along each axis; demonstrations then show how
            to come back [m]. For clouds without the robot (rlbench.without_robot)
        frozen: true: a student keeps its teacher's encoder unchanged and is trained on the features stored in the
            hypothesis cache; false: a student goes on training the encoder
    """

    sources: tuple[str, ...] = ("state",)
    state_names: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ("front", "wrist")
    image_size: tuple[int, int] = (64, 64)
    num_points: int = 512
    colours: bool = False
    keypoints: int = 0
    frame: str = "base"
    width: int = 128
    channels: int = 32
    shift_px: int = 1
    colour: float = 0.1
    point_jitter_m: float = 0.002
    dropout: float = 0.0
    translate_m: float = 0.0
    rotate_deg: float = 0.0
    stretch: float = 0.0
    displace_m: float = 0.0
    frozen: bool = True

    @property
    def is_plain(self) -> bool:
        """Whether policies observe the whole state and nothing else. They then use no unified encoder."""
        return self.sources == ("state",) and not self.state_names

    @property
    def motions(self) -> MotionRange:
        """The random motions of scenes in training."""
        return MotionRange(self.translate_m, self.rotate_deg, self.stretch, self.displace_m)

    def camera_settings(self) -> CameraSettings | None:
        """The cameras that demonstrations are recorded with; None when no camera is needed."""
        images, depth, points = ("images" in self.sources, "depth" in self.sources, "points" in self.sources)
        if not (images or depth or points):
            return None
        height, width = self.image_size
        return CameraSettings(
            cameras=CAMERAS if points else self.cameras, width=width, height=height, images=images, depth=depth,
            num_points=self.num_points if points else 0, colours=points and self.colours,
        )  # fmt: skip

    def encoder(self, state_names: tuple[str, ...]) -> EncoderShape | None:
        """The encoder shape for a task with these state dimensions; None for a plain observation.

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
                point_colours=points and self.colours, keypoints=self.keypoints if points else 0,
                width=self.width, channels=self.channels,
                augmentation=Augmentation(self.shift_px, self.colour, self.point_jitter_m, self.dropout),
            )  # fmt: skip
        except ValueError as error:
            raise ValueError(f"observation.{error}") from error

    def check(self, state_names: tuple[str, ...]) -> None:
        """Raise ValueError for any invalid setting, for a task with these state dimensions."""
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
                f"{list(self.sources)}; add it there, or name no state dimensions"
            )
        if not self.cameras and {"images", "depth"} & set(self.sources):
            raise ValueError(f"observation.cameras: got none, but {list(self.sources)} need at least one of {list(CAMERAS)}")
        if self.colours and "points" not in self.sources:
            raise ValueError("observation.colours: only point clouds have colours; add points to observation.sources")
        self.encoder(state_names)
