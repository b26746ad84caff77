"""The task `avoid`: a rod in the hand crosses three rows of pillars; the gap taken at each row is one of 24 modes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from envs.panda.arm import AS_HAND, AS_OBSTACLE, panda_mjcf
from envs.panda.base import PandaEnv, smooth_path
from envs.panda.disturbances import Disturbance
from envs.specs import ActionSpec, Shape, TaskSpec

TOOL_Z_M = 0.17
"""The tool's height: the rod's tip hangs below the pillars' tops, the fingers stay above them."""
PILLAR_RADIUS_M, PILLAR_HEIGHT_M, ROD_RADIUS_M = 0.02, 0.12, 0.008
FINISH_X_M, SIDE_Y_M = 0.70, 0.25
ROWS = (
    (0.41, (0.0,)),
    (0.52, (0.06, -0.06)),
    (0.63, (0.12, 0.0, -0.12)),
)
"""Per row: its x and its pillars' y [m]."""
GAPS = (
    (("L", 0.06), ("R", -0.06)),
    (("L", 0.12), ("C", 0.0), ("R", -0.12)),
    (("1", 0.18), ("2", 0.06), ("3", -0.06), ("4", -0.18)),
)
"""Per row its gaps from left to right: name and y [m] of the centre."""

SPEC = TaskSpec(
    name="avoid",
    summary="Carry a rod across three rows of pillars without touching one; 24 ways through.",
    state_names=("tool_x_m", "tool_y_m"),
    action=ActionSpec(names=("x_m", "y_m"), low=(0.28, -0.28), high=(0.75, 0.28), weights=(1.0, 1.0)),
    modes=tuple(f"{a}-{b}-{c}" for a, _ in GAPS[0] for b, _ in GAPS[1] for c, _ in GAPS[2]),
    start_names=("tool_x_m", "tool_y_m"),
    dt_s=0.05,
    max_steps=100,
)


class AvoidEnv(PandaEnv):
    """Start [2]: tool x, y. State [2]: tool x, y. Action [2]: target x, y, at a fixed height. All in metres.

    Success: the tool is past `FINISH_X_M`. Failures: ``collision`` (rod or arm on a pillar), ``off_table`` (beyond
    `SIDE_Y_M` to a side), ``timeout``.
    """

    spec_task = SPEC
    # The state is the tool's position alone: a moved pillar would be invisible, a pushed arm is not. It is pushed before the
    # first row, where there is room; an older plan then leads past the wrong side of a pillar, or into it.
    disturbance = Disturbance(
        moves="tool", step=(0, 4), steps=3, low_m=0.03, high_m=0.045,
        summary="The arm is pushed to a side.",
    )  # fmt: skip
    start_low = (0.29, -0.04)
    start_high = (0.31, 0.04)

    def __init__(self) -> None:
        super().__init__()
        self._crossed: list[str] = ["", "", ""]
        self._before = np.zeros(2)

    def _mjcf(self) -> str:
        rod = (
            f'<geom name="rod" type="capsule" fromto="0 0 0.09 0 0 0.223" size="{ROD_RADIUS_M}" mass="0.05" '
            f'rgba="0.2 0.45 0.8 1" {AS_HAND}/>\n'
        )
        pillars = "".join(
            f'<geom name="pillar_{row}_{index}" type="cylinder" pos="{x} {y} {PILLAR_HEIGHT_M / 2}" '
            f'size="{PILLAR_RADIUS_M} {PILLAR_HEIGHT_M / 2}" rgba="0.8 0.3 0.25 1" {AS_OBSTACLE}/>\n'
            for row, (x, ys) in enumerate(ROWS)
            for index, y in enumerate(ys)
        )
        return panda_mjcf(SPEC.name, pillars, hand=rod, gripper=False)

    def _forbidden_pairs(self) -> list[tuple[list[int], list[int]]]:
        return [(self._robot_geoms(), self._geoms("pillar"))]

    def _place(self, start: np.ndarray) -> np.ndarray:
        self._crossed = ["", "", ""]
        self._before = start.copy()
        return np.array([start[0], start[1], TOOL_Z_M])

    def _command(self, action: np.ndarray) -> tuple[np.ndarray, float]:
        return np.array([action[0], action[1], TOOL_Z_M]), 0.0

    def _state(self) -> np.ndarray:
        return self.data.site_xpos[self._tool_site][:2]

    def _judge(self) -> tuple[bool, str, str]:
        before, now = self._before, self.tool_position()[:2]
        self._before = now
        for row, (x, _) in enumerate(ROWS):
            if before[0] < x <= now[0]:  # the last crossing counts if the tool turned back
                y = before[1] + (now[1] - before[1]) * (x - before[0]) / (now[0] - before[0])
                self._crossed[row] = min(GAPS[row], key=lambda gap: abs(gap[1] - y))[0]
        if abs(now[1]) > SIDE_Y_M:
            return False, "off_table", ""
        if now[0] >= FINISH_X_M and all(self._crossed):
            return True, "", "-".join(self._crossed)
        return False, "", ""

    def _planned_modes(self, path: np.ndarray) -> tuple[str, ...]:
        """Per row the gap of the last crossing; "" without one, or where the rod would touch a pillar."""
        gaps = ["", "", ""]
        for before, now in pairwise(path):
            for row, (x, pillars) in enumerate(ROWS):
                if before[0] < x <= now[0]:
                    y = before[1] + (now[1] - before[1]) * (x - before[0]) / (now[0] - before[0])
                    clear = min(abs(y - pillar) for pillar in pillars) > PILLAR_RADIUS_M + ROD_RADIUS_M
                    gaps[row] = min(GAPS[row], key=lambda gap: abs(gap[1] - y))[0] if clear else ""
        return tuple(gaps)

    def plan(self, mode: str, rng: np.random.Generator) -> np.ndarray:
        """Targets `[L, 2]` float32: nearly straight through each gap, sideways in the corridors between the rows."""
        self._check_mode(mode)
        gaps = [dict(GAPS[row])[name] for row, name in enumerate(mode.split("-"))]
        ys = [y + float(np.clip(rng.normal(0.0, 0.005), -0.01, 0.01)) for y in gaps]
        speed = rng.uniform(0.30, 0.40)
        rounding = rng.uniform(0.015, 0.03)
        here = self.tool_position()[:2]
        points = [here, np.array([ROWS[0][0] - rng.uniform(0.025, 0.05), ys[0]])]
        for row in range(2):
            near, far = ROWS[row][0] + 0.028, ROWS[row + 1][0] - 0.028
            middle = (near + far) / 2 + rng.uniform(-0.005, 0.005)
            across = ys[row + 1] - ys[row]
            points.append(np.array([near, ys[row]]))
            points.append(np.array([middle - 0.006, ys[row] + 0.15 * across]))
            points.append(np.array([middle + 0.006, ys[row + 1] - 0.15 * across]))
            points.append(np.array([far, ys[row + 1]]))
        points.append(np.array([FINISH_X_M + 0.035, ys[2]]))
        return smooth_path(np.array(points), speed, SPEC.dt_s, rounding).astype(np.float32)

    def top_view(self) -> tuple[Shape, ...]:
        finish = Shape("box", (FINISH_X_M + 0.01, 0.0), (0.01, SIDE_Y_M), "goal", "finish")
        pillars = tuple(
            Shape("circle", (x, y), (PILLAR_RADIUS_M, PILLAR_RADIUS_M), "obstacle") for x, ys in ROWS for y in ys
        )
        return (self._start_area(0, "start"), finish, *pillars)
