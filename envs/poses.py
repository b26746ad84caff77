"""Which dimensions of a state or an action are positions and directions in the robot's base frame, by their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MISSING = -1
"""In place of an index, for a dimension that a position does not have."""

LEAST_HALF_RANGES = {"position": 0.05, "rotation": 0.1, "gripper": 0.5, "angle": 0.1}
"""Least half range in normalisation by kind of dimension [m, component of a unit vector, opening from 0 to 1, rad].

A dimension that hardly varies in the demonstrations would otherwise be magnified without limit: on RLBench's reach_target a
rotation with half a range of 7e-4 came to 310 at a held-out start."""


@dataclass(frozen=True)
class PoseLayout:
    """Where positions and directions stand in a vector.

    positions: (x, y, z) indices of each position, `MISSING` for an axis that is not there. directions: those of each unit
    vector, such as a column of a rotation matrix. angles: indices of joint angles. grippers: of openings from 0 to 1.
    """

    positions: tuple[tuple[int, int, int], ...] = ()
    directions: tuple[tuple[int, int, int], ...] = ()
    angles: tuple[int, ...] = ()
    grippers: tuple[int, ...] = ()

    def least_half_ranges(self, size: int) -> list[float]:
        """`[size]` of each dimension, from `LEAST_HALF_RANGES`; 0 for any other."""
        found = [0.0] * size
        for kind, indices in (
            ("position", [index for each in self.positions for index in each]),
            ("rotation", [index for each in self.directions for index in each]),
            ("angle", self.angles), ("gripper", self.grippers),
        ):  # fmt: skip
            for index in indices:
                if index != MISSING:
                    found[index] = LEAST_HALF_RANGES[kind]
        return found


def pose_layout(names: Sequence[str]) -> PoseLayout:
    """The layout of a vector with these dimension names.

    ``<object>_x_m``, ``.._y_m`` and ``.._z_m`` (or ``x_m`` ..) are a position [m]; ``<object>_r_xx``, ``.._r_yx``, ``.._r_zx``
    a rotation's first column, ``.._r_xy`` .. its second; names that end with ``_rad`` are angles; ``gripper_open`` is an
    opening. Everything else, such as a finger's travel or the task's one-hot, depends on no frame.
    Raises ValueError for a direction without all of its three components.
    """
    where = {name: index for index, name in enumerate(names)}
    positions, directions = [], []
    for name in names:
        owner = name.removesuffix("x_m")
        if name.endswith("x_m") and owner[-1:] in ("", "_"):
            positions.append(tuple(where.get(f"{owner}{axis}_m", MISSING) for axis in "xyz"))
        for column in "xy":
            if name.endswith(f"r_x{column}"):
                owner = name.removesuffix(f"r_x{column}")
                each = tuple(where.get(f"{owner}r_{axis}{column}", MISSING) for axis in "xyz")
                if MISSING in each:
                    raise ValueError(f"{name}: got no {owner}r_y{column} and {owner}r_z{column} beside it, expected the whole "
                                     "column of the rotation matrix")  # fmt: skip
                directions.append(each)
    return PoseLayout(
        tuple((x, y, z) for x, y, z in positions), tuple((x, y, z) for x, y, z in directions),
        tuple(where[name] for name in names if name.endswith("_rad")),
        tuple(where[name] for name in names if name.endswith("gripper_open")),
    )  # fmt: skip
