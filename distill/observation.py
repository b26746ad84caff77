"""What a policy of some shape needs to be shown: the features of cameras, the cameras, the part of a batch."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from envs.cameras.specs import CameraSettings
from envs.specs import STATE
from teachers.contract import FEATURES, Observation
from teachers.networks.observations import sources_of
from teachers.networks.shapes import PolicyShape


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
