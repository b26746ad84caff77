"""Normalisation of observations and actions to [-1, 1]; the statistics are buffers and saved with the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.recorded.outliers import robust_range
from envs.specs import DEPTH, IMAGES, POINTS, STATE
from teachers.contract import Observation
from teachers.networks.derived import DerivedValue
from teachers.networks.shapes import PolicyShape

CONSTANT = 5e-7
"""A dimension with less than this half range is constant: it is shifted, but not scaled."""
HOLE = 2
"""Radius of the neighbourhood from which an unknown depth is imputed [px]."""


class Normaliser(nn.Module):
    """Affine map of every state and action dimension from its range in the demonstrations to [-1, 1].

    With `depth` and `points` also of depth, one range for all cameras, and of the points' coordinates. Colours lie in 0 .. 1
    and need no statistics. A dimension that is constant in the demonstrations (range below 1e-6) is shifted but not scaled; an
    action dimension whose minimum and maximum are equal comes out as exactly that number, whatever the network predicts.
    A new normaliser holds NaN, and every use raises ValueError until `fit` or a loaded checkpoint fills it.
    """

    state_low: Tensor
    state_high: Tensor
    action_low: Tensor
    action_high: Tensor

    def __init__(self, state_size: int, action_size: int, depth: bool = False, points: bool = False) -> None:
        super().__init__()
        sizes = {"state": state_size, "action": action_size, "depth": int(depth), "points": 3 * points}
        self._ranges = tuple(name for name, size in sizes.items() if size or name in ("state", "action"))
        self._centre_scales: dict[str, DerivedValue[tuple[Tensor, Tensor]]] = {name: DerivedValue() for name in self._ranges}
        for name, size in sizes.items():
            if name not in self._ranges:
                continue
            self.register_buffer(f"{name}_low", torch.full((size,), float("nan")))
            self.register_buffer(f"{name}_high", torch.full((size,), float("nan")))

    @classmethod
    def of(cls, shape: PolicyShape) -> Self:
        """A new normaliser with the statistics that a policy of this shape needs."""
        encoder = shape.encoder
        return cls(
            shape.state_size, shape.action_size, depth=encoder is not None and bool(encoder.depth_cameras),
            points=encoder is not None and encoder.num_points > 0,
        )  # fmt: skip

    def fit(self, statistics: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Sets the ranges: ``statistics["state"|"action"|"depth"|"points"]["min"|"max"]``, `[S]`, `[A]`, `[1]`, `[3]`, raw.

        Depth and points are read only where they are needed. Raises ValueError for missing ones, wrong sizes, or values that
        are not finite.
        """
        lacking = [name for name in self._ranges if name not in statistics]
        if lacking:
            raise ValueError(
                f"statistics: got {sorted(statistics)}, but not {lacking}, which this policy needs; observed_ranges makes "
                "those of depth and points from observations"
            )
        for name in self._ranges:
            for ours, theirs in (("low", "min"), ("high", "max")):
                buffer = getattr(self, f"{name}_{ours}")
                value = torch.as_tensor(np.asarray(statistics[name][theirs]), dtype=torch.float32)
                if value.shape != buffer.shape or not bool(torch.isfinite(value).all()):
                    raise ValueError(
                        f"statistics of {name} ({theirs}): got shape {tuple(value.shape)}, finite="
                        f"{bool(torch.isfinite(value).all())}; expected {tuple(buffer.shape)} finite numbers. "
                        "Make the demonstrations' statistics again."
                    )
                buffer.copy_(value)

    def check(self) -> None:
        """Raises ValueError unless every statistic is finite and no minimum exceeds its maximum."""
        bad = [name for name, buffer in self.named_buffers() if not bool(torch.isfinite(buffer).all())]
        if bad:
            raise ValueError(
                f"normalisation statistics {bad} are not finite; expected the ranges of the training data. "
                "Call fit(statistics) or load a policy folder that was saved whole."
            )
        for name in self._ranges:
            low, high = getattr(self, f"{name}_low"), getattr(self, f"{name}_high")
            if bool((low > high).any()):
                raise ValueError(
                    f"normalisation statistics {name}_low, {name}_high: got a range from {low.max().item():g} down to "
                    f"{high.min().item():g}, expected the least and the most of the training data"
                )

    def centre_scale(self, name: str) -> tuple[Tensor, Tensor]:
        """Centre and half range of ``state``, ``action``, ``depth`` or ``points``, raw; normalised is (raw - centre) / scale.

        Raises ValueError for statistics that are not finite. Checked and computed only when the statistics have changed.
        """
        low, high = getattr(self, f"{name}_low"), getattr(self, f"{name}_high")
        return self._centre_scales[name].get((low, high), lambda: self._centre_scale(low, high))

    def _centre_scale(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        if not torch.compiler.is_compiling():  # a graph cannot branch on values
            self.check()
        half = (high - low) / 2
        return (high + low) / 2, torch.where(half < CONSTANT, torch.ones_like(half), half)

    def state_spread(self) -> np.ndarray:
        """`[S]` half the range of every state dimension, raw units; 0 for a constant one."""
        self.check()
        half_S: np.ndarray = ((self.state_high - self.state_low) / 2).cpu().numpy()
        return np.where(half_S < CONSTANT, 0.0, half_S)

    def normalise_state(self, state: Tensor) -> Tensor:
        """`[.., S]` raw units to about [-1, 1]."""
        centre, scale = self.centre_scale("state")
        return (state - centre) / scale

    def normalise_depth(self, depth_m: Tensor) -> Tensor:
        """Depth `[.., 1, H, W]` [m] to `[.., 2, H, W]`: the depth in about [-1, 1], and a mask: 1 where known, 0 where NaN.

        Unknown depth is imputed, see `fill_unknown`.
        """
        centre, scale = self.centre_scale("depth")
        known = depth_m == depth_m  # NaN is not
        value = (depth_m.to(centre) - centre) / scale
        return torch.cat([fill_unknown(value, known), known.to(value)], dim=-3)

    def normalise_points(self, points: Tensor) -> Tensor:
        """`[.., 3+C]`: coordinates [m] and colours 0 .. 1 to about [-1, 1]."""
        centre, scale = self.centre_scale("points")
        points = points.to(centre)
        positions = (points[..., :3] - centre) / scale
        return positions if points.shape[-1] == 3 else torch.cat([positions, 2 * points[..., 3:] - 1], dim=-1)

    def normalise_image(self, image: Tensor) -> Tensor:
        """Colours 0 .. 1 to [-1, 1]."""
        return (2 * image.to(self.state_low)).sub_(1)

    def normalise(self, observation: Observation) -> Observation:
        """The sources of an observation, by name or grouped by kind (`teachers.networks.observations.group_by_kind`)."""
        found: Observation = {}
        for name, value in observation.items():
            if name.startswith(IMAGES):
                found[name] = self.normalise_image(value)
            elif name.startswith(DEPTH):
                found[name] = self.normalise_depth(value)
            elif name == POINTS:
                found[name] = self.normalise_points(value)
            elif name == STATE:
                found[name] = self.normalise_state(value)
            else:  # a further modality, whose own module normalises it
                found[name] = value.to(self.state_low)
        return found

    def normalise_action(self, action: Tensor) -> Tensor:
        """`[.., A]` raw units to about [-1, 1]."""
        centre, scale = self.centre_scale("action")
        return (action - centre) / scale

    def unnormalise_action(self, action: Tensor) -> Tensor:
        """`[.., A]` from [-1, 1] to raw units."""
        centre, scale = self.centre_scale("action")
        return action * (scale * (self.action_high != self.action_low)) + centre


def fill_unknown(value: Tensor, known: Tensor) -> Tensor:
    """Images `[.., R, 1, H, W]` with each unknown pixel replaced by the mean of the known ones within `HOLE` pixels.

    Where none of these is known, by the mean of the image's known pixels; where there are none, by 0. (A constant for all
    unknown pixels would create edges all over the image.)
    """
    # only a short cut, which an exported graph cannot take: the rest gives the same result
    if not torch.compiler.is_exporting() and bool(known.all()):
        return value
    value, weight = torch.where(known, value, 0.0), known.to(value)
    both_R2HW = torch.cat([value * weight, weight], dim=-3).flatten(0, -4)
    around, near = F.avg_pool2d(both_R2HW, 2 * HOLE + 1, 1, HOLE).split(1, dim=1)
    total, count = both_R2HW.sum((-2, -1), keepdim=True).split(1, dim=1)
    filled = torch.where(near > 0, around / near.clamp(min=1e-6), total / count.clamp(min=1))
    return torch.where(known, value, filled.view_as(value))


SAMPLED = 4096
"""Values of each depth image or cloud that robust ranges are taken from."""


def observed_ranges(observations: Iterable[Observation], robust: bool = False) -> dict[str, dict[str, np.ndarray]]:
    """Statistics of depth and points over all observations, as far as they have them, for `Normaliser.fit`.

    robust: ranges that a few wrong pixels or points cannot set (`envs.recorded.outliers.robust_range`), else the extremes.
    Raises ValueError for depth without any known pixel, and for infinite values.
    """
    low: dict[str, np.ndarray] = {}
    high: dict[str, np.ndarray] = {}
    some: dict[str, list[np.ndarray]] = {}
    for observation in observations:
        for name, value in observation.items():
            if name != POINTS and not name.startswith(DEPTH):
                continue
            key = "points" if name == POINTS else "depth"
            rows = value[..., :3].reshape(-1, 3) if key == "points" else value[~value.isnan()].reshape(-1, 1)
            if not len(rows) or not bool(rows.isfinite().all()):
                raise ValueError(f"{name}: got {len(rows)} known values, or infinity among them; expected finite metres")
            if robust:
                some.setdefault(key, []).append(rows[:: -(-len(rows) // (SAMPLED * len(value)))].double().cpu().numpy())
                continue
            least, most = (rows.amin(0).double().cpu().numpy(), rows.amax(0).double().cpu().numpy())
            low[key] = np.minimum(low[key], least) if key in low else least
            high[key] = np.maximum(high[key], most) if key in high else most
    for key, parts in some.items():
        low[key], high[key] = robust_range(np.concatenate(parts), events=False)
    return {key: {"min": low[key], "max": high[key]} for key in low}
