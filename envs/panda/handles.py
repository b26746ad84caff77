"""The task `handles`: lift a tray by its left or by its right handle."""

from __future__ import annotations

import numpy as np

from envs.panda.arm import AS_OBJECT, FINGER_OPEN_M, panda_mjcf
from envs.panda.base import PandaEnv, last_side, smooth_path
from envs.panda.disturbances import Disturbance
from envs.specs import ActionSpec, Shape, TaskSpec

HANDLE_Y_M = 0.135
"""From the tray's centre to either handle: the open inner finger (0.054 m out) comes down clear of the deck."""
DECK_HALF = (0.06, 0.055, 0.025)
"""The load in the tray's middle: a policy that averages the modes comes down on it."""
STRIP_HALF_Z_M, HANDLE_HALF = 0.005, (0.025, 0.008, 0.03)
LIFTED_Z_M, HOLD_STEPS = 0.07, 10
"""The tray's origin (0 on the table) must stay above the first for the second."""
DROPPED_FROM_Z_M, DROPPED_TO_Z_M = 0.03, 0.01
GRASP_Z_M = 0.037

SPEC = TaskSpec(
    name="handles",
    summary="Grasp a tray by its left or right handle and lift it off the table; its middle must not be touched.",
    state_names=("tool_x_m", "tool_y_m", "tool_z_m", "finger_m", "tray_x_m", "tray_y_m", "tray_z_m"),
    action=ActionSpec(
        names=("x_m", "y_m", "z_m", "gripper_m"),
        low=(0.34, -0.24, 0.025, 0.0),
        high=(0.66, 0.24, 0.24, FINGER_OPEN_M),
        # The gripper has two values only: at full weight they would outvote every difference in the path.
        weights=(1.0, 1.0, 1.0, 0.25),
    ),
    modes=("left", "right"),
    start_names=("tray_x_m", "tray_y_m", "tool_x_m", "tool_y_m", "tool_z_m"),
    dt_s=0.05,
    max_steps=120,
)


