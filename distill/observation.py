"""What a policy of some shape observes: its camera features, the cameras it needs, its part of a batch."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from envs.cameras.specs import CameraSettings
from envs.specs import STATE
from teachers.contract import FEATURES, Observation
from teachers.networks.observations import sources_of
from teachers.networks.shapes import PolicyShape


def camera_sources(shape: PolicyShape) -> tuple[str, ...]:
    """The features for which a policy of this shape needs cameras."""
    return tuple(name for name in sources_of(shape) if name != STATE)


def cameras_for(shape: PolicyShape, cameras: CameraSettings | None) -> CameraSettings | None:
    """The cheapest subset of these cameras that gives a policy of this shape its features; None for a state-only policy.

    Raises ValueError when the cameras do not provide them.
    """
    needed = camera_sources(shape)
    if not needed:
        return None
    if cameras is None:
        raise ValueError(f"this policy observes {list(needed)}, but no cameras were given; pass those of its demonstrations")
    return cameras.only(needed)


def observation_of(batch: Mapping[str, Tensor]) -> Observation:
    """The observation in a training batch: precomputed features where the batch has them, else all observed features."""
    if FEATURES in batch:
        return {FEATURES: batch[FEATURES]}
    return {name: value for name, value in batch.items() if name.startswith("observation.")}
