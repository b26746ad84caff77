"""Time of recorded frames: by the data's own stamps, with gaps at which windows end, and at a policy's control period."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

GAP = 1.5
"""Frames that are farther apart than so many periods have a gap between them."""
OFF_GRID = 0.25
"""Stamps that lie within so many periods of an even grid are taken as even."""
SLOWEST_S = 10.0
"""Frames that are farther apart [s] have their stamps in another unit."""
RATE = 0.02
"""A policy's period may differ from a whole number of the recording's by this share."""


@dataclass(frozen=True)
class Clock:
    """When F frames of E episodes were recorded.

    ends_E: where each episode ends; dt_s: the recording's period [s], None where it is not known; stamps_F: seconds, rising
    within an episode, None where there are none or where they are even; borders: where stretches without a gap end, `[G]`,
    the episodes' ends among them; stride: frames from one step of the policy's to the next.
    """

    ends_E: np.ndarray
    dt_s: float | None
    stamps_F: np.ndarray | None
    borders: np.ndarray
    stride: int = 1

    @classmethod
    def even(cls, episodes: Sequence[int], dt_s: float | None) -> Self:
        """Without stamps: every episode is whole."""
        ends_E = np.cumsum(episodes)
        return cls(ends_E, dt_s, None, ends_E)

    @classmethod
    def read(
        cls, path: Path, episodes: Sequence[int], stamps_F: np.ndarray, told_s: float | None
    ) -> tuple[Self, list[str]]:
        """From stamps `[F]` [s]; also what is to be said of them. told_s: the period that the metadata says.

        Raises ValueError, with episode and amount, for stamps that are not finite or do not rise within an episode.
        """
        ends_E, stamps_F = np.cumsum(episodes), np.asarray(stamps_F, dtype=np.float64).reshape(-1)
        first_E = ends_E - np.asarray(episodes)
        if not np.isfinite(stamps_F).all():
            at = int(np.argmin(np.isfinite(stamps_F)))
            raise ValueError(f"{path}: the time stamp of frame {at} is {stamps_F[at]}, expected seconds; {_WAY_OUT}")
        after_F = np.diff(stamps_F, append=np.inf)
        after_F[ends_E - 1] = np.nan  # the next frame is of another episode
        steps = after_F[~np.isnan(after_F)]
        if (steps <= 0).any():
            at = int(np.flatnonzero(after_F <= 0)[0])
            episode = int(np.searchsorted(ends_E, at, side="right"))
            step = at - int(first_E[episode])
            raise ValueError(f"{path}: episode {episode}: the time stamps go from {stamps_F[at]:g} s in step {step} to "
                             f"{stamps_F[at + 1]:g} s in the next, expected them to rise; {_WAY_OUT}")  # fmt: skip
        seen_s = float(np.median(steps)) if len(steps) else told_s
        if seen_s and seen_s > SLOWEST_S:
            raise ValueError(f"{path}: the time stamps are {seen_s:g} apart, expected seconds; are they milliseconds or "
                             f"nanoseconds? "
                             f"{_WAY_OUT}")  # fmt: skip
        notes, dt_s = [], told_s or seen_s
        if seen_s and told_s and abs(seen_s / told_s - 1) > RATE:
            notes.append(f"frames are {seen_s:.4g} s apart by their time stamps, the metadata says {told_s:.4g} s: the stamps "
                         f"are "
                         "taken")  # fmt: skip
            dt_s = seen_s
        if not dt_s:
            return cls(ends_E, dt_s, None, ends_E), notes
        gaps = np.flatnonzero(after_F > GAP * dt_s)
        borders = np.union1d(ends_E, gaps + 1)
        for at in gaps[:3].tolist():
            episode = int(np.searchsorted(ends_E, at, side="right"))
            notes.append(f"episode {episode}: {round(after_F[at] / dt_s) - 1} frames are missing after step "
                         f"{at - int(first_E[episode])} ({after_F[at]:.3g} s to the next); no window reaches over "
                         f"them")  # fmt: skip
        if len(gaps) > 3:
            notes.append(f"{len(gaps)} gaps in all")
        return cls(ends_E, dt_s, None if _is_even(stamps_F, borders, dt_s) else stamps_F, borders), notes

    def at_period(self, policy_s: float, path: Path) -> Self:
        """The same frames, a policy's period apart. Raises ValueError where that is no whole number of frames."""
        if self.dt_s is None:
            return replace(self, dt_s=policy_s)
        ratio = policy_s / self.dt_s
        stride = max(round(ratio), 1)
        if abs(stride / ratio - 1) > RATE:
            below = max(int(ratio), 1)
            periods = [each * self.dt_s for each in (below, below + 1)]
            fits = ", ".join(f"{each:.4g} s ({1 / each:.4g} Hz)" for each in periods)
            raise ValueError(
                f"{path}: is recorded every {self.dt_s:.4g} s ({1 / self.dt_s:.4g} Hz), the policy's control period is "
                f"{policy_s:.4g} s ({1 / policy_s:.4g} Hz), {ratio:.3g} frames; expected a whole number of frames within "
                f"{RATE:.0%}: resample the recording, or say --dt-s, such as {fits}, if the policy works at that"
            )
        return replace(self, stride=stride)

    def near(self, frames_n: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """The frames so many of the policy's steps from each of n, `[n, len(steps)]`, clamped to the stretch without a gap.

        Where stamps are uneven it is the frame whose stamp is nearest.
        """
        stretch_n = np.searchsorted(self.borders, frames_n, side="right")
        last_n = self.borders[stretch_n] - 1
        first_n = np.where(stretch_n > 0, self.borders[np.maximum(stretch_n - 1, 0)], 0)
        if self.stamps_F is None or self.dt_s is None:
            found = frames_n[:, None] + self.stride * steps
        else:
            found = np.empty((len(frames_n), len(steps)), np.int64)
            for row, (frame, first, last) in enumerate(zip(frames_n.tolist(), first_n.tolist(), last_n.tolist(), strict=True)):
                held = self.stamps_F[first : last + 1]
                wanted = self.stamps_F[frame] + self.stride * self.dt_s * steps
                found[row] = first + nearest(held, wanted)
        clamped: np.ndarray = np.clip(found, first_n[:, None], last_n[:, None])
        return clamped


def nearest(times: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Of rising times the index of the one that is nearest to each wanted one."""
    if len(times) == 1:
        return np.zeros(len(wanted), np.int64)
    right = np.clip(np.searchsorted(times, wanted), 1, len(times) - 1)
    found: np.ndarray = np.where(wanted - times[right - 1] <= times[right] - wanted, right - 1, right)
    return found


_WAY_OUT = "correct them, or give the frames' own period: --recorded-dt-s, which leaves the stamps unread"


def _is_even(stamps_F: np.ndarray, borders: np.ndarray, dt_s: float) -> bool:
    """Whether counting frames within a stretch gives their time."""
    for begin, end in zip(np.concatenate([[0], borders[:-1]]).tolist(), borders.tolist(), strict=True):
        held = stamps_F[begin:end] - stamps_F[begin]
        if np.abs(held - dt_s * np.arange(end - begin)).max() > OFF_GRID * dt_s:
            return False
    return True
