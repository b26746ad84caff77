"""Rigid motions of whole scenes: state, point cloud and actions move together, so that a policy learns where things are
relative to each other, not the hundred places at which they happened to be demonstrated.

(Translation augmentation; in RLBench with 100 demonstrations it takes the error of a reach point from 6.6 to 2.4 cm.)
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from envs.poses import MISSING, PoseLayout, pose_layout
from envs.specs import POINTS, STATE
from teachers.networks.shapes import PolicyShape

ACTION_KEYS = ("action", "hypotheses")
"""Names of actions in a training batch."""
NUMBERS = 4
"""Uniform random numbers of one motion."""


@dataclass(frozen=True)
class MotionRange:
    """How far scenes are moved at random.

    translate_m: greatest translation along each axis [m]; rotate_deg: greatest rotation about the vertical axis of the robot's
    base, either way [degrees].
    """

    translate_m: float = 0.0
    rotate_deg: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.translate_m < math.inf and 0 <= self.rotate_deg <= 180):
            raise ValueError(
                f"translate_m and rotate_deg: got {self.translate_m} and {self.rotate_deg}, expected at least 0 (off), and at "
                "most 180 degrees"
            )

    @property
    def any(self) -> bool:
        """Whether anything moves."""
        return bool(self.translate_m or self.rotate_deg)

    @property
    def key(self) -> dict[str, Any]:
        """Its part of a stage's key; empty where nothing moves."""
        return {"motions": asdict(self)} if self.any else {}


STILL = MotionRange()
"""Scenes stay where they are."""


@dataclass(frozen=True)
class RigidMotions:
    """One motion per row, p -> R p + t. rotation_B33; translation_B3 [m]."""

    rotation_B33: Tensor
    translation_B3: Tensor

    def move_positions(self, positions: Tensor) -> Tensor:
        """Positions `[B, .., 3]` [m], moved."""
        shift = self.translation_B3.view(len(self.translation_B3), *[1] * (positions.ndim - 2), 3)
        return self.turn(positions) + shift

    def turn(self, directions: Tensor) -> Tensor:
        """Directions `[B, .., 3]`, rotated."""
        rows = directions.reshape(len(directions), -1, 3)
        return (rows @ self.rotation_B33.transpose(1, 2)).view(directions.shape)

    def move_points(self, points: Tensor) -> Tensor:
        """Clouds `[B, .., N, 3+C]` with moved positions; colours stay."""
        return torch.cat([self.move_positions(points[..., :3]), points[..., 3:]], dim=-1)

    def move_vector(self, values: Tensor, layout: PoseLayout) -> Tensor:
        """Vectors `[B, .., D]` with every position moved and every direction rotated; other dimensions stay."""
        moved = values.clone()
        for triples, move in ((layout.positions, self.move_positions), (layout.directions, self.turn)):
            for triple in triples:
                # an axis that is missing counts as 0: a motion about the vertical axis does not mix it with the others
                axes = [values[..., index] if index != MISSING else torch.zeros_like(values[..., 0]) for index in triple]
                for index, value in zip(triple, move(torch.stack(axes, dim=-1)).unbind(-1), strict=True):
                    if index != MISSING:
                        moved[..., index] = value
        return moved


def draw_motions(ranges: MotionRange, uniform_B4: Tensor) -> RigidMotions:
    """Motions from uniform numbers in [0, 1): the first three translate, the last one rotates."""
    centred_B4 = 2 * uniform_B4 - 1
    angle_B = math.radians(ranges.rotate_deg) * centred_B4[:, 3]
    zero_B, one_B = torch.zeros_like(angle_B), torch.ones_like(angle_B)
    rows = [angle_B.cos(), -angle_B.sin(), zero_B, angle_B.sin(), angle_B.cos(), zero_B, zero_B, zero_B, one_B]
    return RigidMotions(torch.stack(rows, dim=-1).unflatten(-1, (3, 3)), ranges.translate_m * centred_B4[:, :3])


def move_batch(batch: dict[str, Tensor], shape: PolicyShape, motions: RigidMotions) -> dict[str, Tensor]:
    """A batch of raw observations and raw actions `[B, ..]` with every row's scene moved; other entries stay."""
    state, action = layouts(shape)
    moves: dict[str, Any] = {STATE: lambda value: motions.move_vector(value, state), POINTS: motions.move_points}
    moves |= {name: lambda value: motions.move_vector(value, action) for name in ACTION_KEYS}
    return {name: moves[name](value) if name in moves else value for name, value in batch.items()}


def layouts(shape: PolicyShape) -> tuple[PoseLayout, PoseLayout]:
    """Of the state and of the action."""
    return pose_layout(shape.state_names), pose_layout(shape.action_names)


def check_motions(ranges: MotionRange, shape: PolicyShape) -> None:
    """Raises ValueError where moving scenes would teach something wrong: what a policy observes must move as a whole.

    Cameras do not move with the scene, so images and depth cannot be moved; nor can joint angles. A policy that observes no
    point cloud does not see the obstacles that its state leaves out.
    """
    if not ranges.any:
        return
    sources = () if shape.encoder is None else shape.encoder.sources
    fixed = [name for name in sources if name not in (STATE, POINTS)]
    observed = shape.state_names if shape.encoder is None else shape.encoder.state_names
    angles = [name for name in (*observed, *shape.action_names) if name.endswith("_rad")]
    if POINTS not in sources or fixed or angles:
        got = fixed + angles or ["no point cloud"]
        raise ValueError(
            f"translate_m and rotate_deg move the point cloud, the poses of the state and those of the actions together; got "
            f"{got}, which cannot be moved with them. Observe points and the gripper's pose only, or set both to 0"
        )
