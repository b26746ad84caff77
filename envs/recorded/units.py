"""Which units a recording's images, depth and points are in, judged over many of its frames; what is undecided is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from envs.specs import DEPTH, IMAGES, POINTS

FRAMES = 64
"""Frames that are looked at, spread over the recording; and as many episodes' first ones."""
NEAR_M, FAR = 20.0, 100.0
"""Lengths of a scene up to `NEAR_M` are metres; from `FAR` on they are millimetres; between, nobody knows."""
BUFFER = 0.9
"""A renderer's depth buffer is 1 at the far plane, and nearly all of it is more than this."""
BYTE, OVERSHOOT = 255.0, 1.0 + 1e-3
"""The most of a colour, in either unit."""


@dataclass(frozen=True)
class Unit:
    """Stored numbers are divided by these to be ours; said: in words; most: a stored colour that is more is refused."""

    divisor: float = 1.0
    colour_divisor: float = 1.0
    said: str = "as recorded"
    most: float = np.inf


AS_IT_IS = Unit()


def is_judged(name: str) -> bool:
    """Whether a feature has units to be judged: images, depth, points."""
    return name.startswith((IMAGES + ".", DEPTH + ".")) or name == POINTS


def looked_at(ends_E: np.ndarray) -> np.ndarray:
    """The frames that units are judged over, rising."""
    count = int(ends_E[-1])
    first_E = np.concatenate([[0], ends_E[:-1]])
    some = first_E[np.linspace(0, len(first_E) - 1, min(FRAMES, len(first_E))).astype(int)]
    return np.unique(np.concatenate([some, np.linspace(0, count - 1, min(FRAMES, count)).round().astype(int)]))


def judge(path: Path, key: str, name: str, frames: Sequence[int], stored: Sequence[np.ndarray]) -> Unit:
    """The unit of a feature's key, from some of its frames as they are stored.

    Raises ValueError, naming key, frames and numbers, where it cannot be told, or is not one for all frames.
    """
    where = f"{path}: {key}"
    if name.startswith(IMAGES + "."):
        return _colours(where, frames, stored, "images")
    if name.startswith(DEPTH + "."):
        return _depth(where, stored)
    if stored[0].shape[-1] == 3 and "colo" in key.lower():
        unit = _colours(where, frames, stored, "point colours")
        return Unit(unit.divisor, 1.0, unit.said, unit.most)
    divisor, said = _length(where, np.concatenate([np.abs(each[..., :3].astype(np.float64)).reshape(-1) for each in stored]))
    if stored[0].shape[-1] == 3:
        return Unit(divisor, 1.0, said)
    unit = _colours(where, frames, [each[..., 3:] for each in stored], "point colours")
    return Unit(divisor, unit.divisor, f"{said}; {unit.said}", unit.most)


def _colours(where: str, frames: Sequence[int], stored: Sequence[np.ndarray], what: str) -> Unit:
    whole = stored[0].dtype.kind in "iub"
    most_M = np.array([float(np.nanmax(each)) for each in stored], dtype=np.float64)
    least_M = np.array([float(np.nanmin(each)) for each in stored], dtype=np.float64)
    top, low = int(most_M.argmax()), int(least_M.argmin())
    most, least = most_M[top], least_M[low]
    if not np.isfinite(most):  # told with its frame when it is read
        return Unit(said=f"{what} 0 to 1", most=OVERSHOOT)
    if least < -1e-3 or most > BYTE + 0.5:
        raise ValueError(f"{where}: {what} go from {least:g} (frame {frames[low]}) to {most:g} (frame {frames[top]}), "
                         f"expected 0 to 1 "
                         "or 0 to 255; write them so, or leave the key out: --names key=")  # fmt: skip
    if stored[0].dtype == np.bool_:
        return Unit(1.0, 1.0, f"{what} of two values", OVERSHOOT)
    if whole:
        if stored[0].dtype != np.uint8 and 0 < most <= 1 or stored[0].dtype == np.uint8 and most == 1:
            raise ValueError(f"{where}: whole numbers up to {most:g} in {len(frames)} frames; these may be {what} of 0 to 1 "
                             f"that were "
                             "rounded, or nearly black ones of 0 to 255. Write them as 0 to 255, or leave the key out: --names "
                             "key=")  # fmt: skip
        return Unit(BYTE, BYTE, f"{what} 0 to 255, divided by 255", BYTE)
    if most <= OVERSHOOT:
        return Unit(1.0, 1.0, f"{what} 0 to 1", OVERSHOOT)
    if most <= 2.0:
        raise ValueError(f"{where}: {what} reach {most:g} (frame {frames[top]}), expected at most 1, or far more where they "
                         f"go to 255; "
                         "clip them, or leave the key out: --names key=")  # fmt: skip
    small = [row for row in range(len(stored)) if 0 < most_M[row] <= OVERSHOOT and (stored[row] % 1 != 0).any()]
    if small:
        raise ValueError(f"{where}: {what} go to {most:g} in frame {frames[top]}, but only to {most_M[small[0]]:g}, in "
                         f"fractions, in frame "
                         f"{frames[small[0]]}: two units in one recording; write all of them as 0 to 255")  # fmt: skip
    return Unit(BYTE, BYTE, f"{what} 0 to 255 in floats, divided by 255", BYTE)


def _depth(where: str, stored: Sequence[np.ndarray]) -> Unit:
    values = np.concatenate([each.reshape(-1) for each in stored])
    known = values[(values != 0) & np.isfinite(values.astype(np.float64))].astype(np.float64)
    if values.dtype.kind in "iub":
        known = known[known < np.iinfo(values.dtype).max] if values.dtype.kind != "b" else known
        far = float(np.quantile(known, 0.99)) if len(known) else 1000.0
        if not NEAR_M < far <= 1000 * NEAR_M:
            raise ValueError(f"{where}: depth of whole numbers up to about {far:g}, expected millimetres; write it so, or as "
                             f"floats in "
                             "metres, or leave the key out: --names key=")  # fmt: skip
        return Unit(1000.0, 1.0, "depth in millimetres, divided by 1000; 0 is unknown")
    if len(known) and known.max() <= 1.0 and float(np.quantile(known, 0.05)) > BUFFER:
        raise ValueError(f"{where}: depth lies between {known.min():g} and {known.max():g}, as a renderer's depth buffer "
                         f"does, which is no "
                         "length; expected metres. Convert it by the camera's near and far planes, or leave the key out: "
                         "--names "
                         "key=")  # fmt: skip
    divisor, said = _length(where, np.abs(known))
    return Unit(divisor, 1.0, f"depth in {said}; 0 is unknown")


def _length(where: str, known: np.ndarray) -> tuple[float, str]:
    """Metres or millimetres, by the size of a scene."""
    known = known[np.isfinite(known)]
    far = float(np.quantile(known, 0.99)) if len(known) else 1.0
    if far <= NEAR_M:
        return 1.0, "metres"
    if far < FAR:
        raise ValueError(f"{where}: lengths reach {far:g}, too far for metres and too near for millimetres; expected metres. "
                         f"Write them "
                         "so, or leave the key out: --names key=")  # fmt: skip
    return 1000.0, "millimetres, divided by 1000"
