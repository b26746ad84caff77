"""Glitches of sensors among recorded numbers, and ranges that a single sample cannot set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FRAMES = 3
"""A reading that jumps away and back within so many frames is a glitch; what stays away longer is a movement."""
BULK = (0.15, 0.85)
"""Quantiles between which the bulk of the readings lies."""
FAR, STAYS = 2.0, 4.0
"""So many widths of the bulk outside of it a reading is far out; one that stays there is told from `STAYS` on."""
JUMP = 0.5
"""Share of the distance to the bulk that a glitch comes and goes in, in one frame."""
WRAPS, VALUES = 0.9, 16
"""Share of its range that a wrapping angle jumps by, and distinct readings that it has more than."""
REPEATS = 3
"""A reading that is taken this often, by itself, is a signal of two values."""

QUANTILES, MARGIN, EVENTS = (0.005, 0.995), 0.5, 20.0
"""A range is that of these quantiles with this share of its width on either side, and never wider than all values. Where all
values are more than `EVENTS` times as wide as the quantiles, what lies outside is a rare movement: it is that of all values."""


@dataclass(frozen=True)
class Outlier:
    """Readings far out: frames `first` .. `last`, number `column` of `name`, the one farthest out, and where the bulk lies.

    is_glitch: whether it jumped there and back within `FRAMES`; else it stayed there, and it sets the range.
    """

    name: str
    column: int
    first: int
    last: int
    value: float
    low: float
    high: float
    is_glitch: bool

    def said(self) -> str:
        where = f"frame {self.first}" if self.first == self.last else f"frames {self.first} .. {self.last}"
        what = "an outlier, that frame is left out" if self.is_glitch else "far from the rest; it sets the range"
        what = what.replace("that frame is", "those frames are") if self.first != self.last else what
        return f"{self.name}[{self.column}] is {self.value:.6g} in {where}, the bulk {self.low:.6g} .. {self.high:.6g}: {what}"


def find_outliers(name: str, values_FD: np.ndarray, ends_G: np.ndarray) -> list[Outlier]:
    """Readings `[F, D]` that lie far out, stretch by stretch of frames that follow each other (ends_G: where each ends)."""
    found = []
    for column in range(values_FD.shape[1]):
        values_F = values_FD[:, column].astype(np.float64)
        low, high = (float(each) for each in np.quantile(values_F, BULK, method="nearest"))
        distance_F = np.maximum(low - values_F, values_F - high)
        least = max(FAR * (high - low), 1e-6 * max(abs(low), abs(high)), 1e-9)
        away = np.flatnonzero(distance_F > least)
        if not len(away):
            continue
        rows = [_judged(name, column, run, values_F, distance_F, low, high, ends_G) for run in _runs(away, ends_G)]
        pulses = [row.value for row in rows if row.is_glitch]
        signal = {value for value in pulses if pulses.count(value) >= REPEATS} if high == low else set()
        stays = STAYS * (high - low)
        found += [row for row in rows if row.value not in signal
                  and (row.is_glitch or high > low and max(low - row.value, row.value - high) > stays)]  # fmt: skip
    return found


def _runs(away: np.ndarray, ends_G: np.ndarray) -> list[np.ndarray]:
    """Frames that follow each other within a stretch."""
    stretch = np.searchsorted(ends_G, away, side="right")
    return np.split(away, np.flatnonzero((np.diff(away) > 1) | (np.diff(stretch) > 0)) + 1)


def _judged(
    name: str, column: int, run: np.ndarray, values_F: np.ndarray, distance_F: np.ndarray, low: float, high: float,
    ends_G: np.ndarray,
) -> Outlier:  # fmt: skip
    first, last = int(run[0]), int(run[-1])
    stretch = int(np.searchsorted(ends_G, first, side="right"))
    begin, end = (int(ends_G[stretch - 1]) if stretch else 0), int(ends_G[stretch])
    jumps = [abs(values_F[first] - values_F[first - 1])] if first > begin else []
    jumps += [abs(values_F[last] - values_F[last + 1])] if last + 1 < end else []
    farthest = int(run[distance_F[run].argmax()])
    is_glitch = len(run) <= FRAMES and bool(jumps) and bool(min(jumps) >= JUMP * distance_F[farthest])
    return Outlier(name, column, first, last, float(values_F[farthest]), low, high, is_glitch)


def wraps(values_FD: np.ndarray, ends_G: np.ndarray) -> dict[int, list[int]]:
    """Columns of `[F, D]` that jump by nearly all of their range between two frames, and where: angles that wrap do.

    Numbers that take few values, such as a gripper's, are none.
    """
    found = {}
    inner = np.ones(len(values_FD) - 1, bool)
    inner[ends_G[ends_G < len(values_FD)] - 1] = False
    for column in range(values_FD.shape[1]):
        values_F = values_FD[:, column].astype(np.float64)
        size = float(np.ptp(values_F))
        jumps = np.flatnonzero((np.abs(np.diff(values_F)) > WRAPS * size) & inner) if size > 0 else np.zeros(0, np.int64)
        if len(jumps) and len(np.unique(values_F)) > VALUES:
            inside = np.quantile(values_F, (0.25, 0.75))
            if np.ptp(inside) > 0.1 * size:  # it moves over the range by itself, too
                found[column] = (jumps + 1).tolist()
    return found


def told(outliers: Sequence[Outlier], most: int = 6) -> list[str]:
    """In words, the farthest first."""
    ordered = sorted(outliers, key=lambda each: -max(each.low - each.value, each.value - each.high))
    lines = [each.said() for each in ordered[:most]]
    return [*lines, f"{len(ordered) - most} more readings far out"] if len(ordered) > most else lines


def robust_range(values_nD: np.ndarray, events: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Least and most `[D]` of n values, which few of them cannot set: see `QUANTILES`.

    A number that never moves has its own value as both, exactly. events: whether rare values far out may be movements
    (states, actions), or are errors of a sensor (pixels of depth, points). NaN is passed on.
    """
    least_D, most_D = values_nD.min(0), values_nD.max(0)
    low_D, high_D = np.quantile(values_nD.astype(np.float64), QUANTILES, axis=0)
    width_D = high_D - low_D
    whole_D = (width_D == 0) | (np.asarray(most_D - least_D > EVENTS * width_D) & events)
    low_D = np.where(whole_D, least_D, np.maximum(least_D, low_D - MARGIN * width_D))
    high_D = np.where(whole_D, most_D, np.minimum(most_D, high_D + MARGIN * width_D))
    return low_D.astype(np.float64), high_D.astype(np.float64)


def without_diverged(chunks_nTA: np.ndarray) -> np.ndarray:
    """Which of n chunks `[n]` lie where their fellows do: not so those, at most one in fifty, that are far out as a whole.

    So one chunk that a solver let diverge does not set the range of actions.
    """
    flat_nA = np.abs(chunks_nTA - np.median(chunks_nTA, axis=(0, 1))).max(1)
    usual_A = np.quantile(flat_nA, 0.9, axis=0)
    kept_n: np.ndarray = ~((flat_nA > 30 * usual_A) & (usual_A > 0)).any(1)
    return kept_n if kept_n.mean() >= 0.98 else np.ones(len(kept_n), bool)


def kept_ends(kept_F: np.ndarray, ends_G: np.ndarray) -> np.ndarray:
    """Where stretches end once only some frames are kept."""
    counted: np.ndarray = np.unique(np.cumsum(kept_F)[ends_G - 1])
    return counted[counted > 0]