class HandlesEnv(PandaEnv):
    """Start [5]: tray x, y, tool x, y, z. State [7]: tool xyz, finger opening, tray xyz. Action [4]: target xyz and
    the opening per finger. All in metres.

    Success: the tray is held up by a handle for `HOLD_STEPS`. Failures: ``collision`` (hand or finger on the deck),
    ``dropped`` (down again after it was lifted), ``off_table``, ``timeout``.
    """

    spec_task = SPEC
    # the tool starts near the middle: 2 cm to a side already tip a policy that averages both modes to that side
    start_low = (0.48, -0.02, 0.48, -0.012, 0.14)
    start_high = (0.52, 0.02, 0.52, 0.012, 0.17)
    object_name = "tray"
    # Pushed before the grasp, so far that a finger comes down on the deck or the handle where it was aimed.
    disturbance = Disturbance(
        moves="object", step=(2, 11), steps=2, low_m=0.03, high_m=0.04,
        summary="The tray is pushed to a side.",
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._sides = {side: self.model.geom(f"handle_{side}").id for side in SPEC.modes}
        self._lifted = False
        self._held_steps = 0
        self._held_by = ""

    def _mjcf(self) -> str:
        material = f'condim="4" friction="1.0 0.02 0.001" solref="0.004 1" {AS_OBJECT}'
        deck, strip = DECK_HALF, STRIP_HALF_Z_M
        handles = "".join(
            f'<geom name="handle_{side}" type="box" pos="0 {y} {HANDLE_HALF[2]}" '
            f'size="{HANDLE_HALF[0]} {HANDLE_HALF[1]} {HANDLE_HALF[2]}" mass="0.015" rgba="0.9 0.7 0.2 1" '
            f"{material}/>\n"
            for side, y in (("left", HANDLE_Y_M), ("right", -HANDLE_Y_M))
        )
        scene = (
            f'<body name="tray" pos="0.5 0 0"><freejoint name="tray"/>\n'
            f'<geom name="deck" type="box" pos="0 0 {deck[2]}" size="{deck[0]} {deck[1]} {deck[2]}" mass="0.05" '
            f'rgba="0.8 0.3 0.25 1" {material}/>\n'
            f'<geom name="strip" type="box" pos="0 0 {strip}" size="0.03 {HANDLE_Y_M} {strip}" mass="0.02" '
            f'rgba="0.5 0.5 0.55 1" {material}/>\n{handles}</body>\n'
        )
        return panda_mjcf(SPEC.name, scene)

    def _forbidden_pairs(self) -> list[tuple[list[int], list[int]]]:
        return [(self._robot_geoms(), self._geoms("deck"))]

    def _place(self, start: np.ndarray) -> np.ndarray:
        self._put_object(start[0], start[1], 0.0)
        self._lifted, self._held_steps, self._held_by = False, 0, ""
        return start[2:5]

    def _judge(self) -> tuple[bool, str, str]:
        tray = self.data.xpos[self._object_body]
        if tray[2] < -0.02 or abs(tray[1]) > 0.4 or not 0.2 < tray[0] < 0.9:
            return False, "off_table", ""
        self._lifted = self._lifted or tray[2] > DROPPED_FROM_Z_M
        if self._lifted and tray[2] < DROPPED_TO_Z_M:
            return False, "dropped", ""
        held_by = self._holding() if tray[2] > LIFTED_Z_M else ""
        self._held_steps = self._held_steps + 1 if held_by and held_by == self._held_by else int(bool(held_by))
        self._held_by = held_by
        if self._held_steps >= HOLD_STEPS:
            return True, "", held_by
        return False, "", ""

    def _holding(self) -> str:
        """The handle that both fingers touch, or ""."""
        return next((side for side, handle in self._sides.items() if self._fingers_on(handle) == 2), "")

    def _planned_modes(self, path: np.ndarray) -> tuple[str, ...]:
        """The handle towards which the path last went more than half-way."""
        return (last_side(path[:, 1] - self.data.xpos[self._object_body][1], HANDLE_Y_M / 2),)

    def plan(self, mode: str, rng: np.random.Generator) -> np.ndarray:
        """Targets `[L, 4]` float32: sideways and down over a handle, close, lift."""
        self._check_mode(mode)
        sign = 1.0 if mode == "left" else -1.0
        speed = rng.uniform(0.20, 0.28)
        tool, tray = self.tool_position(), self.data.xpos[self._object_body].copy()
        grasp = np.array(
            [tray[0] + rng.uniform(-0.006, 0.006), tray[1] + sign * HANDLE_Y_M + rng.uniform(-0.004, 0.004), GRASP_Z_M]
        )
        # People differ in how far sideways they go before they go down; all are over the handle in time.
        shoulder = np.array([*(tool[:2] + rng.uniform(0.85, 1.0) * (grasp[:2] - tool[:2])), rng.uniform(0.11, 0.13)])
        above = np.array([grasp[0], grasp[1], rng.uniform(0.08, 0.09)])
        down = smooth_path(np.stack([tool, shoulder, above, grasp]), speed, SPEC.dt_s, 0.02)
        top = np.array([grasp[0], grasp[1] + sign * rng.uniform(-0.02, 0.01), rng.uniform(0.155, 0.18)])
        up = smooth_path(np.stack([grasp, top]), speed, SPEC.dt_s, 0.02)
        close, hold = rng.integers(4, 7), HOLD_STEPS + 1
        xyz = np.concatenate([down, np.repeat(grasp[None], close, 0), up, np.repeat(top[None], hold, 0)])
        gripper = np.zeros(len(xyz))
        gripper[: len(down)] = FINGER_OPEN_M
        return np.concatenate([xyz, gripper[:, None]], axis=1).astype(np.float32)

    def top_view(self) -> tuple[Shape, ...]:
        tray = self.data.xpos[self._object_body]
        x, y = float(tray[0]), float(tray[1])
        handles = tuple(
            Shape("box", (x, y + sign * HANDLE_Y_M), (HANDLE_HALF[0], HANDLE_HALF[1]), "goal", f"{side} handle")
            for side, sign in (("left", 1), ("right", -1))
        )
        return (
            Shape("box", (x, y), (0.03, HANDLE_Y_M), "object", "tray"),
            Shape("box", (x, y), DECK_HALF[:2], "obstacle", "deck"),
            *handles,
            self._start_area(2, "tool"),
        )
