"""Which points of a cloud lie on the robot: capsules around the Panda's links, from its joint angles.

A policy knows where its arm is. Without the arm, a cloud of few points shows the scene, and a policy cannot take the arm's path
in a demonstration for a sign of where the goal is.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial.transform import Rotation

_DH = ((0.0, 0.333, 0.0), (0.0, 0.0, -math.pi / 2), (0.0, 0.316, math.pi / 2), (0.0825, 0.0, math.pi / 2),
       (-0.0825, 0.384, -math.pi / 2), (0.0, 0.0, math.pi / 2), (0.088, 0.0, math.pi / 2))  # fmt: skip
"""Panda's Denavit-Hartenberg parameters in Craig's convention (a [m], d [m], alpha [rad]), joints 1 to 7; Franka's manual."""

_LINKS = ((None, 0, 0.13), (0, 2, 0.13), (2, 3, 0.13), (3, 4, 0.13), (4, 5, 0.12), (5, 6, 0.12))
"""Capsules between the origins of two joints (None: the base), and their radius [m]."""

_TOOL = (((0.0, 0.0, -0.24), (0.0, 0.0, -0.13), 0.1), ((0.0, -0.08, -0.09), (0.0, 0.08, -0.09), 0.05),
         ((0.0, -0.045, -0.06), (0.0, -0.045, 0.0), 0.022), ((0.0, 0.045, -0.06), (0.0, 0.045, 0.0), 0.022))  # fmt: skip
"""Capsules in the tool's frame, its origin between the finger tips: flange, hand, and both fingers where they are open."""


def joint_origins(joints_7: np.ndarray) -> np.ndarray:
    """`[7, 3]` [m]: the origin of each joint's frame in the base frame, for joint angles `[7]` [rad]."""
    pose, origins = np.eye(4), []
    for (offset, length, twist), angle in zip(_DH, joints_7, strict=True):
        cos_t, sin_t, cos_a, sin_a = math.cos(angle), math.sin(angle), math.cos(twist), math.sin(twist)
        pose = pose @ np.array([
            [cos_t, -sin_t, 0.0, offset],
            [sin_t * cos_a, cos_t * cos_a, -sin_a, -length * sin_a],
            [sin_t * sin_a, cos_t * sin_a, cos_a, length * cos_a],
            [0.0, 0.0, 0.0, 1.0],
        ])  # fmt: skip
        origins.append(pose[:3, 3])
    return np.array(origins)


def capsules(joints_7: np.ndarray, tool_7: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both ends `[C, 3]` and radii `[C]` [m] of the robot's capsules in the base frame.

    joints_7: angles [rad]. tool_7: position in the base frame [m] and quaternion xyzw of the tool.
    """
    origins, turn = joint_origins(joints_7), Rotation.from_quat(tool_7[3:])
    ends = [(np.zeros(3) if first is None else origins[first], origins[second], radius) for first, second, radius in _LINKS]
    ends += [(tool_7[:3] + turn.apply(first), tool_7[:3] + turn.apply(second), radius) for first, second, radius in _TOOL]
    return np.array([each[0] for each in ends]), np.array([each[1] for each in ends]), np.array([each[2] for each in ends])


def on_robot(points_P3: np.ndarray, joints_7: np.ndarray, tool_7: np.ndarray) -> np.ndarray:
    """Whether each point `[P, 3]` of the base frame lies within a capsule of the robot, `[P]` bool."""
    found = np.zeros(len(points_P3), dtype=bool)
    for first, second, radius in zip(*capsules(joints_7, tool_7), strict=True):
        along = second - first
        share_P = np.clip((points_P3 - first) @ along / max(float(along @ along), 1e-12), 0.0, 1.0)
        gap_P3 = points_P3 - first - share_P[:, None] * along
        found |= np.einsum("pi,pi->p", gap_P3, gap_P3) < radius**2
    return found
